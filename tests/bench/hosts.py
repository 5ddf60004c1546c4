"""Figures over several hosts: the lab of tests/lab (network namespaces), started as the end-to-end tests start it."""
import os
import re
import sys
import time

from job import Failed, cpu_seconds_of, histogram, median_of

RANKS = 8
FIRST_CHUNK = "mpiserve_dispatch_to_first_chunk_seconds"
BODY = {"prompt": "Hi", "max_tokens": 1, "ignore_eos": True, "temperature": 0}


def harness(program):
    """The tests' harness; it reads its settings when it is imported."""
    os.environ["PROGRAM"] = program
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../e2e"))
    import harness_hosts
    return harness_hosts


def step_us(job, engines):
    """What a forward pass of these replicas took on average, by the engine's own clock."""
    sums = {"mpiserve_engine_step_seconds_total": 0.0, "mpiserve_engine_steps_total": 0.0}
    for line in job.get("/metrics", key=False).body.decode().splitlines():
        m = re.match(r'(\w+)\{.*engine="(\d+)".*\} (\S+)$', line)
        if m and m.group(1) in sums and int(m.group(2)) in engines:
            sums[m.group(1)] += float(m.group(3))
    return 1e6 * sums["mpiserve_engine_step_seconds_total"] / sums["mpiserve_engine_steps_total"]


def way_between_hosts(b, h, group, name, *options, limit=None):
    """One request at a time; replicas of the other host beside those of this one."""
    here, there, steps = [], [], []
    for _ in range(b.repeat(3, 1)):
        with h.Lab(2) as lab, h.HostsJob(lab, "--router", "round_robin", *options, ranks=RANKS) as job:
            for _ in range(b.repeat(800, 300)):
                job.post("/v1/completions", BODY)
            nodes = {r["replica"]: r["node_rank"] for r in job.ranks()}
            text = job.get("/metrics", key=False).body.decode()
            near, far = ({r for r, n in nodes.items() if n == k} for k in (0, 1))
            here.append(1e6 * median_of(histogram(text, FIRST_CHUNK, near)))
            there.append(1e6 * median_of(histogram(text, FIRST_CHUNK, far)))
            steps.append(step_us(job, far))
    shape = {"hosts": 2, "ranks": RANKS, "output_tokens": 1, "connections": 1}
    b.add(group, f"dispatch to first answer, p50, other host, {name}", "us", there, limit=limit, setting=shape)
    b.add(group, f"of it the engine's own step, mean, other host, {name}", "us", steps, setting=shape)
    b.add(group, f"dispatch to first answer, p50, same host, {name}", "us", here, setting=shape)


def tokens_a_second(job, h, streams, tokens):
    body = {"prompt": "Once upon a time", "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, "temperature": 0}

    def one(i):
        for _ in range(3):
            answer = job.post("/v1/completions", dict(body, prompt=f"{i} {body['prompt']}"))
            if answer.status != 200:
                raise Failed(f"{answer}")
    h.together(streams, one)  # warms up
    began = time.monotonic()
    h.together(streams, one)
    return 3 * streams * tokens / (time.monotonic() - began)


def stages(b):
    """A replica of two pipeline stages on one host and on two, in turn; and one engine that has all layers."""
    h = harness(b.o.program)
    streams, tokens, rates = 16, 128, {"one engine": [], "two stages, one host": [], "two stages, two hosts": []}
    try:
        for _ in range(b.repeat(5, 3)):
            for (name, rate), hosts, options in zip(rates.items(), (1, 1, 2), ((), ("-pp", "2"), ("-pp", "2"))):
                with h.Lab(hosts) as lab, h.HostsJob(lab, *options, "--threads", "1", ranks=2 if options else 1) as job:
                    rate.append(tokens_a_second(job, h, streams, tokens))
    except h.Skip as skip:
        raise Failed(str(skip)) from None
    group, shape = "Pipeline parallel, engines of one thread", {"streams": streams, "output_tokens": tokens, "threads": 1}
    for name, rate in rates.items():
        b.add(group, name, "tokens/s", rate, better="more", setting=shape)
    one, near, far = rates.values()
    b.add(group, "two hosts against one", "x", [f / n for f, n in zip(far, near)], limit=(">=", 0.8), better="more", setting=shape)
    b.add(group, "two stages against one engine, one host", "x", [n / o for n, o in zip(near, one)], better="more", setting=shape)


def measure(b):
    h = harness(b.o.program)
    group, seconds = f"2 hosts, {RANKS} ranks", b.repeat(20, 8)
    starts, idle = [], []
    try:
        for i in range(b.repeat(5, 3)):
            with h.Lab(2) as lab, h.HostsJob(lab, ranks=RANKS, wait=False) as job:
                h.until(lambda: (job.read_endpoint() or {}).get("url"), h.START_LIMIT, "the endpoint file")
                h.until(job.healthy, h.START_LIMIT, "/health is 200")
                starts.append(1e3 * (time.monotonic() - job.started))
                if i == 0:
                    job.wait_ready()
                    time.sleep(2)
                    pids = [p.pid for p in job.everything()]
                    before, began = sum(map(cpu_seconds_of, pids)), time.monotonic()
                    time.sleep(seconds)
                    idle.append(100 * (sum(map(cpu_seconds_of, pids)) - before) / (time.monotonic() - began))
    except h.Skip as skip:
        raise Failed(str(skip)) from None
    b.add(group, "mpiserve up to /health 200", "ms", starts, limit=("<=", 3000), setting={"hosts": 2, "ranks": RANKS})
    b.add(group, "CPU of all processes, idle", "% of a core", idle, limit=("<=", 2), setting={"hosts": 2, "ranks": RANKS})
    way_between_hosts(b, h, group, "demo model", limit=("<=", 400))
    way_between_hosts(b, h, group, "null engine", "--engine", "null")
