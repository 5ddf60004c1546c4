#!/usr/bin/env python3
"""Replicas of several GPUs, over the emulation of CUDA and NCCL (tests/cudasim): the references' tokens; however an engine ends, the group
starts anew, and the text goes on as if nothing had happened."""
from harness_cuda import *

SIM = os.path.join(BUILD, "sim/mpiserve")
STREAMED = {"prompt": "Once upon a time", "max_tokens": 60, "seed": 7, "temperature": 0.9, "top_p": 0.95, "top_k": 40,
            "presence_penalty": 0.5, "ignore_eos": True}


def group(tp, pp, *options, **env):
    return Job(*CUDA, "-tp", str(tp), "-pp", str(pp), *options, program=SIM, ranks=tp * pp, env={"CUDASIM_DEVICES": "4", **env})


def groups_of_gpus():
    for tp, pp in ((2, 1), (1, 2), (2, 2)):
        log = answers_of_a_group(SIM, tp, pp, CUDASIM_DEVICES="4")
        for n in range(4):
            equal(log.count(f"f32 on cuda, GPU-63756461-7369-6d2d-6465-766963652d3{n}"), int(n < tp * pp), f"engines with GPU {n}")


def all_new(job, old):
    until(lambda: len(job.engines()) == len(old) and not {p.pid for p in job.engines().values()} & {p.pid for p in old.values()},
          20 * SLOW, "all engines of the group are new")
    until(job.healthy, 10 * SLOW, "/health is 200 again")


def interrupted(job, wanted, end, says):
    """Something ends an engine behind some letters: the group starts anew, and the text is as without."""
    old = job.engines()
    equal(streamed_until(job, STREAMED, len(wanted) // 4, lambda: end(old)), (wanted, True))
    all_new(job, old)
    check(re.search(says, job.log()), job.log())


def any_end_of_an_engine_is_the_groups():
    with tempfile.TemporaryDirectory() as folder:
        fail, nccl = os.path.join(folder, "fail"), os.path.join(folder, "nccl")
        with group(2, 1, "--step-timeout", str(5 * SLOW), CUDASIM_FAIL=fail, CUDASIM_NCCL_FAIL=nccl) as job:
            wanted = text_of(job.post("/v1/completions", STREAMED))
            interrupted(job, wanted, lambda _: open(nccl, "w").close(),
                        r"step \d+: ncclRemoteError in \w+ \d+ of \d+ bytes of engine 0 \(rank 0\) to engine 1 \(rank 1\)")
            interrupted(job, wanted, lambda _: open(fail, "w").close(), r"step \d+: cudaErrorIllegalAddress in ")
            interrupted(job, wanted, lambda engines: engines[1].kill(), "killed from outside|signal 9|SIGKILL")
            interrupted(job, wanted, lambda engines: engines[1].kill(signal.SIGSTOP), r"(is not done|has not come) within [\d.]+ s")


run(groups_of_gpus, any_end_of_an_engine_is_the_groups)
