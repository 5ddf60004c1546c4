#!/usr/bin/env python3
"""Replicas of several engines: tensor and pipeline parallel. The answers are the reference's, an engine's death is the
group's, and the text goes on as if nothing had happened."""
import re

from harness import *

CHATS = [c for c in expected_chats() if c["min_gap"] >= 0.1]
F32 = ("--compute", "f32", "--max-num-seqs", "16")
SEEDED = {"prompt": "Repeat after me: " + " ".join(f"word{i % 10}" for i in range(90)), "temperature": 1.0, "seed": 11,
          "ignore_eos": True, "max_tokens": 200, "presence_penalty": 0.5}


def check_places(job, tp, pp):
    """Ranks in order: stage by stage, parts of a stage side by side; the first of a replica leads it."""
    topology = job.get("/v1/topology").json
    n = tp * pp
    equal((topology["tensor_parallel_size"], topology["pipeline_parallel_size"]), (tp, pp))
    equal([(r["replica"], r["pp_rank"], r["tp_rank"]) for r in topology["ranks"]],
          [(r["rank"] // n, r["rank"] % n // tp, r["rank"] % tp) for r in topology["ranks"]])
    equal([r["leader"] for r in topology["replicas"]], list(range(0, len(topology["ranks"]), n)))
    equal([r["replica_rank"]["rank"] for r in topology["replicas"]], list(range(len(topology["replicas"]))))


def shapes_give_the_references_tokens():
    for tp, pp, ranks in ((2, 1, 2), (2, 1, 8), (4, 1, 4), (1, 2, 2), (2, 2, 4), (1, 4, 4)):
        with Job(*F32, "-tp", str(tp), "-pp", str(pp), ranks=ranks) as job:
            check_places(job, tp, pp)
            together(8, lambda i: [ask_chat(job, c) for c in CHATS[i::8]])
            check(job.log().count(" weights of ") == tp * pp, "each part of the model is loaded once")
            for i in range(ranks // (tp * pp)):
                taken = job.metric("mpiserve_slot_dispatches_total", engine=i)
                check(taken > 0, f"tp {tp}, pp {pp}: replica {i} had no request")
                until(lambda: job.metric("mpiserve_slots_in_use", engine=i) == 0, 5 * SLOW, "slots are free")
            job.signal(signal.SIGINT)
            equal(job.wait(), 0, job.output())
            equal(job.leftovers(), [])


def wait_all_new(job, old):
    def all_new():
        now = job.engines()
        return len(now) == len(old) and not {p.pid for p in now.values()} & {p.pid for p in old.values()}
    until(all_new, 10 * SLOW, "all engines of the replica are new")
    until(job.healthy, 10 * SLOW, "/health is 200 again")


def end_one(job, victim, end, wanted, after):
    """The stream is read up to some letters, then `end` happens to one engine; the text is as without."""
    old = job.engines()
    equal(streamed_until(job, SEEDED, after, lambda: end(old[victim])), (wanted, True),
          f"the text when engine {victim} ends behind {after} letters")
    wait_all_new(job, old)
    check(not any(p.alive() for p in old.values()), "an engine of the old generation lives")


def any_engine_killed(tp, pp):
    with Job(*F32, "-tp", str(tp), "-pp", str(pp), ranks=tp * pp) as job:
        wanted = text_of(job.post("/v1/completions", SEEDED))
        for victim in range(tp * pp):
            end_one(job, victim, lambda p: p.kill(), wanted, 0 if victim % 2 else len(wanted) // 4)
        equal(job.get("/v1/topology").json["replicas"][0]["engine_generation"], tp * pp + 1, "generations")
        equal(text_of(job.post("/v1/completions", SEEDED)), wanted)


def any_engine_of_a_tensor_group_killed():
    any_engine_killed(2, 1)


def any_engine_of_a_pipeline_killed():
    any_engine_killed(1, 2)


def any_engine_of_both_killed():
    any_engine_killed(2, 2)


def a_stopped_engine_is_named():
    """It does not die: the others wait for it, one of them or its agent says who is missing, and the group starts anew."""
    with Job(*F32, "-tp", "2", "--step-timeout", "3", ranks=2) as job:
        wanted = text_of(job.post("/v1/completions", SEEDED))
        end_one(job, 1, lambda p: p.kill(signal.SIGSTOP), wanted, len(wanted) // 4)
        check(re.search(r"engine 1 \(rank 1\) has not come within 1\.8 s", job.log()), job.log())


def the_last_stage_hangs():
    """Nobody but the leader waits for it, and the leader's own engine is healthy: no rank but that one is said to hang."""
    for pp in (2, 4):
        with Job(*F32, "-pp", str(pp), "--step-timeout", "3", ranks=pp) as job:
            wanted = text_of(job.post("/v1/completions", SEEDED))
            for victim in (pp - 1, 0):
                seen = len(job.log())
                end_one(job, victim, lambda p: p.kill(signal.SIGSTOP), wanted, len(wanted) // 4)
                equal(hung_in(job.log()[seen:]), {victim}, job.log()[seen:])


def a_job_that_stood_still():
    """Agents and engines, longer than a step may take: nobody hangs, nobody is ended."""
    with Job(*F32, "-pp", "2", "--step-timeout", "2", ranks=2) as job:
        wanted, old = text_of(job.post("/v1/completions", SEEDED)), job.engines()
        all_of_it = [*job.agents().values(), *old.values()]

        def stand_still():
            for p in all_of_it:
                p.kill(signal.SIGSTOP)
            time.sleep(3)
            for p in all_of_it:
                p.kill(signal.SIGCONT)
        equal(streamed_until(job, SEEDED, len(wanted) // 4, stand_still), (wanted, True))
        equal(hung_in(job.log()), set(), job.log())
        check(all(p.alive() for p in old.values()), job.log())


def one_replica_of_two_is_hurt():
    with Job(*F32, "-tp", "2", ranks=4) as job:
        wanted, old = text_of(job.post("/v1/completions", SEEDED)), job.engines()
        old[3].kill()
        for _ in range(6):
            equal(text_of(job.post("/v1/completions", SEEDED)), wanted)
        until(lambda: len(job.engines()) == 4 and job.engines()[2].pid != old[2].pid and job.healthy(), 10 * SLOW, "it is back")
        check(old[0].alive() and old[1].alive(), "the other replica was not touched")


def a_rank_of_a_group_dies():
    """Outside survive mode that is the job's end, with everything."""
    with Job(*F32, "-tp", "2", ranks=2) as job:
        below = job.processes()
        job.agents()[1].kill()
        equal(job.wait(), 1)
        until(lambda: not any(p.alive() for p in below), 3 * SLOW, "nothing lives")
        equal(job.leftovers(), [])


def a_drain_finishes_what_runs():
    with Job(*F32, "-tp", "2", "-pp", "2", ranks=4) as job:
        wanted = text_of(job.post("/v1/completions", SEEDED))
        equal(streamed_until(job, SEEDED, 1, lambda: job.signal(signal.SIGUSR1)), (wanted, True))
        equal(job.wait(), 0, job.output())
        equal(job.leftovers(), [])


def numbers_that_do_not_fit():
    for options, ranks, wanted in (
        (("-tp", "3"), 3, r"tensor.parallel.size.*3"),
        (("-pp", "64"), 2, r"pipeline.*64|64 engines|allow 0"),
        (("-tp", "2"), 3, r"3 ranks are not divisible by tensor_parallel_size"),
        (("-tp", "16", "-pp", "8"), 2, r"128"),
    ):
        with Job(*F32, *options, ranks=ranks, wait=False) as job:
            equal(job.wait(), 1, f"{options}: {job.output()}")
            errors = [line for line in job.output().splitlines() if " E " in line and "did not start" not in line]
            check(len(errors) == 1 and re.search(wanted, errors[0]), f"{options}: {errors}")


def without_maths():
    with Job("--engine", "null", "-tp", "2", "-pp", "2", ranks=4) as job:
        equal(job.post("/v1/completions", {"prompt": "a", "max_tokens": 8, "ignore_eos": True}).status, 200)


run(shapes_give_the_references_tokens, any_engine_of_a_tensor_group_killed, any_engine_of_a_pipeline_killed,
    any_engine_of_both_killed, a_stopped_engine_is_named, the_last_stage_hangs, a_job_that_stood_still,
    one_replica_of_two_is_hurt, a_rank_of_a_group_dies,
    a_drain_finishes_what_runs, numbers_that_do_not_fit, without_maths)
