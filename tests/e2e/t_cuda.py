#!/usr/bin/env python3
"""Jobs whose engines compute on GPUs, over the emulation of CUDA (tests/cudasim): the whole way from the options to the answers; and what is
said where CUDA or GPUs are missing."""
import re

from harness_cuda import *

SIM = os.path.join(BUILD, "sim/mpiserve")


def gpu(n):
    return f"GPU-63756461-7369-6d2d-6465-766963652d3{n}"


def a_gpu_for_each_engine():
    with Job(*CUDA, program=SIM, env={"CUDASIM_DEVICES": "3"}) as job:
        together(len(CHATS), lambda i: ask_chat(job, CHATS[i]))
        log = job.log()
        check(f"f32 on cuda, {gpu(0)}" in log and f"f32 on cuda, {gpu(1)}" in log and gpu(2) not in log, log)


def a_gpu_for_each_engine_of_those_that_are_visible():
    with Job(*CUDA, program=SIM, ranks=2, env={"CUDASIM_DEVICES": "4", "CUDA_VISIBLE_DEVICES": f"3,{gpu(1)},7,0"}) as job:
        ask_chat(job, CHATS[0])
        used = re.findall(r"f32 on cuda, (GPU-[0-9a-f-]+)", job.log())
        equal(sorted(used), [gpu(1), gpu(3)])


def numbers_and_draws():
    draws_of_a_cpu(SIM)
    other_numbers(SIM)


def vectors():
    vectors_and_scores(SIM)


def adapters():
    base_and_adapters(SIM)


def an_engine_that_is_killed():
    killed_in_a_stream(SIM, 80)


def an_error_of_cuda_ends_the_engine_and_no_answer():
    with tempfile.TemporaryDirectory() as folder:
        fail = os.path.join(folder, "fail")
        with Job(*CUDA, program=SIM, ranks=1, env={"CUDASIM_FAIL": fail}) as job:
            wanted = job.post("/v1/completions", SEEDED).json["choices"][0]
            old = job.engines()[0]

            def break_it():
                time.sleep(0.2)
                open(fail, "w").close()
            answers = together(2, lambda i: break_it() if i else job.post("/v1/completions", SEEDED))
            equal(answers[0].status, 200, f"{answers[0]}")
            until(lambda: not old.alive(), 20 * SLOW, "the engine ends")
            equal(answers[0].json["choices"][0], wanted)
            check(re.search(r"step \d+: cudaErrorIllegalAddress in ", job.log()), job.log())
            equal(job.post("/v1/completions", SEEDED).json["choices"][0], wanted, "with the new engine")


def refusal(*options, program=SIM, env=None, ranks=1):
    job = Job(*options, program=program, env=env, ranks=ranks, wait=False)
    try:
        until(lambda: job.up.poll() is not None, START_LIMIT, "the job ends")
        check(job.up.returncode != 0, "an error")
        return job.output()
    finally:
        job.close()


def what_is_missing_is_said():
    for words, text in (
            (dict(options=CUDA, env={"CUDASIM_DEVICES": "0"}), "there is no GPU that an engine here could use"),
            (dict(options=CUDA, ranks=2), "the 1 GPUs that rank 1 may use are other engines' already: one engine takes one GPU"),
            (dict(options=(*CUDA, "-tp", "2"), ranks=2), "the 1 GPUs that rank 1 may use are other engines' already: one engine takes one GPU"),
            (dict(options=(*CUDA, "-tp", "2"), ranks=2, env={"CUDASIM_DEVICES": "2", "CUDASIM_NCCL_WITHOUT": "ncclSend"}),
             "a model on several GPUs needs NCCL, and rank 0 finds none: install it (libnccl2)"),
            (dict(options=(*CUDA, "--gpu-memory-utilization", "0.01")), "of the GPU's 4294967296 bytes"),
            (dict(options=(*CUDA, "--kv-cache-memory-bytes", "8G")), "are more than the GPU has left"),
            (dict(options=(*CUDA, "--quantization", "int8")), "--quantization: on CPUs only; leave out --engine cuda"),
            (dict(options=(*CUDA, "--quantization", "int4")), "--quantization: on CPUs only; leave out --engine cuda"),
            (dict(options=(*CUDA, "--kv-cache-dtype", "int8")), "a KV cache of another format than --compute: on CPUs only"),
            (dict(options=("--engine", "cpu", "--compute", "f16")), "f16 is for --engine cuda")):
        said = refusal(*words.pop("options"), **words)
        check(text in said, said)


