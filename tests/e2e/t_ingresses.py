#!/usr/bin/env python3
"""An ingress on every node: each reaches all replicas, they share the slots fairly, and they drain as one."""
import copy
import itertools

from harness_hosts import *

NODE = ("--ingress", "node")
NULL = ("--engine", "null")
SHORT = {"prompt": "Once", "ignore_eos": True, "max_tokens": 4, "temperature": 0}
LONG = dict(SHORT, max_tokens=300)  # with SLOW_STEP: 1.5 s
SLOW_STEP = (*NULL, "--null-step-us", "5000")


def sides(job):
    """The job as seen from each of its ingresses."""
    found = []
    for i in job.get("/v1/topology").json["ingresses"]:
        side = copy.copy(job)
        host = int(i["host"].removeprefix("node"))
        side.address, side.endpoint = f"{NETWORK}.{host + 1}", dict(job.endpoint, port=int(i["url"].rpartition(":")[2]))
        found.append(side)
    return found


def quiet(side, replicas):
    def free():
        return all(side.metric("mpiserve_slots_in_use", engine=i) == 0 for i in range(replicas))
    until(free, 6 * SLOW, "all slots are free")
    for i in range(replicas):
        equal(side.metric("mpiserve_slot_dispatches_total", engine=i), side.metric("mpiserve_slot_finishes_total", engine=i))


def ended_well(job):
    equal(job.wait(), 0, job.output())
    until(job.nothing_lives, 3 * SLOW, "nothing lives")
    equal(job.files_left(), [])


def refused(side):
    def is_refused():
        try:
            answer = side.post("/v1/completions", SHORT, timeout=5)
        except OSError:
            return True  # the port is closed already
        check(answer.status in (200, 503), f"{answer}")
        return answer.status == 503
    until(is_refused, 3 * SLOW, "new requests are refused")


def each_reaches_all_replicas():
    with Lab(2) as lab, HostsJob(lab, *NODE, "--compute", "f32", ranks=4) as job:
        both = sides(job)
        equal([(i["ingress"], i["rank"], i["host"]) for i in job.get("/v1/topology").json["ingresses"]],
              [(0, 0, "node0"), (1, 2, "node1")])
        chat = next(c for c in expected_chats() if c["min_gap"] >= 0.1)
        body = {"messages": chat["messages"], "temperature": 0, "max_completion_tokens": len(chat["ids"]) + 8}
        for side in both:
            check(side.healthy(), "/health of each")
            equal(side.get("/v1/models", key=False).status, 401)
        for text in together(40, lambda i: both[i % 2].post("/v1/chat/completions", body).json["choices"][0]["message"]["content"]):
            equal(text, chat["text"])
        for side in both:
            equal(side.metric("mpiserve_requests_routed_total"), 20, "requests of this ingress")
            for i in range(4):
                check(side.metric("mpiserve_dispatch_to_first_chunk_seconds_count", engine=i) > 0, f"replica {i}")
        ids = {side.post("/v1/completions", SHORT).json["id"] for side in both for _ in range(20)}
        equal(len(ids), 40, "ids of requests differ")
        quiet(job, 4)
        job.signal(signal.SIGINT)
        ended_well(job)


def an_engine_of_one_node_dies_under_requests_of_both():
    with Lab(2) as lab, HostsJob(lab, *NODE, "--compute", "f32", ranks=4) as job:
        both = sides(job)
        body = {"prompt": "Once", "ignore_eos": True, "max_tokens": 200, "temperature": 1, "seed": 7}
        calm = both[0].post("/v1/completions", body).json["choices"][0]["text"]

        def storm(i):
            if i == 0:
                for p in list(job.all_engines().values())[::2]:
                    p.kill(signal.SIGKILL)
                return calm
            return both[i % 2].post("/v1/completions", body).json["choices"][0]["text"]
        equal(set(together(13, storm)), {calm})
        quiet(both[1], 4)


