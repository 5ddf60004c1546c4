#!/usr/bin/env python3
"""Routers: each serves; a session stays at its replica while it can, and leaves it when it is full or given up."""
from harness import *

SHORT = {"prompt": "Once", "ignore_eos": True, "max_tokens": 3, "temperature": 0}
LONG = dict(SHORT, max_tokens=900)
SLOWLY = {"MPISERVE_FAULT": "slow-step:20"}  # LONG takes 18 s
ROUTERS = ("power_of_two", "least_loaded", "round_robin", "session", "prefix_aware", "random")


def served(job, replicas):
    """Requests that each replica has begun to answer."""
    name = "mpiserve_dispatch_to_first_chunk_seconds_count"
    return [int(job.metric(name, engine=str(i)) or 0) for i in range(replicas)]


def complete(job, body=SHORT, session=None, headers=None, **fields):
    """One request; returns the replica that served it, when nothing else runs."""
    before = served(job, job.ranks)
    fields.update({"session_id": session} if session else {})
    answer = job.post("/v1/completions", dict(body, **fields), headers=headers)
    equal(answer.status, 200, f"{answer}")
    after = served(job, job.ranks)
    moved = [i for i in range(job.ranks) if after[i] != before[i]]
    equal(len(moved), 1, f"replicas that served one request: {before} {after}")
    return moved[0]


def routed(*options, ranks, router="session", **more):
    job = Job("--router", router, *options, ranks=ranks, **more)
    job.ranks = ranks
    return job


def a_session_stays_however_it_is_named():
    with routed(ranks=4) as job:
        homes = set()
        for name in (f"chat {i}" for i in range(8)):
            ways = [{"session": name}, {"headers": {"X-Session-ID": name}}, {"headers": {"x-session-id": name}},
                    {"user": name}, {"session": name, "headers": {"X-Session-Id": "another"}, "user": "a third"},
                    {"headers": {"X-Session-ID": name}, "user": "another"}, {"session": name}]
            found = [complete(job, **way) for way in ways]
            equal(found, [found[0]] * len(ways), f"replicas of {name}")
            homes.add(found[0])
        check(len(homes) > 1, f"all sessions are on {homes}")
        equal({complete(job) for _ in range(16)}, {0}, "without a session: the own rank's replica, since it is idle")


def a_full_replica_sends_its_session_elsewhere_for_a_while():
    with routed("--max-ongoing-requests", "1", ranks=2, env=SLOWLY) as job:
        home = complete(job, session="s")
        running = job.stream("/v1/completions", dict(LONG, session_id="s"))
        next(iter(running))
        equal(complete(job, session="s"), 1 - home, "while it is full")
        running.close()
        until(lambda: job.metric("vllm:num_requests_running") == 0, 5 * SLOW, "its slot is free")
        equal(complete(job, session="s"), home, "afterwards")


def a_replica_that_is_given_up_loses_its_sessions():
    with routed(ranks=3) as job:
        homes = {name: complete(job, session=name) for name in (f"chat {i}" for i in range(12))}
        gone = homes["chat 0"]

        def broken():
            engine = job.engines().get(gone)
            if engine:
                engine.kill()
            return job.get("/v1/topology").json["replicas"][gone]["state"] == "broken"
        until(broken, 40 * SLOW, "the replica is given up")
        for name, home in homes.items():
            now = [complete(job, session=name) for _ in range(2)]
            check(now[0] != gone and now[0] == now[1], f"{name} is at {now}, {gone} is given up")
            check(home == gone or now[0] == home, f"{name} went from {home} to {now[0]}, {gone} is given up")


def round_robin_takes_turns():
    with routed(ranks=3, router="round_robin") as job:
        first = complete(job)
        equal([complete(job) for _ in range(6)], [(first + 1 + i) % 3 for i in range(6)])


def every_router_serves_a_flood():
    for router in ROUTERS:
        with routed("--max-ongoing-requests", "3", ranks=2, router=router) as job:
            body = dict(SHORT, max_tokens=20)
            texts = together(24, lambda i: job.post("/v1/completions", dict(body, user=f"user {i % 5}")).json)
            equal(len({t["choices"][0]["text"] for t in texts}), 1, router)
            equal(sum(served(job, 2)), 24, router)
            job.signal(signal.SIGTERM)
            equal(job.wait(), 0, router)


def a_prompt_goes_where_it_is_cached():
    """Rank 0's replica is the first choice of whatever is new. A prompt that another one read goes there until that one loses it."""
    story = "Once there was a pig that lived in a cold storm. " * 8
    with routed(ranks=2, router="prefix_aware", env=SLOWLY) as job:
        running = job.stream("/v1/completions", LONG)
        next(iter(running))
        equal(complete(job, prompt=story), 1, "while rank 0's is busy")
        running.close()
        until(lambda: job.metric("vllm:num_requests_running") == 0, 5 * SLOW, "rank 0's is idle")
        equal([complete(job, prompt=story) for _ in range(3)], [1] * 3, "where it is cached")
        equal(complete(job), 0, "another prompt")
        job.engines()[1].kill()
        until(lambda: job.metric("mpiserve_engine_starts_total", engine="1") == 2
              and job.metric("mpiserve_replica_healthy", engine="1") == 1, 10 * SLOW, "a new engine")
        equal(complete(job, prompt=story), 0, "its cache is gone")


def prefix_aware_needs_a_cache():
    with Job("--router", "prefix_aware", "--no-enable-prefix-caching", ranks=1, wait=False) as job:
        equal(job.wait(), 2, "exit status")
        check("--router: prefix_aware looks for cached prompts" in job.output(), job.output())


def unknown_routers_are_refused():
    with Job("--router", "nearest", ranks=2, wait=False) as job:
        equal(job.wait(), 2, "exit status")
        check("--router: `nearest` is not in the range power_of_two|least_loaded|round_robin|session|prefix_aware|random"
              in job.output(), job.output())


run(a_session_stays_however_it_is_named, a_full_replica_sends_its_session_elsewhere_for_a_while,
    a_replica_that_is_given_up_loses_its_sessions, round_robin_takes_turns, every_router_serves_a_flood,
    a_prompt_goes_where_it_is_cached, prefix_aware_needs_a_cache, unknown_routers_are_refused)
