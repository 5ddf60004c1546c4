#!/usr/bin/env python3
"""Slots and the queue: full means 503 with Retry-After, at once; waiting is bounded; nothing is lost or run twice."""
from harness import *

SHORT = {"prompt": "Once", "ignore_eos": True, "max_tokens": 20, "temperature": 0}
LONG = dict(SHORT, max_tokens=900)
SLOWLY = {"MPISERVE_FAULT": "slow-step:20"}  # LONG takes 18 s


def refused(answer):
    equal(answer.status, 503, f"{answer}")
    check(int(answer.headers["Retry-After"]) >= 1, "Retry-After")
    check(answer.json["error"]["message"], "an error object")


def full_is_refused_at_once():
    with Job("--max-ongoing-requests", "1", "--max-queued-requests", "1", ranks=1, env=SLOWLY) as job:
        running = job.stream("/v1/completions", LONG)
        next(iter(running))
        queued, response = job.connect(), None
        queued.request("POST", "/v1/completions", json.dumps(SHORT), {"Content-Type": "application/json", **job.key()})
        until(lambda: job.metric("vllm:num_requests_waiting") == 1, 3 * SLOW, "one waits")
        started = time.monotonic()
        refused(job.post("/v1/completions", SHORT))
        check(time.monotonic() - started < 1 * SLOW, "the refusal takes too long")
        running.close()
        response = queued.getresponse()
        equal(response.status, 200, "the one that waited")
        equal(json.loads(response.read())["usage"]["completion_tokens"], 20)


def no_queue_at_all():
    with Job("--max-ongoing-requests", "1", "--max-queued-requests", "0", ranks=1, env=SLOWLY) as job:
        running = job.stream("/v1/completions", LONG)
        next(iter(running))
        refused(job.post("/v1/completions", SHORT))
        running.close()
        until(lambda: job.post("/v1/completions", SHORT).status == 200, 2 * SLOW, "served again")


def waiting_has_an_end():
    with Job("--max-ongoing-requests", "1", "--queue-timeout", "0.3", ranks=1, env=SLOWLY) as job:
        running = job.stream("/v1/completions", LONG)
        next(iter(running))
        started = time.monotonic()
        refused(job.post("/v1/completions", SHORT))
        waited = time.monotonic() - started
        check(0.25 < waited < 1.5 * SLOW, f"waited {waited:.2f} s instead of 0.3")
        running.close()


def a_flood_is_answered_completely():
    """Each of 120 requests gets its own answer or a refusal; what is refused may come again."""
    with Job("--max-ongoing-requests", "4", "--max-queued-requests", "16", ranks=4) as job:
        wanted = {i: None for i in range(6)}
        for i in wanted:
            wanted[i] = job.post("/v1/completions", dict(SHORT, prompt=f"Number {i}")).json["choices"][0]["text"]
        refusals = []

        def one(i):
            for _ in range(200):
                answer = job.post("/v1/completions", dict(SHORT, prompt=f"Number {i % 6}"))
                if answer.status == 200:
                    equal(answer.json["choices"][0]["text"], wanted[i % 6], f"request {i}")
                    return 1
                refused(answer)
                refusals.append(i)
                time.sleep(0.05)
            raise AssertionError(f"request {i} is refused again and again")
        equal(sum(together(120, one)), 120)
        print(f"# {len(refusals)} refusals")
        until(lambda: job.metric("vllm:num_requests_running") == 0, 2 * SLOW, "all slots are free")
        equal(job.metric("vllm:request_success_total"), 126, "requests run")


def work_is_spread_over_the_replicas():
    with Job("--compute", "f32", ranks=4) as job:
        together(24, lambda i: job.chat(f"What is {i} + {i}?"))
        tokens = "vllm:generation_tokens_total"  # leaders report them several times a second
        until(lambda: all(job.metric(tokens, engine=str(i)) for i in range(4)), 2 * SLOW, "every replica has worked")


run(full_is_refused_at_once, no_queue_at_all, waiting_has_an_end, a_flood_is_answered_completely,
    work_is_spread_over_the_replicas)
