#!/usr/bin/env python3
"""Jobs whose engines compute on GPUs, over the emulation of CUDA (tests/cudasim): the whole way from the options to the answers; and what is
said where CUDA or GPUs are missing."""
import re

from harness import *

SIM = os.path.join(BUILD, "sim/mpiserve")
CHATS = [c for c in expected_chats() if c["min_gap"] >= 0.1 and len(c["ids"]) < 30][:6]
LIMITS = ("--compute", "f32", "--max-model-len", "512", "--max-num-seqs", "8", "--max-num-batched-tokens", "256")
CUDA = ("--engine", "cuda", *LIMITS)
SEEDED = {"prompt": "Once upon a time", "max_tokens": 60, "seed": 7, "temperature": 0.9, "top_p": 0.95, "top_k": 40,
          "presence_penalty": 0.5, "ignore_eos": True, "logprobs": 3}


def gpu(n):
    return f"GPU-63756461-7369-6d2d-6465-766963652d3{n}"


def ask(job, chat):
    body = {"messages": chat["messages"], "temperature": 0, "max_completion_tokens": len(chat["ids"]) + 8, "return_token_ids": True}
    answer = job.post("/v1/chat/completions", body)
    equal(answer.status, 200, f"{answer}")
    equal(answer.json["choices"][0]["token_ids"], chat["ids"], chat["messages"][-1]["content"][:60])


def a_gpu_for_each_engine():
    with Job(*CUDA, program=SIM, env={"CUDASIM_DEVICES": "3"}) as job:
        together(len(CHATS), lambda i: ask(job, CHATS[i]))
        log = job.log()
        check(f"f32 on cuda, {gpu(0)}" in log and f"f32 on cuda, {gpu(1)}" in log and gpu(2) not in log, log)


def draws_of_a_cpu():
    def completion(*options, program):
        with Job(*options, program=program, ranks=1) as job:
            answer = job.post("/v1/completions", SEEDED)
            equal(answer.status, 200, f"{answer}")
            return answer.json["choices"][0]
    cpu, cuda = completion(*LIMITS, program=PROGRAM), completion(*CUDA, program=SIM)
    equal(cuda["text"], cpu["text"])
    for got, wanted in zip(cuda["logprobs"]["top_logprobs"], cpu["logprobs"]["top_logprobs"]):
        equal(list(got), list(wanted), "the best tokens")
        check(all(abs(got[t] - wanted[t]) < 1e-3 for t in got), f"{got} {wanted}")


def other_numbers():
    for compute in ("auto", "f16"):
        with Job("--engine", "cuda", "--compute", compute, *LIMITS[2:], program=SIM, ranks=1) as job:
            check(f"{'bf16' if compute == 'auto' else compute} on cuda" in job.log(), job.log())
            answer = job.chat("What is 17 + 25?")
            check("42" in answer["choices"][0]["message"]["content"], answer)


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
            (dict(options=("--engine", "cpu", "--compute", "f16")), "f16 is for --engine cuda")):
        said = refusal(*words.pop("options"), **words)
        check(text in said, said)


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


def a_build_without_cuda_says_so():
    devices = subprocess.run([PROGRAM, "devices"], capture_output=True, text=True)
    if "this build has no CUDA" not in devices.stderr:
        return  # it has
    equal((devices.returncode, devices.stderr), (1, "mpiserve devices: device: this build has no CUDA: make CUDA=1\n"))
    check("--engine cuda: this build has no CUDA: make CUDA=1" in refusal(*CUDA, program=PROGRAM), "the job says so, too")


run(a_gpu_for_each_engine, draws_of_a_cpu, other_numbers, an_error_of_cuda_ends_the_engine_and_no_answer, what_is_missing_is_said,
    devices_are_listed, a_build_without_cuda_says_so)
