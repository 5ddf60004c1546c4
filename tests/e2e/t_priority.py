#!/usr/bin/env python3
"""--scheduling-policy: who waits for a slot is served by priority, then by arrival; who waits long is served too."""
from harness import *

SHORT = {"prompt": "Once", "ignore_eos": True, "max_tokens": 10, "temperature": 0}
LONG = dict(SHORT, max_tokens=900)
SLOWLY = {"MPISERVE_FAULT": "slow-step:20"}  # LONG takes 18 s, SHORT 0.2 s
ONE_SLOT = ("--max-ongoing-requests", "1", "--max-queued-requests", "1000")


class Line:
    """Requests that wait behind one that runs; then they are served one by one."""

    def __init__(self, job):
        self.job, self.served, self.threads = job, [], []
        self.running = job.stream("/v1/completions", LONG)
        next(iter(self.running))

    def join(self, name, priority=None, header=None):
        before = self.job.metric("mpiserve_queue_length")
        body = SHORT if priority is None else dict(SHORT, priority=priority)

        def one():
            stream = self.job.stream("/v1/completions", body, headers={} if header is None else {"X-Vllm-Priority": header})
            events = iter(stream)
            next(events)
            self.served.append(name)  # one slot: it is the only one that runs
            for _ in events:
                pass
        self.threads.append(threading.Thread(target=one, daemon=True))
        self.threads[-1].start()
        until(lambda: self.job.metric("mpiserve_queue_length") == before + 1, 6 * SLOW, f"{name} waits")

    def go(self):
        self.running.close()
        for t in self.threads:
            t.join(60 * SLOW)
            check(not t.is_alive(), "one is not served")
        return self.served


def lower_is_earlier():
    with Job(*ONE_SLOT, "--scheduling-policy", "priority", ranks=1, env=SLOWLY) as job:
        line = Line(job)
        for name, priority, header in (("a", 5, None), ("b", 1, None), ("c", None, None), ("d", 1, None), ("e", -9, None),
                                       ("f", 2**62, "-10"), ("g", 3, "high"), ("h", 4, "1.5"), ("i", 2, ""), ("j", -99, "9223372036854775807"),
                                       ("k", -(2**63), "99999999999999999999"), ("l", 2**63 - 1, "")):
            line.join(name, priority, header)
        equal("".join(line.go()), "kfecbdighajl")
        until(lambda: job.metric("mpiserve_request_router_fulfillment_time_ms_count") == 13, 6 * SLOW, "all were dispatched")


def without_the_policy_arrival_decides():
    with Job(*ONE_SLOT, ranks=1, env=SLOWLY) as job:
        line = Line(job)
        for name, priority, header in (("a", 5, None), ("b", 1, None), ("c", None, "-7"), ("d", -3, None)):
            line.join(name, priority, header)
        equal("".join(line.go()), "abcd")


def who_leaves_makes_room():
    """Cancelled in the middle of the line; the order of the others stays."""
    with Job(*ONE_SLOT, "--scheduling-policy", "priority", ranks=1, env=SLOWLY) as job:
        line = Line(job)
        line.join("a", 3)
        left = job.connect()
        left.request("POST", "/v1/completions", json.dumps(dict(SHORT, priority=-5)), {"Content-Type": "application/json", **job.key()})
        until(lambda: job.metric("mpiserve_queue_length") == 2, 6 * SLOW, "it waits")
        line.join("b", 2)
        left.close()
        until(lambda: job.metric("mpiserve_queue_length") == 2, 6 * SLOW, "it has left")
        equal("".join(line.go()), "ba")


def nobody_starves():
    """Urgent requests never end, more than one slot serves; the one that is not urgent is served soon after half of --queue-timeout."""
    with Job(*ONE_SLOT, "--scheduling-policy", "priority", "--queue-timeout", "8", ranks=1, env=SLOWLY) as job:
        stop, served = threading.Event(), []

        def urgent(_):
            while not stop.is_set():
                served.append(job.post("/v1/completions", dict(SHORT, priority=-1)).status)
        crowd = [threading.Thread(target=urgent, args=(i,), daemon=True) for i in range(5)]
        for t in crowd:
            t.start()
        until(lambda: job.metric("mpiserve_queue_length") >= 3, 6 * SLOW, "they wait")
        started = time.monotonic()
        answer = job.post("/v1/completions", dict(SHORT, priority=10**9))
        waited, others = time.monotonic() - started, len(served)
        stop.set()
        equal(answer.status, 200, f"after {waited:.1f} s {answer}")
        check(waited >= 3.5, f"its turn came after {waited:.2f} s, before half of 8 s")
        check(others >= 5, f"{others} urgent ones went first")
        for t in crowd:
            t.join(30 * SLOW)
        equal(set(served), {200})


run(lower_is_earlier, without_the_policy_arrival_decides, who_leaves_makes_room, nobody_starves)
