#!/usr/bin/env python3
"""Drain: new requests are refused, running ones finish, the exit status is 0."""
from harness import *

LONG = {"prompt": "Once", "ignore_eos": True, "max_tokens": 150, "n": 4, "temperature": 1, "seed": 3}
SLOWLY = {"MPISERVE_FAULT": "slow-step:10"}  # an answer takes 1.5 s


def finish(stream):
    """Reads to the end; the number of choices that finished, and whether an error came."""
    finished, error = 0, None
    for event in stream:
        error = error or event.get("error")
        finished += sum(c["finish_reason"] is not None for c in event.get("choices", []))
    return finished, error


def running_requests_finish():
    for sig in (signal.SIGINT, signal.SIGTERM):
        with Job(ranks=2, env=SLOWLY) as job:
            stream = job.stream("/v1/completions", LONG)
            events = iter(stream)
            next(events)
            job.signal(sig)

            def refused():
                try:
                    answer = job.post("/v1/completions", {"prompt": "x", "max_tokens": 1}, timeout=5)
                except OSError:
                    return True  # the port is closed already
                if answer.status == 200:
                    return False  # it came before the drain began
                equal(answer.status, 503)
                check(int(answer.headers["Retry-After"]) >= 1, "Retry-After")
                check("error" in answer.json, "an error object")
                return True
            until(refused, 2 * SLOW, "new requests are refused")
            finished, error = finish(events)
            equal((finished, error, stream.done), (4, None, True), f"the running stream after {sig.name}")
            equal(job.wait(), 0)
            equal(job.leftovers(), [])


def health_tells_the_load_balancer():
    with Job("--graceful-shutdown-timeout", "10", ranks=1, env=SLOWLY) as job:
        check(job.healthy(), "/health before")
        stream = iter(job.stream("/v1/completions", LONG))
        next(stream)
        for p in job.engines().values():
            p.kill(signal.SIGSTOP)  # so that the drain has something to wait for
        job.signal(signal.SIGINT)
        until(lambda: not job.healthy(), 2 * SLOW, "/health is not 200 when draining")
        for p in job.engines().values():
            p.kill(signal.SIGCONT)
        finished, error = finish(stream)
        equal((finished, error), (4, None))
        equal(job.wait(), 0)


def a_drain_that_takes_too_long_ends_with_an_error_event():
    with Job("--graceful-shutdown-timeout", "1", ranks=1, env=SLOWLY) as job:
        engines = job.engines().values()
        stream = job.stream("/v1/completions", LONG)
        events = iter(stream)
        next(events)
        for p in engines:
            p.kill(signal.SIGSTOP)
        started = time.monotonic()
        job.signal(signal.SIGINT)
        finished, error = finish(events)
        check(finished < 4 and error, "the stream ends with an error event")
        check(stream.done, "[DONE] behind the error")
        job.wait()
        check(time.monotonic() - started < 8 * SLOW, "the end takes too long")
        equal(job.leftovers(), [])


def who_waits_for_a_slot_is_sent_away_at_once():
    with Job("--max-ongoing-requests", "1", ranks=1, env=SLOWLY) as job:
        running = job.stream("/v1/completions", LONG)
        next(iter(running))

        def work(i):
            if i == 0:
                answer = job.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
                return answer, time.monotonic()
            until(lambda: job.metric("vllm:num_requests_waiting") == 1, 5 * SLOW, "one waits")
            job.signal(signal.SIGINT)
            return time.monotonic()
        (answer, answered), started = together(2, work)
        equal(answer.status, 503, f"{answer}")
        check("shutting down" in answer.json["error"]["message"], answer)
        check(int(answer.headers["Retry-After"]) >= 1, "Retry-After")
        check(answered - started < 1 * SLOW, f"it waited {answered - started:.1f} s")
        equal(finish(iter(running)), (4, None))
        equal(job.wait(), 0)


def usr1_to_mpirun_drains_too():
    with Job(ranks=2, env=SLOWLY) as job:
        stream = job.stream("/v1/completions", LONG)
        events = iter(stream)
        next(events)
        job.mpirun().kill(signal.SIGUSR1)
        equal(finish(events), (4, None))
        equal(job.wait(), 0)
        equal(job.leftovers(), [])


def who_has_the_key_may_drain():
    with Job(ranks=2) as job:
        answer = job.post("/admin/drain", {})
        equal((answer.status, answer.json["error"]["code"]), (404, 404), "not without --enable-admin")
        equal(job.chat("What is 17 + 25?")["choices"][0]["message"]["content"], "17 + 25 = 42")
    with Job("--enable-admin", ranks=2, env=SLOWLY) as job:
        equal(job.post("/admin/drain", {}, key=False).status, 401, "without the key")
        equal(job.get("/admin/drain").status, 405)
        stream = job.stream("/v1/completions", LONG)
        events = iter(stream)
        next(events)
        equal(job.post("/admin/drain", {}).status, 202)
        finished, error = finish(events)
        equal((finished, error, stream.done), (4, None, True), "the running stream")
        equal(job.wait(), 0)
        equal(job.leftovers(), [])


run(who_has_the_key_may_drain, who_waits_for_a_slot_is_sent_away_at_once, running_requests_finish,
    health_tells_the_load_balancer, a_drain_that_takes_too_long_ends_with_an_error_event, usr1_to_mpirun_drains_too)
