#!/usr/bin/env python3
"""/health proves progress; the other routes that need no key; metrics."""
from harness import *


def eight_ranks_become_healthy():
    times = []
    for _ in range(3):
        with Job(ranks=8) as job:
            until(job.healthy, START_LIMIT, "/health is 200")
            times.append(time.monotonic() - job.started)
    print(f"# /health 200 after {', '.join(f'{t:.2f}' for t in times)} s (8 ranks)")


def routes_without_a_key():
    with Job(ranks=1) as job:
        equal(job.get("/health", key=False).json, {"status": "ok"})
        for path in ("/v1/health", "/ping", "/livez", "/readyz", "/version", "/load", "/metrics"):
            equal(job.get(path, key=False).status, 200, path)
        for path in ("/v1/models", "/v1/topology"):
            equal(job.get(path, key=False).status, 401, path)
        answer = job.get("/v1/models", key=False)
        equal(answer.json["error"]["code"], "invalid_api_key")
        equal(answer.headers["WWW-Authenticate"], "Bearer")
        equal(job.get("/v1/models", key=False, headers={"Authorization": "Bearer wrong-wrong"}).status, 401)
        value = job.key()["Authorization"].split()[1]
        equal(job.get("/v1/models", key=False, headers={"x-api-key": value}).status, 200)
        equal(job.get("/v1/models", key=False, headers={"Authorization": f"bearer {value}"}).status, 200)


def a_stuck_engine_does_not_look_healthy():
    with Job("--step-timeout", "2", ranks=1) as job:
        check(job.healthy(), "before")
        engine = job.engines()[0]
        engine.kill(signal.SIGSTOP)
        until(lambda: not job.healthy(), 12 * SLOW, "/health notices a stopped engine of an idle job")
        equal(job.get("/health", key=False).status, 503)
        equal(job.get("/livez", key=False).status, 200)
        until(job.healthy, 15 * SLOW, "it is replaced")
        check(not engine.alive(), "by another process")


def keys_of_the_user():
    with Job(ranks=1, env={"MPISERVE_API_KEY": "sk-from-environment"}) as job:
        equal(job.get("/v1/models", key=False, headers={"Authorization": "Bearer sk-from-environment"}).status, 200)
        check("sk-from" not in job.output() + job.log(), "the key is shown")
    with Job("--api-key", "none", ranks=1) as job:
        equal(job.get("/v1/models", key=False).status, 200)
        check(" -H @" not in job.output(), "the example needs no key")


def the_printed_example_works():
    for options in ((), ("--api-key", "none")):
        with Job(*options, ranks=2) as job:
            command = [line for line in job.output().splitlines() if line.startswith("  try   ")][0][8:]
            done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30)
            equal(done.returncode, 0, done.stderr)
            equal(json.loads(done.stdout)["choices"][0]["message"]["role"], "assistant", done.stdout)


def metrics_count():
    with Job(ranks=2) as job:
        before = job.metric("vllm:request_success_total") or 0
        answer = job.chat("What is MPI?")
        until(lambda: job.metric("vllm:request_success_total") == before + 1, 3 * SLOW, "request_success_total")
        for name, wanted in (("prompt_tokens_total", answer["usage"]["prompt_tokens"]), ("num_requests_running", 0),
                             ("generation_tokens_total", answer["usage"]["completion_tokens"])):
            until(lambda: job.metric(f"vllm:{name}") == wanted, 3 * SLOW, name)  # leaders report a little later
        equal(job.metric("vllm:num_requests_waiting"), 0)


def ranks_that_were_stopped_go_on():
    """A suspended machine, a paused container: nobody is stuck, and no engine is blamed."""
    with Job("--step-timeout", "2", ranks=2) as job:
        frozen = [*job.agents().values(), *job.engines().values()]
        for some in (frozen[1:2], frozen):
            for p in some:
                p.kill(signal.SIGSTOP)
            time.sleep(6.5)
            for p in some:
                p.kill(signal.SIGCONT)
            for i in range(4):
                equal(content(job.chat("What is 17 + 25?")), "17 + 25 = 42")
            check(all(p.alive() for p in frozen), "a process has ended")


run(ranks_that_were_stopped_go_on, eight_ranks_become_healthy, routes_without_a_key,
    a_stuck_engine_does_not_look_healthy, keys_of_the_user,
    the_printed_example_works, metrics_count)
