#!/usr/bin/env python3
"""Reservations: a client holds a slot, uses it once or gives it back; whatever happens, no slot is lost and none used twice."""
import random
import socket

from harness import *

SHORT = {"prompt": "Once", "ignore_eos": True, "max_tokens": 5, "temperature": 0}
LONG = dict(SHORT, max_tokens=900)
SLOWLY = {"MPISERVE_FAULT": "slow-step:20"}  # LONG takes 18 s
ONE_SLOT = ("--max-ongoing-requests", "1")


def reserve(job, body=None):
    answer = job.post("/v1/reservations", body)
    equal(answer.status, 201, f"{answer}")
    equal(answer.json["state"], "held")
    return answer.json


def use(job, r, body=SHORT, path="/v1/completions", headers=None):
    return job.post(path, body, headers=dict({"X-Reservation": r if isinstance(r, str) else r["id"]}, **(headers or {})))


def error(answer, status, code):
    equal((answer.status, answer.json["error"]["code"]), (status, code), f"{answer}")
    check(answer.json["error"]["message"] and answer.json["error"]["type"], "an error object")


def refused(answer):
    equal(answer.status, 503, f"{answer}")
    check(int(answer.headers["Retry-After"]) >= 1 and answer.json["error"]["message"], "Retry-After, an error object")


def state(job, r):
    return job.get("/v1/reservations/" + r["id"]).json["state"]


def release(job, r):
    return job.call("DELETE", "/v1/reservations/" + r["id"])


def no_slot_is_left(job, seconds=6 * SLOW):
    """All slots are free, at the leaders and at the ingress, and every grant had one end."""
    until(lambda: job.metric("mpiserve_slots_in_use") == 0 and job.metric("mpiserve_reserved_slots_active") == 0,
          seconds, "all slots are free")
    grants = job.metric("mpiserve_reservations_granted_total")
    ends = job.metric("mpiserve_selections_undispatched_total") + job.metric("mpiserve_selection_to_dispatch_seconds_count")
    equal(ends, grants, "ends of reservations")
    equal(job.metric("mpiserve_slot_dispatches_total"), job.metric("mpiserve_slot_finishes_total"), "ends of requests")


