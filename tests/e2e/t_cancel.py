#!/usr/bin/env python3
"""A client that leaves: its slot, rows and blocks are free within a second."""
from harness import *

LONG = {"prompt": "Once", "ignore_eos": True, "max_tokens": 900, "n": 4, "temperature": 1}
SLOWLY = {"MPISERVE_FAULT": "slow-step:20"}  # an answer takes 18 s
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"


def idle(job):
    return job.metric(RUNNING) == 0 and job.metric(WAITING) == 0 and job.metric("vllm:kv_cache_usage_perc") == 0


def leaves_while(job, start):
    leave = start()
    until(lambda: not idle(job), 5 * SLOW, "the request runs")
    leave()
    until(lambda: idle(job), 1 * SLOW, "slot, rows and blocks are free again")


def in_a_stream():
    def start():
        stream = JOB.stream("/v1/completions", LONG)
        next(iter(stream))
        return stream.close
    leaves_while(JOB, start)


def while_waiting_for_a_whole_answer():
    def start():
        connection = JOB.connect()
        connection.request("POST", "/v1/completions", json.dumps(LONG),
                           {"Content-Type": "application/json", **JOB.key()})
        return connection.close
    leaves_while(JOB, start)


def many_at_once():
    def start():
        streams = [JOB.stream("/v1/completions", dict(LONG, n=2)) for _ in range(8)]
        return lambda: [s.close() for s in streams]
    leaves_while(JOB, start)


def the_slot_serves_the_next():
    with Job("--max-ongoing-requests", "1", ranks=1, env=SLOWLY) as job:
        for _ in range(5):
            stream = job.stream("/v1/completions", LONG)
            next(iter(stream))
            stream.close()
            started = time.monotonic()
            job.chat("What is MPI?", max_completion_tokens=4)
            check(time.monotonic() - started < 1.5 * SLOW, "the next request waits too long")


def while_queued():
    with Job("--max-ongoing-requests", "1", ranks=1, env=SLOWLY) as job:
        first = job.stream("/v1/completions", LONG)
        next(iter(first))
        second = job.connect()
        second.request("POST", "/v1/completions", json.dumps(LONG), {"Content-Type": "application/json", **job.key()})
        until(lambda: job.metric(WAITING) == 1, 3 * SLOW, "the second waits")
        second.close()
        until(lambda: job.metric(WAITING) == 0, 1 * SLOW, "it left the queue")
        first.close()
        until(lambda: idle(job), 1 * SLOW, "all is free")


with Job(ranks=2, env=SLOWLY) as JOB:
    run(in_a_stream, while_waiting_for_a_whole_answer, many_at_once, the_slot_serves_the_next, while_queued)
