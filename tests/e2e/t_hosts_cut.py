#!/usr/bin/env python3
"""The cable of a host is cut: the job ends everywhere within the launcher's keep-alive time and leaves nothing, on the cut host either;
or the cable is back in time, and nobody has noticed. Never a hang, never a wrong answer, never a healthy job that does nothing."""
import itertools

from harness_hosts import *

SLOWLY, TOO_SLOWLY = {"MPISERVE_FAULT": "slow-step:10"}, {"MPISERVE_FAULT": "slow-step:40"}  # no stream ends before the job
KEEP_ALIVE_S = 2 + 3 * 1  # OMPI_MCA_oob_tcp_keepalive_time + probes * intvl
N = 8


def body_of(i, tokens):
    return {"prompt": f"Story {i}:", "ignore_eos": True, "max_tokens": tokens, "temperature": 1, "seed": i}


class Health:
    """What /health says from now on, as often as it changes: (seconds, status or the error's name, reason)."""

    def __init__(self, job):
        self.job, self.seen, self.over = job, [], threading.Event()
        self.started, self.thread = time.monotonic(), threading.Thread(target=self.watch)

    def look(self):
        try:
            answer = self.job.get("/health", key=False, timeout=5)
            return answer.status, "" if answer.status == 200 else answer.body.decode()
        except (OSError, http.client.HTTPException) as e:
            return type(e).__name__, ""

    def watch(self):
        while not self.over.is_set():
            at, now = time.monotonic() - self.started, self.look()
            if not self.seen or self.seen[-1][1:] != now:
                self.seen.append((at, *now))
            self.over.wait(0.02)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(10)


def nothing_under_way(lab, job):
    """Until what ranks said at the start has arrived, at the other end of the launcher's connections: the kernel probes only those on
    which nothing waits for an answer, and else tries for a quarter of an hour."""
    def unsent(k):
        with open(f"/proc/{lab.holders[k]}/net/tcp") as f:
            return sum(int(line.split()[4].split(":")[0], 16) for line in f.readlines()[1:])

    def arrived():
        log = job.log()
        return log.count(": ReplicaRank ") == len([r for r in job.ranks() if r["replica"] is not None]) and " weights of " in log
    until(lambda: arrived() and not any(unsent(k) for k in range(lab.n)), 20 * SLOW, "nothing is under way")


def begin(job, tokens):
    streams = [job.stream("/v1/completions", body_of(i, tokens)) for i in range(N)]
    events = [iter(s) for s in streams]
    return [(s, e, [next(e)]) for s, e in zip(streams, events)]


def end_of(stream, events, first):
    """The rest of a stream: (text, how it ended: "complete", "error", or "closed")."""
    text, how = "", "closed"
    with contextlib.suppress(OSError, http.client.HTTPException):
        for event in itertools.chain(first, events):
            if "error" in event:
                check(event["error"]["message"] and event["error"]["type"] and event["error"]["code"], f"{event}")
                return text, "error"
            text += "".join(c["text"] for c in event["choices"])
        how = "complete" if stream.done else "closed"
    return text, how


def calm_texts(job, tokens):
    return together(N, lambda i: job.post("/v1/completions", body_of(i, tokens)).json["choices"][0]["text"])


def check_the_end(lab, job, started, why=("lost communication with", "node1")):
    """All is over, on every host, and it was said why."""
    gone = {}

    def all_gone():
        for k in range(lab.n):
            if k not in gone and not lab.processes(k):
                gone[k] = time.monotonic() - started
        return len(gone) == lab.n
    until(all_gone, 3 * KEEP_ALIVE_S * SLOW, "nothing lives on any host, on the cut one either")
    equal(job.wait(3 * SLOW), 1, "exit status of up")
    said = job.output()
    check(all(word in said for word in why), f"what happened is not said: {said}")
    check("the job ended without being asked to" in said, said)
    equal(job.files_left(), [], "files, on the cut host too")
    return gone


def cut_and_look(silent, options=(), ranks=4):
    """Returns what /health said."""
    with Lab(2) as lab, HostsJob(lab, *options, ranks=ranks, env=TOO_SLOWLY) as job:
        wanted = calm_texts(job, 40)
        nothing_under_way(lab, job)
        streams = begin(job, 900)
        with Health(job) as health:
            lab.call("cut", "1", *silent)
            started = time.monotonic()
            ends = together(N, lambda i: end_of(*streams[i]))
            gone = check_the_end(lab, job, started)
        for i, (text, how) in enumerate(ends):
            check(how in ("error", "closed"), f"stream {i} ended as if all were well: {how}")
            check(text.startswith(wanted[i]) or wanted[i].startswith(text), f"stream {i}: a wrong text: {text!r:.200}")
        print(f"# cut{''.join(' ' + s for s in silent)}: nothing lives after {gone[0]:.1f} s, on the cut host after {gone[1]:.1f} s; "
              f"{[(round(t, 1), s) for t, s, _ in health.seen]}")
        statuses = [s for _, s, _ in health.seen]
        equal(statuses.count(200), 1 if statuses[0] == 200 else 0, "/health is 200, and once it is not it never is again")
        return health.seen


def a_cable_is_cut():
    cut_and_look(())


