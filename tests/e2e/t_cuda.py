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
        together(len(CHATS), lambda i: ask(job, CHATS[i]))
        log = job.log()
        check(f"f32 on cuda, {gpu(0)}" in log and f"f32 on cuda, {gpu(1)}" in log and gpu(2) not in log, log)


def numbers_and_draws():
    draws_of_a_cpu(SIM)
    other_numbers(SIM)


def an_engine_that_is_killed():
    killed_in_a_stream(SIM, 20)


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
            (dict(options=(*CUDA, "--gpu-memory-utilization", "0.01")), "of the GPU's 4294967296 bytes"),
            (dict(options=(*CUDA, "--kv-cache-memory-bytes", "8G")), "are more than the GPU has left"),
            (dict(options=(*CUDA, "--quantization", "int8")), "--quantization: on CPUs only; leave out --engine cuda"),
            (dict(options=(*CUDA, "--quantization", "int4")), "--quantization: on CPUs only; leave out --engine cuda"),
            (dict(options=(*CUDA, "--kv-cache-dtype", "int8")), "a KV cache of another format than --compute: on CPUs only"),
            (dict(options=("--engine", "cpu", "--compute", "f16")), "f16 is for --engine cuda")):
        said = refusal(*words.pop("options"), **words)
        check(text in said, said)


def a_build_without_cuda_says_so():
    devices = subprocess.run([PROGRAM, "devices"], capture_output=True, text=True)
    if "this build has no CUDA" not in devices.stderr:
        return  # it has
    equal((devices.returncode, devices.stderr), (1, "mpiserve devices: device: this build has no CUDA: make CUDA=1\n"))
    check("--engine cuda: this build has no CUDA: make CUDA=1" in refusal(*CUDA, program=PROGRAM), "the job says so, too")


run(a_gpu_for_each_engine, numbers_and_draws, an_engine_that_is_killed, an_error_of_cuda_ends_the_engine_and_no_answer, what_is_missing_is_said,
    a_build_without_cuda_says_so)