def what_is_visible():
    """As CUDA's guide says of CUDA_VISIBLE_DEVICES: numbers and UUIDs, in its order; what is neither ends the list."""
    def seen(value):
        env = {**os.environ, "CUDASIM_DEVICES": "4", **({} if value is None else {"CUDA_VISIBLE_DEVICES": value})}
        done = subprocess.run([SIM, "devices", "--json"], capture_output=True, text=True, env=env)
        equal(done.returncode, 0 if done.stdout else 1, done.stderr)
        return [d["uuid"] for d in json.loads(done.stdout)["devices"]] if done.stdout else []
    for value, numbers in (
            (None, (0, 1, 2, 3)), ("2,0", (2, 0)), ("3", (3,)), ("1,4,0", (1,)), ("1,-1,0", (1,)), ("0,x,1", (0,)), ("1x", ()), ("", ()), ("-1", ()),
            (gpu(2), (2,)), (f"{gpu(2)},0,{gpu(1)}", (2, 0, 1)), (f"0,{gpu(5)},1", (0,)), (f"1,{gpu(3)[:-1]},2", (1,))):
        equal(seen(value), [gpu(n) for n in numbers], f"CUDA_VISIBLE_DEVICES={value}")


def devices_are_listed():
    def listed(**env):
        done = subprocess.run([SIM, "devices"], capture_output=True, text=True, env={**os.environ, "CUDASIM_DEVICES": "2", **env})
        equal(done.returncode, 0, done.stderr)
        return done.stdout.splitlines()
    lines = listed()
    check(len(lines) == 3 and gpu(1) in lines[1], lines)
    equal(lines[2], "NCCL 2.28.9: a model may have several GPUs")
    check(listed(CUDASIM_NCCL_WITHOUT="ncclSend")[2].startswith("no NCCL: one GPU for a model (libnccl.so.2: cannot be opened, or has no ncclSend"),
          "what is missing")


def plan(*options, program=SIM):
    done = subprocess.run([program, "plan", *CUDA, "--json", *options], capture_output=True, text=True, timeout=60 * SLOW)
    return done.returncode, json.loads(done.stdout), done.stderr


def a_plan_says_what_a_gpu_needs():
    code, value, err = plan("--ranks", "1", "--cores", "8")
    equal((code, err), (0, ""))
    e, gpu = value["engine"], value["gpu"]
    equal((e["isa"], value["placement"]["engine_takes"], gpu["memory_bytes"]), ("cuda", "gpu", 4 << 30))
    equal(gpu["needed_bytes"], e["weights_bytes"] + e["kv_cache_bytes"] + e["activation_bytes"])
    equal(value["node"]["needed_bytes"], value["node"]["rank_bytes"] + e["ring_bytes"], "no weights in the node's memory")
    check(" --gpus-per-node=1 slurm/serve.slurm" in value["commands"]["sbatch"], value["commands"]["sbatch"])
    with Job(*CUDA, program=SIM, ranks=1) as job:
        check(f"{e['kv_cache_bytes'] >> 20} MiB for KV" in job.log(), job.log())
    least = gpu["needed_bytes"] - e["kv_cache_bytes"]
    for options, where, words in (
            (("--memory-per-gpu", "64M"), "--gpu-memory-utilization", ("0.90 of the GPU's 67108864 bytes", "do not fit")),
            (("--memory-per-gpu", "1G", "--kv-cache-memory-bytes", "2G"), "--kv-cache-memory-bytes", ("2147483648 are more than the GPU has left",)),
            (("--memory-per-gpu", str(int(least / 0.9) + 100000)), "--kv-cache-memory-bytes", ("one sequence of 512 tokens needs",))):
        code, value, err = plan("--ranks", "1", "--cores", "8", *options)
        equal((code, value["refusals"][0]["where"]), (1, where), err)
        check(all(w in err for w in words), err)
    code, value, err = plan("--ranks", "1", "--cores", "8", "--memory-per-gpu", "60G", program=SIM)
    equal((code, value["gpu"]["memory_bytes"]), (0, 60 << 30), err)


def a_build_without_cuda_says_so():
    devices = subprocess.run([PROGRAM, "devices"], capture_output=True, text=True)
    if "this build has no CUDA" not in devices.stderr:
        return  # it has
    equal((devices.returncode, devices.stderr), (1, "mpiserve devices: device: this build has no CUDA: make CUDA=1\n"))
    check("--engine cuda: this build has no CUDA: make CUDA=1" in refusal(*CUDA, program=PROGRAM), "the job says so, too")
    code, _, err = plan(program=PROGRAM)
    check(code == 1 and "--engine cuda: this build has no CUDA: make CUDA=1" in err, err)


run(a_gpu_for_each_engine, a_gpu_for_each_engine_of_those_that_are_visible, numbers_and_draws, vectors, adapters, an_engine_that_is_killed,
    an_error_of_cuda_ends_the_engine_and_no_answer, what_is_missing_is_said, what_is_visible, devices_are_listed, a_plan_says_what_a_gpu_needs,
    a_build_without_cuda_says_so)
