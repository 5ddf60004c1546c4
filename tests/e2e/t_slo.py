#!/usr/bin/env python3
"""Service levels: --admission slo refuses with 429 what would come too late, and nothing else; attainment is counted."""
import re

from harness import *

STEP = ("--engine", "null", "--null-step-us", "20000")
SHORT = {"prompt": "Once", "ignore_eos": True, "max_tokens": 20}  # 0.4 s
LONG = dict(SHORT, max_tokens=900)
REFUSED = "mpiserve_admission_refused_total"


def is_late(answer, allowed):
    equal(answer.status, 429, f"{answer}")
    error = answer.json["error"]
    equal((error["type"], error["code"], error["param"]), ("RateLimitError", 429, None))
    said = re.search(r"predicted to take (\d+) ms, and (\d+) ms are allowed", error["message"])
    check(said, error["message"])
    equal(int(said.group(2)), allowed)
    check(int(said.group(1)) > allowed, error["message"])
    check(int(answer.headers["Retry-After"]) >= 1, "Retry-After")


def is_served(answer):
    equal(answer.status, 200, f"{answer}")
    equal(answer.json["usage"]["completion_tokens"], 20)


def nothing_in_flight(job):
    until(lambda: job.metric("mpiserve_requests_in_flight") == 0, 5 * SLOW, "all have ended")


def warm(job):
    """Enough to know how fast slots come free; each finds the server empty, so that none is refused."""
    for _ in range(5):
        is_served(job.post("/v1/completions", SHORT))
        nothing_in_flight(job)


def late_ones_are_refused():
    with Job(*STEP, "--max-ongoing-requests", "1", "--slo-ttft-ms", "150", "--admission", "slo", ranks=1) as job:
        warm(job)
        equal(job.metric(REFUSED), 0)
        running = job.stream("/v1/completions", LONG)
        next(iter(running))
        for _ in range(3):
            is_late(job.post("/v1/completions", SHORT), 150)
        is_late(job.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}), 150)
        equal((job.metric(REFUSED), job.metric("mpiserve_queue_length")), (4, 0))
        check(job.metric("mpiserve_predicted_time_to_first_token_seconds") > 0.15, "the prediction is shown")
        running.close()

        nothing_in_flight(job)
        is_served(job.post("/v1/completions", SHORT))  # at once, whatever was measured
        nothing_in_flight(job)
        made = job.post("/v1/reservations", {})
        equal(made.status, 201, f"{made}")
        is_late(job.post("/v1/completions", SHORT), 150)  # the only slot is held


def who_finds_it_empty_and_who_reserved_are_let_in():
    """With a level that nothing can keep."""
    with Job(*STEP, "--max-ongoing-requests", "2", "--slo-ttft-ms", "1", "--admission", "slo", ranks=1) as job:
        warm(job)
        running = job.stream("/v1/completions", LONG)
        next(iter(running))
        made = job.post("/v1/reservations", {})
        equal(made.status, 201, f"{made}")
        is_served(job.post("/v1/completions", SHORT, headers={"X-Reservation": made.json["id"]}))
        running.close()
        nothing_in_flight(job)
        is_served(job.post("/v1/completions", SHORT))


def a_free_slot_is_no_wait():
    longer = dict(SHORT, max_tokens=50)  # 1 s: a wait for a slot would be too long
    with Job(*STEP, "--max-ongoing-requests", "2", "--slo-ttft-ms", "450", "--admission", "slo", ranks=1) as job:
        together(6, lambda _: job.post("/v1/completions", longer))
        nothing_in_flight(job)
        running = job.stream("/v1/completions", LONG)
        next(iter(running))
        until(lambda: job.post("/v1/completions", SHORT).status == 200, 10 * SLOW, "let in beside another")
        running.close()


def a_flood(n, *options):
    """How many of n requests at the same time are served, and how many refused."""
    with Job(*STEP, "--max-ongoing-requests", "1", *options, "--slo-ttft-ms", "1000", ranks=1) as job:
        warm(job)
        before = job.metric("vllm:request_success_total")
        answers = together(n, lambda _: job.post("/v1/completions", SHORT))
        late = [a for a in answers if a.status != 200]
        for a in answers:
            is_late(a, 1000) if a in late else is_served(a)
        served = len(answers) - len(late)
        equal(job.metric("vllm:request_success_total") - before, served)
        equal(job.metric(REFUSED), len(late))
        met, missed = (job.metric("mpiserve_slo_ttft_total", result=r) for r in ("met", "missed"))
        equal(met + missed, served + 5)
        equal(job.metric("mpiserve_slo_itl_total"), None, "no such level")
        return served, len(late), missed


def a_flood_is_cut():
    served, late, _ = a_flood(40, "--admission", "slo")
    check(served >= 1 and late >= 1, f"{served} served, {late} refused")


def without_admission_all_wait():
    served, late, missed = a_flood(12)
    equal((served, late), (12, 0))
    check(missed >= 1, "none of them came late")


def attainment_is_counted():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = os.path.join(folder, "job.yaml")
        with open(path, "w") as f:
            f.write("engine: 'null'\nnull_step_us: 20000\n"
                    "deployments:\n  - name: d\n    model: " + DEMO + "\n    slo: {ttft_ms: 600000, itl_ms: 1}\n")
        with Job(model=path, ranks=1) as job:
            def counted():
                return [job.metric(f"mpiserve_slo_{level}_total", deployment="d", result=result)
                        for level in ("ttft", "itl") for result in ("met", "missed")]
            equal(counted(), [0, 0, 0, 0])
            is_served(job.post("/v1/completions", SHORT))
            equal(counted(), [1, 0, 0, 1])
            equal(job.post("/v1/completions", dict(SHORT, max_tokens=1)).status, 200)
            equal(counted(), [2, 0, 0, 1], "one token has no time between tokens")
            equal(job.post("/v1/completions", dict(SHORT, n=3)).status, 200)
            equal(counted(), [3, 0, 0, 4], "every sample has its own")


def admission_needs_a_level():
    done = subprocess.run([PROGRAM, "up", "--admission", "slo"], capture_output=True, text=True, timeout=20 * SLOW)
    equal(done.returncode, 2, done.stderr)
    check("--admission" in done.stderr and "--slo-ttft-ms" in done.stderr, done.stderr)
    done = subprocess.run([PROGRAM, "up", "--admission", "always"], capture_output=True, text=True, timeout=20 * SLOW)
    check(done.returncode == 2 and "none|slo" in done.stderr, done.stderr)


run(late_ones_are_refused, who_finds_it_empty_and_who_reserved_are_let_in, a_free_slot_is_no_wait, a_flood_is_cut,
    without_admission_all_wait, attainment_is_counted, admission_needs_a_level)
