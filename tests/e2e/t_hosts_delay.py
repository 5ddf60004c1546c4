#!/usr/bin/env python3
"""Hosts that answer late: agents and engines of a job over four hosts are stopped and continued again and again while requests of
every kind run. (Many kernels have no netem; a rank that stands still answers late, too.) Nothing may be lost, nothing run twice, and no
text may differ; and a slot whose lease is over before its request arrives costs another slot, not the request."""
import random

from harness_hosts import *

SEED = int(os.environ.get("SEED", "1"))
N, AT_ONCE, LEAST_PULSES = 96, 12, 40
# the watchdog ends a rank that stands still for 5 s; a host counts as silent after 10
PULSE_MS, PAUSE_MS = (20, 300), (5, 60)
KINDS = ("short", "short", "stream", "stream", "chat", "cancelled stream", "cancelled", "reserved", "reserved", "released", "forgotten")


class Pulses:
    """While it lives, `victims` are stopped and continued, two at a time, as the seed says."""

    def __init__(self, victims):
        self.victims, self.over, self.n = victims, threading.Event(), 0
        self.threads = [threading.Thread(target=self.run, args=(random.Random(SEED + i), victims[i::2])) for i in range(2)]

    def run(self, draw, victims):
        while not self.over.is_set():
            victim = draw.choice(victims)
            victim.kill(signal.SIGSTOP)
            self.over.wait(draw.randint(*PULSE_MS) / 1e3)
            victim.kill(signal.SIGCONT)
            self.n += 1
            self.over.wait(draw.randint(*PAUSE_MS) / 1e3)

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for t in self.threads:
            t.join(10)
        for v in self.victims:
            v.kill(signal.SIGCONT)


def slow_links(lab):
    """50 ms each way to every host but the first, more or less, where the kernel can."""
    return all(lab.call("delay", str(k), "25ms 10ms", check_status=False).returncode == 0 for k in range(1, lab.n))


# ---- requests --------------------------------------------------------------------------------------------------------
def body_of(i):
    draw = random.Random(1000 * SEED + i)
    return {"prompt": f"Story {i}:", "temperature": 1.0, "seed": i, "ignore_eos": True, "max_tokens": draw.randint(1, 60)}


def read(stream, cancel_after=None):
    """The text of a stream that ends exactly once; or leaves after some events."""
    text, ends = "", 0
    for n, event in enumerate(stream):
        check("error" not in event, f"{event}")
        if cancel_after is not None and n >= cancel_after:
            stream.close()
            return None
        for c in event["choices"]:
            check(not ends, f"something behind the end: {event}")
            text += c["text"]
            ends += c["finish_reason"] is not None
    equal((ends, stream.done), (1, True), "ends of a stream")
    return text


def whole(answer, tokens):
    equal(answer.status, 200, f"{answer}")
    equal((answer.json["choices"][0]["finish_reason"], answer.json["usage"]["completion_tokens"]), ("length", tokens))
    return answer.json["choices"][0]["text"]


def reserve(job):
    """A slot for the client; whoever finds all taken asks again, as Retry-After says."""
    def ask():
        answer = job.post("/v1/reservations", {})
        check(answer.status in (201, 503), f"{answer}")
        return answer if answer.status == 201 else None
    return until(ask, 60 * SLOW, "a reservation is granted").json["id"]


def one(job, i):
    """One client; what it got, to be compared with another run."""
    kind, body = KINDS[i % len(KINDS)], body_of(i)
    path, tokens = "/v1/completions", body["max_tokens"]
    if kind == "short":
        return whole(job.post(path, body), tokens)
    if kind == "stream":
        return read(job.stream(path, body))
    if kind == "chat":
        return content(job.chat(f"What is {i} + 25?", max_tokens=24, ignore_eos=True, seed=i))
    if kind == "cancelled stream":
        return read(job.stream(path, dict(body, max_tokens=400)), cancel_after=i % 5)
    if kind == "cancelled":
        connection = job.connect()
        connection.request("POST", path, json.dumps(dict(body, max_tokens=400)), {"Content-Type": "application/json", **job.key()})
        connection.close()
        return None
    r = reserve(job)
    if kind == "reserved":
        with_it = {"X-Reservation": r}
        answer = job.post(path, body, headers=with_it) if i % 2 else None
        text = whole(answer, tokens) if answer else read(job.stream(path, body, headers=with_it))
        equal(job.post(path, body, headers=with_it).status, 409, "used twice")
        return text
    if kind == "released":
        equal(job.call("DELETE", "/v1/reservations/" + r).json["state"], "released")
    return None


