#!/usr/bin/env python3
"""However a job over several hosts ends, nothing of it is left on any of them."""
from harness_hosts import *

SLOWLY = {"MPISERVE_FAULT": "slow-step:10"}
LONG = {"prompt": "Once", "ignore_eos": True, "max_tokens": 150, "n": 4, "temperature": 1, "seed": 3}


def kill_and_look(victim, limit):
    with Lab(2) as lab:
        with HostsJob(lab, ranks=4) as job:
            streams = [iter(job.stream("/v1/completions", dict(LONG, max_tokens=900))) for _ in range(4)]
            for s in streams:
                next(s)
            agents = job.all_agents()
            {"mpirun": lambda: job.mpirun().kill(),
             "up": lambda: job.up.kill(),
             "agent 0": agents[0].kill, "agent 3": agents[3].kill,
             "daemon": lambda: [p.kill() for p in lab.processes(1) if p.name in ("orted", "prted")],
             "host": lambda: lab.call("kill", "1"),
             "host, silently": lambda: lab.call("crash", "1")}[victim]()
            started = time.monotonic()
            until(job.nothing_lives, limit * SLOW, f"{victim} was killed and nothing lives on any host")
            print(f"# {victim} killed: nothing lives after {time.monotonic() - started:.2f} s")
            if victim != "up":
                equal(job.wait(3 * SLOW), 1, "exit status of up")
            dead = (1,) if "host" in victim else ()
            equal(job.files_left(*dead), [], f"files after {victim} was killed")
        if not dead:
            return
        if "silently" in victim:
            lab.call("heal", "1")
        check(job.files_left(), "a dead host keeps its files")
        with HostsJob(lab, ranks=2) as after:
            after.signal(signal.SIGINT)
            equal(after.wait(), 0, after.output())
            until(after.nothing_lives, 3 * SLOW, "nothing lives")
            equal(after.files_left(), [], "files after the next start on that host")


def mpirun_is_killed():
    kill_and_look("mpirun", 4)


def up_is_killed():
    kill_and_look("up", 4)


def agents_are_killed():
    kill_and_look("agent 0", 4)
    kill_and_look("agent 3", 4)


def the_launchers_daemon_is_killed():
    kill_and_look("daemon", 4)


def a_host_is_killed():
    kill_and_look("host", 5)


def a_host_is_gone_without_a_word():
    kill_and_look("host, silently", 15)


def a_drain_loses_nothing():
    with Lab(2) as lab, HostsJob(lab, ranks=4, env=SLOWLY) as job:
        streams = [job.stream("/v1/completions", LONG) for _ in range(16)]
        events = [iter(s) for s in streams]
        for e in events:
            next(e)
        job.signal(signal.SIGTERM)

        def rest(i):
            finished = 0
            for event in events[i]:
                check("error" not in event, event)
                finished += sum(c["finish_reason"] is not None for c in event.get("choices", []))
            equal((finished, streams[i].done), (4, True), f"stream {i}")
        together(16, rest)
        equal(job.wait(), 0, job.output())
        until(job.nothing_lives, 3 * SLOW, "nothing lives")
        equal(job.files_left(), [])


def a_second_signal_ends_at_once():
    with Lab(2) as lab, HostsJob(lab, ranks=4, env=SLOWLY) as job:
        stream = job.stream("/v1/completions", dict(LONG, max_tokens=900))
        events = iter(stream)
        next(events)
        job.signal(signal.SIGINT)
        time.sleep(0.3)
        job.signal(signal.SIGINT)
        errors = [e for e in events if "error" in e]
        equal(len(errors), 1, "a final error event")
        equal(job.wait(5 * SLOW), 130)
        until(job.nothing_lives, 4 * SLOW, "nothing lives")
        equal(job.files_left(), [])


def a_bare_mpirun():
    with Lab(2) as lab:
        out = os.path.join(lab.folder, "out")
        with open(out, "wb") as f:
            mpirun = subprocess.Popen([HOSTS, "mpirun", "-np", "4", PROGRAM, DEMO, "--port", "8000", "--host", "0.0.0.0"],
                                      env=dict(lab.environment, MPISERVE_API_KEY="sk-of-the-user"), stdout=f, stderr=f)

        def chat():
            c = http.client.HTTPConnection(f"{NETWORK}.1", 8000, timeout=30)
            c.request("POST", "/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": "What is 17 + 25?"}]}),
                      {"Authorization": "Bearer sk-of-the-user", "Content-Type": "application/json"})
            return c.getresponse()

        def answers():
            try:
                return chat().status == 200
            except OSError:
                return False
        until(answers, START_LIMIT, "a chat is answered")
        mpirun.kill()
        mpirun.wait()
        until(lambda: not [p for k in range(2) for p in lab.processes(k)], 4 * SLOW, "nothing lives")
        equal([f for k in range(2) for f in lab.files(k) if "vader" not in f], [])


run(mpirun_is_killed, up_is_killed, agents_are_killed, the_launchers_daemon_is_killed, a_host_is_killed,
    a_host_is_gone_without_a_word, a_drain_loses_nothing, a_second_signal_ends_at_once, a_bare_mpirun)