def a_cable_is_cut_without_a_word():
    cut_and_look(("silent",))


def a_cable_is_cut_while_the_launcher_has_something_to_say():
    """An engine dies behind the cut, and its rank says so: the kernel does not probe a connection on which something waits for an answer.
    The cut node ends by itself, since it does not hear of rank 0."""
    with Lab(2) as lab, HostsJob(lab, ranks=4) as job:
        nothing_under_way(lab, job)
        rank = next(r["rank"] for r in job.ranks() if r["host"] == "node1")
        engine = job.all_engines()[rank]
        lab.call("cut", "1", "silent")
        started = time.monotonic()
        engine.kill(signal.SIGKILL)
        until(lambda: not lab.processes(1), 30 * SLOW, "nothing lives on the cut host")
        gone = time.monotonic() - started
        until(job.nothing_lives, 10 * SLOW, "nothing lives")
        equal(job.wait(3 * SLOW), 1, "exit status of up")
        equal(job.files_left(), [], "files, on the cut host too")
        print(f"# nothing lives on the cut host after {gone:.1f} s")


def nobody_is_left_to_serve():
    """All replicas are behind the cut: /health says so, before the job ends."""
    seen = cut_and_look((), ("-dpl", "0"), ranks=3)
    silent = [t for t, status, why in seen if status == 503 and "no replica makes progress" in why and "silent" in why]
    check(silent, f"/health did not say that the only replicas are silent: {seen}")


def a_cable_is_cut_while_nothing_runs():
    with Lab(2) as lab, HostsJob(lab, ranks=4) as job:
        nothing_under_way(lab, job)
        with Health(job) as health:
            lab.call("cut", "1")
            check_the_end(lab, job, time.monotonic())
        check(health.seen[-1][1] != 200, f"{health.seen}")


def a_short_cut(seconds, silent=()):
    """While streams run, and new requests come. Either nobody notices, or the job ends as above."""
    with Lab(2) as lab, HostsJob(lab, "--compute", "f32", ranks=4, env=SLOWLY) as job:
        wanted = calm_texts(job, 120)
        streams = begin(job, 120)
        lab.call("cut", "1", *silent)
        started, later = time.monotonic(), []
        user = threading.Thread(target=lambda: later.extend(ask_quietly(job, i) for i in range(4)))
        user.start()
        time.sleep(seconds)
        lab.call("heal", "1")
        ends = together(N, lambda i: end_of(*streams[i]))
        user.join(60 * SLOW)
        check(not user.is_alive(), "a request hangs")
        hows = sorted({how for _, how in ends})
        for i, (text, how) in enumerate(ends):
            check(wanted[i].startswith(text) and (how != "complete" or text == wanted[i]), f"stream {i}: {how}, {text!r:.200}")
        for i, text in enumerate(later):
            check(text is None or text == wanted[i], f"request {i} during the cut: {text!r:.200}")
        if hows == ["complete"] and job.up.poll() is None:
            equal(len([t for t in later if t is not None]), 4, "answers to who asked during the cut")
            until(lambda: job.healthy() and job.metric("mpiserve_slots_in_use") == 0, 10 * SLOW, "healthy, and all slots are free")
            equal(job.metric("mpiserve_slot_dispatches_total"), job.metric("mpiserve_slot_finishes_total"))
            job.signal(signal.SIGINT)
            equal(job.wait(), 0, job.output())
            until(job.nothing_lives, 3 * SLOW, "nothing lives")
            equal(job.files_left(), [])
            print(f"# {seconds} s{''.join(' ' + s for s in silent)}: nobody noticed")
        else:
            check_the_end(lab, job, started, (" E ",))  # also the watchdog of rank 0 may have been first
            print(f"# {seconds} s{''.join(' ' + s for s in silent)}: the job ended; streams: {hows}")


def ask_quietly(job, i):
    """The text, or None when the job ends meanwhile."""
    try:
        answer = job.post("/v1/completions", body_of(i, 120))
        return answer.json["choices"][0]["text"] if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None


def short_cuts():
    a_short_cut(0.5)
    a_short_cut(1.0, ("silent",))


def a_replica_that_stands_still():
    """Neither healthy meanwhile nor lost: it goes on where it was."""
    with Lab(2) as lab, HostsJob(lab, "--compute", "f32", "-dpl", "0", ranks=2, env=SLOWLY) as job:
        wanted = calm_texts(job, 120)
        streams = begin(job, 120)
        agent = job.all_agents()[1]
        agent.kill(signal.SIGSTOP)
        try:
            until(lambda: not job.healthy(), 15 * SLOW, "/health is not 200")
            why = job.get("/health", key=False).body.decode()
            check("replica 0 is silent" in why, why)
        finally:
            agent.kill(signal.SIGCONT)
        for i, end in enumerate(together(N, lambda i: end_of(*streams[i]))):
            equal(end, (wanted[i], "complete"), f"stream {i}")
        until(job.healthy, 10 * SLOW, "/health is 200 again")


run(a_cable_is_cut, a_cable_is_cut_without_a_word, a_cable_is_cut_while_the_launcher_has_something_to_say,
    nobody_is_left_to_serve, a_cable_is_cut_while_nothing_runs, short_cuts, a_replica_that_stands_still)