def all_of_them(job):
    got = together(AT_ONCE, lambda k: [one(job, i) for i in range(k, N, AT_ONCE)])
    return [got[i % AT_ONCE][i // AT_ONCE] for i in range(N)]


# ---- the books -------------------------------------------------------------------------------------------------------
def check_books(job):
    """All slots are free; each grant and each dispatch had one end."""
    n = len(job.ranks())
    until(lambda: job.metric("mpiserve_requests_in_flight") == 0 and job.metric("mpiserve_reserved_slots_active") == 0 and
          all(job.metric("mpiserve_slots_in_use", engine=i) == 0 for i in range(n)), 20 * SLOW, "all slots are free")
    for i in range(n):
        equal(job.metric("mpiserve_slot_dispatches_total", engine=i), job.metric("mpiserve_slot_finishes_total", engine=i),
              f"replica {i}: requests that ran, and that ended")
    used, granted = (job.metric(f"mpiserve_{m}") for m in ("selection_to_dispatch_seconds_count", "reservations_granted_total"))
    undone = job.metric("mpiserve_selections_undispatched_total")
    equal(granted, used + undone, "reservations: granted, and used, released or expired")
    ran, stale, routed = (job.metric(f"mpiserve_{m}_total") for m in ("slot_dispatches", "dispatches_stale", "requests_routed"))
    equal(routed, ran + stale, "dispatches: sent, and run or refused")
    equal(job.metric("mpiserve_requests_requeued_total"), stale, "refused, and sent elsewhere")
    return {"ran": ran, "stale": stale, "reaped": job.metric("mpiserve_slots_reaped_total"), "reservations used": used,
            "released or expired": undone}


def ends_cleanly(job):
    job.signal(signal.SIGINT)
    equal(job.wait(), 0, job.output())
    until(job.nothing_lives, 3 * SLOW, "nothing lives")
    equal(job.files_left(), [])


def pulses_change_nothing(*options, env=None):
    common = ("--max-ongoing-requests", "2", "--max-queued-requests", "64", "--reservation-lease", "4", *options)
    with Lab(4) as lab, HostsJob(lab, *common, ranks=8, env=env) as job:
        calm = all_of_them(job)
        check_books(job)
        agents, engines = job.all_agents(), job.all_engines()
        victims = [agents[r] for r in range(2, 8)] + [engines[r] for r in sorted(engines)]
        random.Random(SEED).shuffle(victims)
        rounds, started = 0, time.monotonic()
        netem = slow_links(lab)
        with Pulses(victims) as pulses:
            while pulses.n < LEAST_PULSES:
                late, rounds = all_of_them(job), rounds + 1
                for i in range(N):
                    equal(late[i], calm[i], f"request {i} ({KINDS[i % len(KINDS)]})")
            seconds = time.monotonic() - started
        print(f"# {' '.join(options)}: {rounds} x {N} clients, {seconds:.1f} s, {pulses.n} pulses, "
              f"{'late links' if netem else 'no netem'}; {check_books(job)}")
        for r, agent in agents.items():
            check(agent.alive() and engines[r].alive(), f"rank {r} was taken for dead")
        ends_cleanly(job)


def pulses_with_the_demo_model():
    pulses_change_nothing("--compute", "f32", env={"MPISERVE_FAULT": "slow-step:5"})


def pulses_longer_than_the_lease():
    """And steps that take no maths."""
    pulses_change_nothing("--engine", "null", "--null-step-us", "5000", "--slot-lease", "0.1")


# ---- a lease that is over --------------------------------------------------------------------------------------------
def late_dispatch(job, body, lease):
    """A client holds a slot of replica 0 and uses it in time; but then rank 0 waits for a slot of rank 2, which stands still, until
    rank 1 has taken the slot back. Returns the answer."""
    def held_at(replica):
        r = job.post("/v1/reservations", {}).json
        if r["replica"] == replica:
            return r
        job.call("DELETE", "/v1/reservations/" + r["id"])
        return None
    other = job.all_agents()[2]
    r = until(lambda: held_at(0), 20 * SLOW, "a slot of replica 0")
    granted = time.monotonic()
    other.kill(signal.SIGSTOP)
    try:
        asks = [job.connect(), job.connect()]  # round robin: one of them is for rank 2, and rank 0 waits
        for c in asks:
            c.request("POST", "/v1/reservations", None, job.key())
        for c in asks:
            c.sock.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                c.getresponse()
        answers = []
        user = threading.Thread(target=lambda: answers.append(job.post("/v1/completions", body, headers={"X-Reservation": r["id"]})))
        user.start()
        time.sleep(max(0, granted + 1.6 * lease - time.monotonic()))
    finally:
        other.kill(signal.SIGCONT)
    user.join(30 * SLOW)
    for c in asks:
        c.close()
    return answers[0]


def a_lease_that_ends_on_the_way():
    body, lease = {"prompt": "Once", "temperature": 1.0, "seed": 7, "ignore_eos": True, "max_tokens": 20}, 1
    with Lab(3) as lab, HostsJob(lab, "--compute", "f32", "-dpl", "0", "--router", "round_robin", "--reservation-lease", str(lease),
                                 "--slot-lease", "0.2", ranks=3) as job:
        equal([r["replica"] for r in job.ranks()], [None, 0, 1])
        wanted = whole(job.post("/v1/completions", body), 20)

        def stale():
            """A machine that is too busy lets the client be late, or the leader: then once more."""
            answer = late_dispatch(job, body, lease)
            if answer.status == 410:
                return 0
            equal(whole(answer, 20), wanted, "the text of a request that was sent twice")
            return job.metric("mpiserve_requests_requeued_total")
        until(stale, 60 * SLOW, "a dispatch comes too late")
        until(lambda: (job.metric("mpiserve_dispatches_stale_total", engine=0) or 0) >= 1, 6 * SLOW, "the leader counts it")
        check(job.metric("mpiserve_slots_reaped_total", engine=0) >= 1, "the leader took the slot back")
        books = {"routed": job.metric("mpiserve_requests_routed_total"), "requeued": job.metric("mpiserve_requests_requeued_total"),
                 "stale": job.metric("mpiserve_dispatches_stale_total"), "reaped": job.metric("mpiserve_slots_reaped_total")}
        until(lambda: job.metric("mpiserve_slots_in_use") == 0 and job.metric("mpiserve_reserved_slots_active") == 0, 6 * SLOW, "free")
        print(f"# {books}")
        equal(job.metric("mpiserve_slot_dispatches_total"), job.metric("mpiserve_slot_finishes_total"))
        equal(job.metric("mpiserve_requests_routed_total"),
              job.metric("mpiserve_slot_dispatches_total") + job.metric("mpiserve_dispatches_stale_total"))
        ends_cleanly(job)


def a_late_leader_is_not_asked():
    """A leader of another host stands still with a request: what comes now goes elsewhere, and does not wait for it. (Not the first rank
    there: with Open MPI 5 that one has the locks for all slots of its host.)"""
    slowly = ("--engine", "null", "--null-step-us", "10000", "--router", "round_robin", "--reservation-lease", "8")
    with Lab(2) as lab, HostsJob(lab, *slowly, ranks=4) as job:
        body = {"prompt": "Once", "ignore_eos": True, "temperature": 0}
        agent = job.all_agents()[3]
        streams = [job.stream("/v1/completions", dict(body, max_tokens=500)) for _ in range(4)]
        events = [iter(s) for s in streams]
        for e in events:
            next(e)

        def state():
            return job.get("/v1/topology").json["replicas"][3]["state"]
        equal(state(), "up")
        held = {r["replica"]: r["id"] for r in (job.post("/v1/reservations", None).json for _ in range(4))}
        agent.kill(signal.SIGSTOP)
        try:
            until(lambda: state() == "late", 3 * SLOW, "its silence is noticed")
            for r in held.values():  # its own among them: it takes that slot back later
                equal(job.call("DELETE", "/v1/reservations/" + r, timeout=3 * SLOW).status, 200)
            for _ in range(8):
                equal(job.post("/v1/completions", dict(body, max_tokens=2), timeout=3 * SLOW).status, 200)
        finally:
            agent.kill(signal.SIGCONT)
        for s, e in zip(streams, events):
            all(True for _ in e)
            check(s.done, "the stream has its end")
        equal(state(), "up")
        until(lambda: job.metric("mpiserve_slots_in_use") == 0, 8 * SLOW, "all slots are free")


run(a_late_leader_is_not_asked, pulses_with_the_demo_model, pulses_longer_than_the_lease, a_lease_that_ends_on_the_way)
