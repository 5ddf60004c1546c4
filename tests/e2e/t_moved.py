#!/usr/bin/env python3
"""A replica is given up: its requests go on elsewhere, from where they were."""
from harness import *

OPTIONS = ("--compute", "f32", "--max-num-seqs", "2")
LONG = {"prompt": "Once upon a time", "temperature": 0, "ignore_eos": True, "max_tokens": 900}


def replicas(job):
    return {r["replica"]: r for r in job.get("/v1/topology").json["replicas"]}


def give_up(job, rank):
    """Its engine is killed as often as it comes back."""
    def broken():
        engine = job.engines().get(rank)
        if engine:
            engine.kill()
        return replicas(job)[rank]["state"] == "broken"
    until(broken, 40 * SLOW, f"replica {rank} is given up")


def two_choices():
    """A request whose first choice is the longer one, and its answer."""
    with Job(*OPTIONS, ranks=1) as job:
        for seed in range(0, 400, 2):
            body = {"prompt": "Tell me a story about", "temperature": 1.0, "seed": seed, "n": 2, "max_tokens": 150}
            answer = job.post("/v1/completions", dict(body, return_token_ids=True))
            equal(answer.status, 200, f"{answer}")
            n = [len(c["token_ids"]) for c in answer.json["choices"]]
            if 150 > n[0] > n[1] + 10 > 40:
                return body, [c["text"] for c in answer.json["choices"]]
    check(False, "no such seed")


def choices_that_end_in_another_order_there():
    """The first choice ends here while the second waits for a row. There, both start together and the first ends last."""
    body, wanted = two_choices()
    with Job(*OPTIONS, ranks=2, env={"MPISERVE_FAULT": "slow-step:10"}) as job:
        others = [job.stream("/v1/completions", LONG) for _ in range(2)]
        until(lambda: all(r["running"] == 1 for r in replicas(job).values()), 10 * SLOW, "each has one")

        def work(i):
            if i == 0:
                return job.post("/v1/completions", body)
            rank = until(lambda: [k for k, r in replicas(job).items() if r["waiting"]], 10 * SLOW, "one waits")[0]
            until(lambda: not replicas(job)[rank]["waiting"], 10 * SLOW, "the first choice has ended")
            for o in others:
                o.close()
            give_up(job, rank)
        answer = together(2, work)[0]
        equal(answer.status, 200, f"{answer}")
        equal([c["text"] for c in answer.json["choices"]], wanted)
        job.signal(signal.SIGTERM)
        equal(job.wait(10 * SLOW), 0)


def nobody_is_left():
    """Who runs and who waits gets a 503 at once, and so does everybody after them."""
    with Job(*OPTIONS, "--max-ongoing-requests", "1", ranks=1, env={"MPISERVE_FAULT": "slow-step:10"}) as job:
        def work(i):
            if i < 2:
                return job.post("/v1/completions", LONG), time.monotonic()
            until(lambda: job.metric("vllm:num_requests_waiting") == 1, 5 * SLOW, "one runs, one waits")
            give_up(job, 0)
            return time.monotonic()
        *answers, given_up = together(3, work)
        for answer, when in answers:
            equal(answer.status, 503, f"{answer}")
            check(int(answer.headers["Retry-After"]) >= 1, "Retry-After")
            check(when - given_up < 2 * SLOW, f"answered {when - given_up:.1f} s after the end")
        answer = job.post("/v1/completions", LONG)
        equal(answer.status, 503, f"{answer}")
        check(int(answer.headers["Retry-After"]) >= 1, "Retry-After")
        check(not job.healthy(), "/health")
        job.signal(signal.SIGTERM)
        equal(job.wait(10 * SLOW), 0)


def engines_that_cannot_load_end_the_start():
    with Job(*OPTIONS, ranks=2, env={"MPISERVE_FAULT": "crash-load:0"}, wait=False) as job:
        check(job.wait(30 * SLOW) != 0, "the exit status of a start that failed")
        check("died too often" in job.output() and "did not start" in job.output(), job.output())


run(nobody_is_left, engines_that_cannot_load_end_the_start, choices_that_end_in_another_order_there)
