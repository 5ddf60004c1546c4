#!/usr/bin/env python3
"""A replica whose pipeline stages lie on several hosts: the agents relay what its engines say to each other."""
from harness_hosts import *

CHATS = [c for c in expected_chats() if c["min_gap"] >= 0.1]
F32 = ("--compute", "f32", "--max-num-seqs", "16")
SEEDED = {"prompt": "Repeat after me: " + " ".join(f"word{i % 10}" for i in range(90)), "temperature": 1.0, "seed": 11,
          "ignore_eos": True, "max_tokens": 120}


def places(job):
    return [(r["host"], r["replica"], r["pp_rank"], r["tp_rank"]) for r in job.ranks()]


def kill_each(job, wanted):
    """Every engine once, in the middle of a text."""
    for victim in range(len(job.ranks())):
        old = job.all_engines()
        equal(streamed_until(job, SEEDED, len(wanted) // 4, old[victim].kill), (wanted, True),
              f"the text when engine {victim} is killed")
        until(lambda: len(job.all_engines()) == len(old) and job.healthy(), 10 * SLOW, "all engines are back")
        check(not any(p.alive() for p in old.values()), "an engine of the old generation lives")


def end(job):
    job.signal(signal.SIGINT)
    equal(job.wait(), 0, job.output())
    until(job.nothing_lives, 3 * SLOW, "nothing lives")
    equal(job.files_left(), [])


def two_stages_on_two_hosts():
    with Lab(2) as lab, HostsJob(lab, *F32, "-pp", "2", ranks=2) as job:
        equal(places(job), [("node0", 0, 0, 0), ("node1", 0, 1, 0)])
        together(8, lambda i: [ask_chat(job, c) for c in CHATS[i::8]])
        kill_each(job, text_of(job.post("/v1/completions", SEEDED)))
        end(job)


def the_far_stage_hangs():
    """The agent of its own host saw that it fell silent, and the leader on the other host says so."""
    with Lab(2) as lab, HostsJob(lab, *F32, "-pp", "2", "--step-timeout", "3", ranks=2) as job:
        wanted, old, seen = text_of(job.post("/v1/completions", SEEDED)), job.all_engines(), len(job.log())
        equal(streamed_until(job, SEEDED, len(wanted) // 4, lambda: old[1].kill(signal.SIGSTOP)), (wanted, True))
        until(lambda: not any(p.alive() for p in old.values()), 10 * SLOW, "the old engines are gone")
        until(lambda: len(job.all_engines()) == 2 and job.healthy(), 10 * SLOW, "all engines are back")
        equal(hung_in(job.log()[seen:]), {1}, job.log()[seen:])


def tensor_parts_in_each_stage():
    with Lab(2) as lab, HostsJob(lab, *F32, "-tp", "2", "-pp", "2", ranks=4) as job:
        equal(places(job), [("node0", 0, 0, 0), ("node0", 0, 0, 1), ("node1", 0, 1, 0), ("node1", 0, 1, 1)])
        together(8, lambda i: [ask_chat(job, c) for c in CHATS[i::8]])
        kill_each(job, text_of(job.post("/v1/completions", SEEDED)))
        end(job)


def whole_replicas_first():
    """3 ranks a host: one replica in each, and one of what is left."""
    with Lab(2) as lab, HostsJob(lab, *F32, "-pp", "2", ranks=6) as job:
        equal([(h, r) for h, r, _, _ in places(job)],
              [("node0", 0), ("node0", 0), ("node0", 1), ("node1", 2), ("node1", 2), ("node1", 1)])
        together(8, lambda i: [ask_chat(job, c) for c in CHATS[i::8]])
        for i in range(3):
            check(job.metric("mpiserve_slot_dispatches_total", engine=i) > 0, f"replica {i} had no request")
        end(job)


def three_hosts_and_none_on_the_head():
    with Lab(3) as lab, HostsJob(lab, *F32, "-pp", "2", "--data-parallel-size-local", "0", ranks=3) as job:
        equal([(h, r) for h, r, _, _ in [(r["host"], r["replica"], 0, 0) for r in job.ranks()]],
              [("node0", None), ("node1", 0), ("node2", 0)])
        together(4, lambda i: [ask_chat(job, c) for c in CHATS[i::8]])
        end(job)


run(two_stages_on_two_hosts, the_far_stage_hangs, tensor_parts_in_each_stage, whole_replicas_first, three_hosts_and_none_on_the_head)
