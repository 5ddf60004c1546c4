#!/usr/bin/env python3
"""Drain: new requests are refused, running ones finish, the exit status is 0."""
import itertools

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


def streams_at(job, n, then, tokens=60):
    """n streams at once; then() as soon as the first has begun on each replica's share. (finished, error, [DONE]) of each."""
    begun = threading.Event()

    def one(i):
        if i == n:
            check(begun.wait(30 * SLOW), "streams begin")
            until(lambda: job.get("/load", key=False).json["server_load"] == n, 10 * SLOW, f"{n} requests are there")
            return then()
        connection, response = job.send("POST", "/v1/completions", {
            "prompt": "Once", "ignore_eos": True, "max_tokens": tokens, "seed": i, "stream": True})
        if response.status != 200:
            return 0, json.loads(response.read())["error"], True
        stream = Stream(connection, response)
        events = iter(stream)
        first = next(events)
        begun.set()
        finished, error = finish(itertools.chain([first], events))
        return finished, error, stream.done

    return together(n + 1, one)[:n]


def nothing_is_lost_under_64_streams():
    ways = {"Ctrl-C": lambda job: job.signal(signal.SIGINT), "USR1": lambda job: job.mpirun().kill(signal.SIGUSR1),
            "POST /admin/drain": lambda job: equal(job.post("/admin/drain", {}).status, 202)}
    for name, drain in ways.items():
        with Job("--enable-admin", ranks=2, env=SLOWLY) as job:
            equal(streams_at(job, 64, lambda: drain(job)), [(1, None, True)] * 64, name)
            equal(job.wait(), 0, name)
            equal(job.leftovers(), [])


def who_was_let_in_to_wait_is_served():
    for sig in (signal.SIGINT, signal.SIGUSR1):  # USR1 reaches every rank, not only the one where they wait
        with Job("--max-num-seqs", "8", ranks=2, env=SLOWLY) as job:
            drain = lambda: job.signal(sig) if sig == signal.SIGINT else job.mpirun().kill(sig)
            started = time.monotonic()
            equal(streams_at(job, 64, drain), [(1, None, True)] * 64, f"16 slots, {sig.name}")
            equal(job.wait(), 0)
            check(time.monotonic() - started < 15 * SLOW, "they did not wait for the end of the time")


def who_is_not_served_in_time_is_told():
    with Job("--graceful-shutdown-timeout", "1", "--max-num-seqs", "8", ranks=2, env=SLOWLY) as job:
        for p in job.engines().values():
            p.kill(signal.SIGSTOP)

        def one(i):
            if i == 64:
                until(lambda: job.get("/load", key=False).json["server_load"] == 64, 10 * SLOW, "64 requests are there")
                job.signal(signal.SIGINT)
                return 503
            answer = job.post("/v1/completions", {"prompt": "Once", "max_tokens": 60, "stream": i % 2 == 0})
            check("error" in answer.json and int(answer.headers["Retry-After"]) >= 1, "an error object")
            return answer.status
        started = time.monotonic()
        equal(together(65, one), [503] * 65, "neither those that ran nor those that waited")
        job.wait()
        check(time.monotonic() - started < 8 * SLOW, "the end takes too long")


def the_time_is_over_in_the_middle_of_64_streams():
    with Job("--graceful-shutdown-timeout", "0.5", ranks=2, env={"MPISERVE_FAULT": "slow-step:50"}) as job:
        for finished, error, done in streams_at(job, 64, lambda: job.signal(signal.SIGINT), tokens=200):
            check(finished == 0 and error and error["code"] == 503 and done, f"an error event: {finished, error, done}")
        equal(job.wait(), 0)
        equal(job.leftovers(), [])


def a_second_signal_ends_at_once():
    with Job(ranks=2, env={"MPISERVE_FAULT": "slow-step:50"}) as job:
        def twice():
            job.signal(signal.SIGINT)
            until(lambda: not job.healthy(), 2 * SLOW, "it drains")
            job.signal(signal.SIGINT)
            return time.monotonic()
        together_at = []
        for finished, error, done in streams_at(job, 64, lambda: together_at.append(twice()), tokens=200):
            check(finished == 0 and error and done, f"an error event: {finished, error, done}")
        job.wait()
        check(time.monotonic() - together_at[0] < 3 * SLOW, "the end takes too long")
        equal(job.leftovers(), [])


run(nothing_is_lost_under_64_streams, who_was_let_in_to_wait_is_served, who_is_not_served_in_time_is_told,
    the_time_is_over_in_the_middle_of_64_streams, a_second_signal_ends_at_once, who_has_the_key_may_drain, running_requests_finish, health_tells_the_load_balancer,
    a_drain_that_takes_too_long_ends_with_an_error_event, usr1_to_mpirun_drains_too)
