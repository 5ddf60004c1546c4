#!/usr/bin/env python3
"""--engine null: everything but the maths, for measuring the rest. Answers are letters, and still survive a crash."""
import ctypes
import struct

from harness import *

BODY = {"prompt": "Once", "max_tokens": 40, "ignore_eos": True}


def completion(job, body):
    answer = job.post("/v1/completions", body)
    equal(answer.status, 200, str(answer))
    return answer.json


def text(answer):
    return answer["choices"][0]["text"]


def answers_without_maths():
    with Job("--engine", "null", ranks=2) as job:
        equal(job.get("/v1/topology").json["compute"], "null")
        first = completion(job, BODY)
        equal(first["usage"]["completion_tokens"], 40)
        check(len(text(first)) == 40 and text(first).isascii(), text(first))
        equal(text(completion(job, dict(BODY, temperature=1, seed=7))), text(first), "position alone decides")
        logprobs = completion(job, dict(BODY, logprobs=2))["choices"][0]["logprobs"]
        equal((len(logprobs["token_logprobs"]), len(logprobs["top_logprobs"][0])), (40, 2))
        equal(job.chat("What is 17 + 25?", max_tokens=5)["usage"]["completion_tokens"], 5)


def a_crash_changes_nothing():
    with Job("--engine", "null", "--null-step-us", "20000", ranks=1) as job:
        wanted = text(completion(job, BODY))
        events = iter(job.stream("/v1/completions", dict(BODY)))
        pieces = [next(events)["choices"][0]["text"]]
        job.engines()[0].kill()
        pieces += [c["text"] for e in events for c in e.get("choices", [])]
        equal("".join(pieces), wanted)


def a_step_takes_as_long_as_asked():
    with Job("--engine", "null", "--null-step-us", "50000", ranks=1) as job:
        started = time.monotonic()
        completion(job, dict(BODY, max_tokens=4))
        check(time.monotonic() - started >= 0.2, "four steps of 50 ms")


def only_with_the_null_engine():
    done = subprocess.run([PROGRAM, "up", "--null-step-us", "5"], capture_output=True, text=True)
    equal(done.returncode, 2)
    check("--null-step-us" in done.stderr and "--engine null" in done.stderr, done.stderr)


def slice_us(pid):
    """How long the kernel lets the main thread of a process compute at a time; 0 where it does not tell (before Linux 6.12, other
    policies)."""
    attr = ctypes.create_string_buffer(56)
    if ctypes.CDLL(None).syscall(ctypes.c_long(315), pid, attr, len(attr), 0) < 0:  # sched_getattr of x86-64
        return 0
    size, policy, flags, nice, priority, runtime = struct.unpack_from("IIQiIQ", attr)
    return runtime / 1000 if policy == 0 else 0


def who_relays_has_short_slices():
    usual = slice_us(0) if os.uname().machine == "x86_64" else 0
    if usual <= 100:
        return
    for engine, wanted in (("null", 100), ("cpu", usual)):
        with Job("--engine", engine, ranks=2) as job:
            equal([slice_us(p.pid) for p in job.agents().values()], [100, 100], "agents")
            equal([slice_us(p.pid) for p in job.engines().values()], [wanted, wanted], f"engines: {engine}")


run(answers_without_maths, who_relays_has_short_slices, a_crash_changes_nothing, a_step_takes_as_long_as_asked, only_with_the_null_engine)