def the_head_node_without_engines():
    with Lab(2) as lab, HostsJob(lab, *NODE, *NULL, "-dpl", "0", ranks=4) as job:
        for side in sides(job):
            equal(side.post("/v1/completions", SHORT).status, 200)
            equal(len(side.get("/v1/topology").json["replicas"]), 2)


def one_node_has_one_ingress():
    with Job(*NODE, *NULL, ranks=2) as job:
        equal(len(job.get("/v1/topology").json["ingresses"]), 1)
        equal(job.post("/v1/completions", SHORT).status, 200)


def a_port_in_use_is_named_with_its_node():
    with Lab(2) as lab:
        holder = subprocess.Popen([HOSTS, "exec", "1", "python3", "-c",
                                   "import socket,sys; s=socket.create_server(('', 8123)); print(flush=True); sys.stdin.read()"],
                                  env=lab.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            holder.stdout.readline()
            with HostsJob(lab, *NODE, *NULL, "--port", "8123", ranks=2, wait=False) as job:
                check(job.wait() != 0, "the start fails")
                check("8123" in job.output() and "node1" in job.output(), job.output())
                holder.kill()
                holder.wait()
                until(job.nothing_lives, 3 * SLOW, "nothing of the job lives")
        finally:
            holder.kill()
            holder.wait()


def reservations_belong_to_their_ingress():
    with Lab(2) as lab, HostsJob(lab, *NODE, *NULL, ranks=4) as job:
        one, two = sides(job)
        r = two.post("/v1/reservations", None).json["id"]
        equal(one.post("/v1/completions", SHORT, headers={"X-Reservation": r}).status, 404)
        equal(two.post("/v1/completions", SHORT, headers={"X-Reservation": r}).status, 200)
        equal(two.post("/v1/completions", SHORT, headers={"X-Reservation": r}).status, 409)
        quiet(job, 4)


def each_knows_what_others_have():
    with Lab(2) as lab, HostsJob(lab, *NODE, *NULL, "-dpl", "0", ranks=2) as job:
        for one, two in itertools.permutations(sides(job)):
            held = one.post("/v1/reservations", None).json["id"]

            def seen():
                r = two.post("/v1/reservations", None).json
                equal(two.call("DELETE", "/v1/reservations/" + r["id"]).status, 200)
                return r["num_ongoing"] == 2
            until(seen, 3 * SLOW, "the other's slot is counted")
            equal(one.call("DELETE", "/v1/reservations/" + held).status, 200)


def each_learns_what_is_cached_where():
    """A prompt that came in at one ingress finds its blocks when it comes in at the other."""
    prompts = [f"Once there were {i} pigs that lived in a cold storm. " * 6 for i in range(8)]
    with Lab(2) as lab, HostsJob(lab, *NODE, "--router", "prefix_aware", ranks=4) as job:
        one, two = sides(job)
        body = {"ignore_eos": True, "max_tokens": 1, "temperature": 0}
        together(8, lambda i: one.post("/v1/completions", dict(body, prompt=prompts[i])))
        until(lambda: one.metric("mpiserve_slots_in_use") == 0, 3 * SLOW, "all is read")
        time.sleep(1)  # leaders tell what is new a few times a second
        queries, hits = (f"vllm:prefix_cache_{what}_total" for what in ("queries", "hits"))
        before = [one.metric(name) for name in (queries, hits)]
        for p in prompts:
            equal(two.post("/v1/completions", dict(body, prompt=p)).status, 200)

        def all_found():
            asked, found = (one.metric(name) - n for name, n in zip((queries, hits), before))
            return asked > 0 and found >= 0.7 * asked
        until(all_found, 6 * SLOW, "the second reading finds the blocks of the first")


def drain_from_the_other_ingress():
    """Streams of both finish, a reservation of the second is honoured, nobody new comes in anywhere."""
    with Lab(2) as lab, HostsJob(lab, *NODE, *SLOW_STEP, "--enable-admin", ranks=4) as job:
        one, two = sides(job)
        r = two.post("/v1/reservations", None).json["id"]
        streams = [side.stream("/v1/completions", LONG) for side in (one, two) for _ in range(6)]
        events = [iter(s) for s in streams]
        for e in events:
            next(e)
        equal(two.post("/admin/drain", {}).status, 202)
        refused(one)
        refused(two)
        for s, e in zip(streams, events):
            all(True for _ in e)
            check(s.done, "the stream has its end")
        equal(two.post("/v1/completions", SHORT, headers={"X-Reservation": r}).status, 200)
        ended_well(job)


def a_drain_that_takes_too_long():
    with Lab(2) as lab, HostsJob(lab, *NODE, *NULL, "--null-step-us", "100000", "--graceful-shutdown-timeout", "1",
                                 ranks=4) as job:
        streams = [side.stream("/v1/completions", dict(SHORT, max_tokens=900)) for side in sides(job)]
        events = [iter(s) for s in streams]
        for e in events:
            next(e)
        equal(sides(job)[1].post("/v1/reservations", None).status, 201)  # held for much longer than the drain may take
        job.signal(signal.SIGINT)
        for e in events:
            check(any("error" in event for event in e), "the last event is an error")
        ended_well(job)


def load(both, clients, total):
    """clients[i] callers of ingress i, each one request after the other. Those of the side with less come when the other has all slots;
    from then on the answers by ingress, until they are `total`."""
    counts, lock, late = [0, 0], threading.Lock(), int(clients[1] <= clients[0])
    others_have_all = threading.Event()

    def caller(k):
        side = 0 if k < clients[0] else 1
        if side == late:
            others_have_all.wait(30 * SLOW)
        while True:
            answer = both[side].post("/v1/completions", SHORT)
            equal(answer.status in (200, 429), True, f"{answer}")
            if answer.status == 429:
                time.sleep(0.02)
            with lock:
                if sum(counts) >= total:
                    return
                counts[side] += answer.status == 200
                if sum(counts) == 40 and not others_have_all.is_set():
                    counts[:] = [0, 0]
                    others_have_all.set()
    together(sum(clients), caller)
    return counts


def slots_are_shared_fairly():
    """4 slots: who has all of them leaves the one who comes later its share, whatever each asks for."""
    with Lab(2) as lab, HostsJob(lab, *NODE, *NULL, "--null-step-us", "20000", "--max-ongoing-requests", "2", ranks=2) as job:
        both = sides(job)
        for clients, low, high in (((24, 6), 0.42, 0.58), ((12, 12), 0.42, 0.58), ((6, 24), 0.42, 0.58), ((24, 1), 0.17, 0.3)):
            counts = load(both, clients, 120)
            print(f"# {clients} callers: {counts[0]} and {counts[1]} answers")
            check(low <= counts[1] / sum(counts) <= high, f"{clients}: {counts}")
        check(sum(side.metric("mpiserve_slots_yielded_total") for side in both) > 0, "slots were yielded")
        quiet(job, 2)
        job.signal(signal.SIGINT)
        ended_well(job)


def admission_keeps_the_shares():
    """A level that keeps both from queueing for long: who has few slots when the other comes does not go on refusing for that."""
    with Lab(2) as lab, HostsJob(lab, *NODE, *NULL, "--null-step-us", "20000", "--max-ongoing-requests", "2",
                                 "--admission", "slo", "--slo-ttft-ms", "400", ranks=2) as job:
        both = sides(job)
        for clients in ((24, 12), (12, 24)):
            counts = load(both, clients, 120)
            print(f"# {clients} callers: {counts[0]} and {counts[1]} answers")
            check(0.3 <= counts[1] / sum(counts) <= 0.7, f"{clients}: {counts}")


run(each_reaches_all_replicas, an_engine_of_one_node_dies_under_requests_of_both, the_head_node_without_engines,
    one_node_has_one_ingress, a_port_in_use_is_named_with_its_node, reservations_belong_to_their_ingress,
    each_knows_what_others_have, each_learns_what_is_cached_where,
    drain_from_the_other_ingress, a_drain_that_takes_too_long, slots_are_shared_fairly,
    admission_keeps_the_shares)