def is_good_for_one_request():
    with Job(ranks=2) as job:
        r = reserve(job)
        equal(len(r["id"]), 32)
        equal({k: r[k] for k in ("object", "deployment", "node_rank", "num_ongoing")},
              {"object": "reservation", "deployment": "demo-model", "node_rank": 0, "num_ongoing": 1})
        check(r["replica"] in (0, 1) and r["rank"] == r["replica"] == r["local_rank"], f"{r}")
        check(0 < r["expires_in_ms"] <= 24000, f"four fifths of 30 s: {r}")
        equal(job.metric("mpiserve_reserved_slots_active", replica=str(r["replica"])), 1)
        equal(state(job, r), "held")
        answer = use(job, r)
        equal((answer.status, answer.json["usage"]["completion_tokens"]), (200, 5), f"{answer}")
        until(lambda: job.metric("mpiserve_slot_dispatches_total", engine=str(r["replica"])) == 1, 6 * SLOW, "it ran there")
        again = use(job, r)
        error(again, 409, "reservation_used")
        equal(again.headers["x-should-retry"], "false")
        equal((state(job, r), release(job, r).json["state"]), ("used", "used"))

        chat = {"messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0}
        r = reserve(job, {"model": "demo-model"})
        answer = use(job, r, chat, "/v1/chat/completions")
        equal(content(answer.json), "17 + 25 = 42")
        error(use(job, r, chat, "/v1/chat/completions"), 409, "reservation_used")
        stream = job.stream("/v1/completions", SHORT, headers={"X-Reservation": reserve(job)["id"]})
        equal((sum(1 for _ in stream) > 2, stream.done), (True, True))
        equal(job.metric("mpiserve_selection_to_dispatch_seconds_count"), 3)
        no_slot_is_left(job)


def many_use_it_at_once():
    with Job(ranks=2) as job:
        r = reserve(job)
        statuses = sorted(together(12, lambda i: use(job, r).status))
        equal(statuses, [200] + [409] * 11)
        no_slot_is_left(job)


def is_released_as_often_as_one_likes():
    with Job(*ONE_SLOT, ranks=1) as job:
        for _ in range(3):
            r = reserve(job)
            refused(job.post("/v1/reservations", None))
            for _ in range(2):
                answer = release(job, r)
                equal((answer.status, answer.json["state"]), (200, "released"))
            error(use(job, r), 410, "reservation_released")
        equal(job.metric("mpiserve_reservations_refused_total", reason="full"), 3)
        equal(job.metric("mpiserve_selections_undispatched_total", reason="released"), 3)
        no_slot_is_left(job)


def expires():
    with Job(*ONE_SLOT, "--reservation-lease", "1", ranks=1) as job:
        for _ in range(3):
            r = reserve(job)
            check(r["expires_in_ms"] <= 800, f"{r}")
            equal(job.post("/v1/completions", SHORT).status, 200, "who waited has the slot afterwards")
            equal(state(job, r), "expired")
            error(use(job, r), 410, "reservation_expired")
            equal(release(job, r).json["state"], "expired")
        equal(job.metric("mpiserve_selections_undispatched_total", reason="expired"), 3)
        no_slot_is_left(job)


def is_served_while_others_wait():
    with Job(*ONE_SLOT, "--max-queued-requests", "3", "--reservation-lease", "300", "--slot-lease", "0.2", ranks=1,
             env=SLOWLY) as job:
        r = reserve(job)
        waiting = [job.connect() for _ in range(3)]
        for n, c in enumerate(waiting, 1):
            c.request("POST", "/v1/completions", json.dumps(SHORT), {"Content-Type": "application/json", **job.key()})
            until(lambda n=n: job.metric("mpiserve_queue_length") == n, 6 * SLOW, f"{n} wait")
        refused(job.post("/v1/completions", SHORT))  # full: the slot that is held counts
        refused(job.post("/v1/reservations", {}))
        equal(job.metric("mpiserve_reservations_refused_total", reason="queue"), 1)
        time.sleep(1)  # the lease of those that are routed is over by far
        stream = job.stream("/v1/completions", LONG, headers={"X-Reservation": r["id"]})
        next(iter(stream))  # it runs
        equal(job.metric("mpiserve_queue_length"), 3, "the others wait still")
        equal((job.metric("mpiserve_slots_reaped_total"), job.metric("mpiserve_requests_requeued_total")), (0, 0), "its own slot")
        stream.close()
        for c in waiting:
            response = c.getresponse()
            equal((response.status, json.loads(response.read())["usage"]["completion_tokens"]), (200, 5))
        no_slot_is_left(job)


def a_bad_request_does_not_use_it():
    with Job("--max-model-len", "100", ranks=1) as job:
        r = reserve(job)
        for body in (dict(SHORT, temperature=9), {"prompt": 1}, dict(SHORT, prompt=["a", "b"]), b"{", b"", [],
                     dict(SHORT, prompt="word " * 200), dict(SHORT, priority=1.5)):
            answer = use(job, r, body)
            equal((answer.status, state(job, r)), (400, "held"), f"{body!r:.60}: {answer}")
        equal(use(job, r, dict(SHORT, model="other")).status, 404)
        equal(use(job, r, SHORT, headers={"Content-Type": "text/plain"}).status, 400)
        equal(job.get("/v1/completions", headers={"X-Reservation": r["id"]}).status, 405)
        equal(job.post("/v1/completions", SHORT, headers={"X-Reservation": r["id"]}, key=False).status, 401)
        equal(state(job, r), "held")
        equal(use(job, r).status, 200)
        for body, status in (([], 400), ({"model": 1}, 400), ({"count": 2}, 400), (b"{", 400), ({"model": "other"}, 404)):
            equal(job.post("/v1/reservations", body).status, status, f"{body!r}")
        release(job, reserve(job, {"count": 1, "other": []}))
        no_slot_is_left(job)


def a_drain_honours_it():
    with Job(ranks=2) as job:
        used, released = reserve(job), reserve(job)
        job.signal(signal.SIGINT)
        until(lambda: not job.healthy(), 6 * SLOW, "it drains")
        refused(job.post("/v1/reservations", {}))
        refused(job.post("/v1/completions", SHORT))
        error(use(job, "0" * 32), 404, "reservation_not_found")
        equal(use(job, used, dict(SHORT, temperature=9)).status, 400)
        equal(job.metric("mpiserve_reservations_refused_total", reason="draining"), 1)
        answer = use(job, used, dict(SHORT, max_tokens=50))
        equal((answer.status, answer.json["usage"]["completion_tokens"]), (200, 50), f"{answer}")
        check(job.up.poll() is None, "it waits for the other one")
        equal(release(job, released).json["state"], "released")
        equal(job.wait(), 0)
        equal(job.leftovers(), [])


def a_drain_does_not_wait_longer_than_the_lease():
    for options in (("--reservation-lease", "2"), ("--graceful-shutdown-timeout", "2")):
        with Job(*options, ranks=2) as job:
            for _ in range(4):
                reserve(job)
            started = time.monotonic()
            job.signal(signal.SIGINT)
            equal(job.wait(), 0)
            check(time.monotonic() - started > 1.4, "it did not wait")
            check(time.monotonic() - started < 10 * SLOW, "it waits too long")
            equal(job.leftovers(), [])


def an_engine_may_die_meanwhile():
    with Job(*ONE_SLOT, "--reservation-lease", "300", ranks=1) as job:
        r = reserve(job)
        job.engines()[0].kill()
        answer = use(job, r, dict(SHORT, max_tokens=30))
        equal((answer.status, answer.json["usage"]["completion_tokens"]), (200, 30), f"{answer}")
        equal(state(job, r), "used")
        no_slot_is_left(job)


def a_replica_may_be_given_up_meanwhile():
    """Its leader refuses the dispatch; the request goes to another."""
    with Job("--reservation-lease", "300", ranks=2) as job:
        held = [reserve(job) for _ in range(8)]
        lost = [r for r in held if r["replica"] == 1]
        check(lost, "none of 8 is on replica 1")
        def broken():
            engine = job.engines().get(1)
            if engine:
                engine.kill()
            return job.get("/v1/topology").json["replicas"][1]["state"] == "broken"
        until(broken, 100 * SLOW, "replica 1 is out of service")
        answer = use(job, lost[0])
        equal((answer.status, answer.json["usage"]["completion_tokens"]), (200, 5), f"{answer}")
        until(lambda: job.metric("mpiserve_requests_requeued_total") == 1, 6 * SLOW, "it was refused there")
        error(use(job, lost[0]), 409, "reservation_used")
        for r in held:
            release(job, r)
        no_slot_is_left(job)


def hostile_ids():
    with Job(*ONE_SLOT, ranks=1) as job:
        r = reserve(job)
        known = r["id"]
        ids = ["0" * 32, "f" * 32, known[:-1], known + "0", known[:16].upper() + "A" * 16, " ", "-1", "0x" + known[2:],
               known[:31] + "g", "../" + known, "%s%n%s%n", "'; --",
               "a" * 4000, known[::-1], known[:16] + "\t" + known[16:], "\xe9" * 32]
        for i in ids:
            error(use(job, i), 404, "reservation_not_found")
        for i in (known[:-1], known + "0", "x" * 300, "..", "%00", "%2e%2e%2f", known + "/", known + "%20", "a%0d%0ab", "%ff" * 20):
            for method in ("GET", "DELETE"):
                answer = job.call(method, "/v1/reservations/" + i)
                error(answer, 404, "reservation_not_found")
        for method, path, allow in (("DELETE", "/v1/reservations", "POST"), ("GET", "/v1/reservations", "POST"),
                                    ("POST", "/v1/reservations/" + known, "DELETE"), ("PUT", "/v1/reservations/" + known, "GET"),
                                    ("DELETE", "/v1/models", "GET"), ("DELETE", "/v1/completions", "POST")):
            answer = job.call(method, path)
            equal(answer.status, 405, f"{method} {path}")
            check(allow in answer.headers["Allow"], f"{method} {path}: {answer.headers['Allow']}")
        for method, path in (("POST", "/v1/reservations"), ("GET", "/v1/reservations/" + known), ("DELETE", "/v1/reservations/" + known)):
            equal(job.call(method, path, key=False).status, 401, "without the key")
        equal(state(job, r), "held", "after all that")
        equal(use(job, known).status, 200)
        no_slot_is_left(job)


def clients_that_leave_hold_nothing():
    """In the middle of asking for one, and in the middle of using it."""
    with Job("--max-ongoing-requests", "8", "--reservation-lease", "2", ranks=2, env=SLOWLY) as job:
        key = "".join(f"{k}: {v}\r\n" for k, v in job.key().items())
        for i in range(40):
            with socket.create_connection(("127.0.0.1", job.endpoint["port"]), 10 * SLOW) as s:
                s.sendall(f"POST /v1/reservations HTTP/1.1\r\nHost: x\r\n{key}Content-Length: 0\r\n\r\n".encode())
                if i % 2:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
        no_slot_is_left(job, 10 * SLOW)
        streams = [job.stream("/v1/completions", LONG, headers={"X-Reservation": reserve(job)["id"]}) for _ in range(8)]
        for s in streams:
            next(iter(s))
            s.close()
        no_slot_is_left(job, 10 * SLOW)


def a_mix_of_everything_leaves_all_slots_free():
    with Job("--max-ongoing-requests", "8", "--max-queued-requests", "64", "--reservation-lease", "2", ranks=4) as job:
        def one(i):
            draw = random.Random(i)
            for _ in range(60):
                answer = job.post("/v1/reservations", {} if i % 2 else None)
                if answer.status == 201:
                    break
                refused(answer)
                time.sleep(0.05 + 0.1 * draw.random())
            else:
                return "refused"
            r, what = answer.json, draw.choice(["use", "use", "delete", "forget", "use and delete", "late", "leave"])
            if what == "use":
                answer = use(job, r)
                check(answer.status == 200 or answer.json["error"]["code"] == "reservation_expired", f"{answer}")
            elif what == "delete":
                check(release(job, r).json["state"] in ("released", "expired"), "delete")
            elif what == "use and delete":
                statuses = together(2, lambda k: release(job, r).status if k else use(job, r).status)
                check(statuses[0] in (200, 410) and statuses[1] == 200, f"{statuses}")
            elif what == "late":
                time.sleep(1.7 + 0.4 * draw.random())
                answer = use(job, r)
                check(answer.status == 200 or answer.json["error"]["code"] == "reservation_expired", f"{answer}")
            elif what == "leave":
                connection = job.connect()
                connection.request("POST", "/v1/completions", json.dumps(LONG),
                                   {"Content-Type": "application/json", "X-Reservation": r["id"], **job.key()})
                connection.close()
            return what
        done = together(200, one)
        print(f"# {({what: done.count(what) for what in sorted(set(done))})}")
        check(done.count("refused") < 100, "most are served")
        no_slot_is_left(job, 20 * SLOW)
        equal(job.metric("mpiserve_requests_in_flight"), 0)
        held = [reserve(job) for _ in range(32)]  # each slot can be had, and no more
        refused(job.post("/v1/reservations", {}))
        equal(len({r["id"] for r in held}), 32)
        equal(sorted(r["replica"] for r in held), sorted([0, 1, 2, 3] * 8))


def follows_its_session():
    """With --router session it is where the session's requests go."""
    with Job("--router", "session", ranks=4) as job:
        def where(body, headers=None):
            answer = job.post("/v1/reservations", body, headers=headers)
            equal(answer.status, 201, f"{answer}")
            release(job, answer.json)
            return answer.json["replica"]
        homes = {}
        for s in (f"session {i}" for i in range(12)):
            homes[s] = where({"session_id": s})
            equal([where({"session_id": s, "user": "u"}), where({"user": s}), where(None, {"X-Session-ID": s}),
                   where({"user": "u"}, {"X-Session-ID": s})], [homes[s]] * 4, s)
        home = str(homes["session 0"])
        equal(job.post("/v1/completions", dict(SHORT, session_id="session 0")).status, 200)
        until(lambda: job.metric("mpiserve_slot_dispatches_total", engine=home) == 1, 6 * SLOW, "its request ran there")
        check(len(set(homes.values())) > 1, f"all are in one place: {homes}")
        for field in ("session_id", "user", "model"):
            equal(job.post("/v1/reservations", {field: 7}).json["error"]["param"], field)
        no_slot_is_left(job)


def metrics_are_told():
    with Job(*ONE_SLOT, ranks=2) as job:
        use(job, reserve(job))
        release(job, reserve(job))
        page = job.get("/metrics", key=False).body.decode()
        for name, kind in (("mpiserve_reservations_granted_total", "counter"), ("mpiserve_reservations_refused_total", "counter"),
                           ("mpiserve_selections_undispatched_total", "counter"), ("mpiserve_selection_to_dispatch_seconds", "histogram"),
                           ("mpiserve_reserved_slots_active", "gauge"), ("mpiserve_queue_length", "gauge"),
                           ("mpiserve_request_router_fulfillment_time_ms", "histogram"),
                           ("mpiserve_num_ongoing_requests_at_replicas", "gauge")):
            check(f"# HELP {name} " in page and f"# TYPE {name} {kind}\n" in page, name)
        equal(job.metric("mpiserve_reservations_granted_total", deployment="demo-model"), 2)
        for reason in ("full", "leaving", "contended", "no_replica", "queue", "draining"):
            equal(job.metric("mpiserve_reservations_refused_total", reason=reason), 0, reason)
        equal(job.metric("mpiserve_request_router_fulfillment_time_ms_count"), 1)
        equal([job.metric("mpiserve_num_ongoing_requests_at_replicas", replica=str(i)) is not None for i in range(3)],
              [True, True, False])


run(is_good_for_one_request, many_use_it_at_once, is_released_as_often_as_one_likes, expires, is_served_while_others_wait,
    a_bad_request_does_not_use_it, a_drain_honours_it, a_drain_does_not_wait_longer_than_the_lease, an_engine_may_die_meanwhile,
    a_replica_may_be_given_up_meanwhile, hostile_ids, clients_that_leave_hold_nothing,
    a_mix_of_everything_leaves_all_slots_free, follows_its_session,
    metrics_are_told)
