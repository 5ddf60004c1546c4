#!/usr/bin/env python3
"""bench: the figures of this program on this machine, as a table or (--json) as one object; see README.md beside this file.

Speed is no test: the exit status is 0 also when targets are missed, and 1 only when something did not run.
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import hosts  # noqa: E402
import machine  # noqa: E402
import tokenizers_bench  # noqa: E402
from figures import Figure, print_table  # noqa: E402
from job import TOP, Bare, Failed, Job, environment, helper, histogram, load, median_of, run  # noqa: E402

# Somebody else's figures for the like, measured once on a machine of this size with a model of about the demo model's
# shape (bf16, 2 threads): read them as an order of magnitude.
FIRST_CHUNK = "mpiserve_dispatch_to_first_chunk_seconds"
LLAMA_SERVER = "llama-server"
PEER_NOTE = "llama-server's figures: a similar tiny shape on a similar machine with 2 cores, not measured in this run"
PROMPT = "Tell me a story about a pig and a cold storm."  # 12 tokens of the demo model


class Bench:
    def __init__(self, options):
        self.o = options
        self.cores = len(os.sched_getaffinity(0))
        self.figures, self.failures, self.busy = [], [], 0
        self.machine = machine.describe(options.mpirun, options.compiler)

    def add(self, *args, **more):
        f = Figure(*args, busy=self.busy, **more)
        self.figures.append(f)
        print(f"  {f.name}: {f.median:.4g} {f.unit}", file=sys.stderr, flush=True)

    def job(self, ranks, *options):
        return Job(self.o.program, ranks, *options, model=self.o.model, mpirun=self.o.mpirun)

    def repeat(self, full, quick):
        return quick if self.o.quick else full


# ---- sections --------------------------------------------------------------------------------------------------------
def build(b):
    """make from clean, in a copy of the tree."""
    folder = tempfile.mkdtemp(prefix="mpb-build-", dir="/tmp")
    try:
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=TOP,
                                capture_output=True, check=True).stdout.decode().split("\0")
        for name in filter(None, listed):
            source, to = os.path.join(TOP, name), os.path.join(folder, name)
            if os.path.isfile(source):
                os.makedirs(os.path.dirname(to), exist_ok=True)
                shutil.copyfile(source, to)
                shutil.copymode(source, to)
        env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "BUILD")}
        for jobs in sorted({1, b.cores}):
            run(["make", "clean"], 20, cwd=folder, env=env)
            start = time.monotonic()
            run(["make", f"-j{jobs}"], 240, cwd=folder, env=env)
            b.add("Build", f"make -j{jobs}" if jobs > 1 else "make", "s", [time.monotonic() - start], limit=("<=", 40),
                  setting={"jobs": jobs, "compiler": b.machine["compiler"]})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start(b):
    """From mpirun to the first 200 of /health."""
    runs = []
    for _ in range(b.repeat(9, 5)):
        with b.job(b.o.ranks) as job:
            runs.append(job.ready_seconds * 1e3)
    b.add("Start", f"mpirun to /health 200, {b.o.ranks} ranks", "ms", runs, limit=("<=", 1500),
          setting={"ranks": b.o.ranks})


def idle(b):
    """What a job takes that does nothing."""
    seconds = b.o.idle_seconds or b.repeat(30, 8)
    with b.job(b.o.ranks) as job:
        time.sleep(1)  # what starting still had to do
        processes, before, started = len(job.processes()), job.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        spent = (job.cpu_seconds() - before) / (time.monotonic() - started)
        setting = {"ranks": b.o.ranks, "processes": processes, "seconds": seconds}
        b.add("Idle", f"CPU of all processes, {b.o.ranks} ranks", "% of a core", [100 * spent], limit=("<=", 1),
              setting=setting)
        b.add("Idle", f"PSS of all processes, {b.o.ranks} ranks", "MB", [job.pss_mb()], limit=("<=", 250),
              setting=setting)


def slots(b):
    """Taking and giving back a slot of a rank of this node; alone, and when all ranks want slots of all."""
    runs = []
    for _ in range(b.repeat(5, 3)):
        out = run([b.o.mpirun, "-np", "2", "--oversubscribe", "--bind-to", "none", helper("slots"), "200"], 30,
                  env=environment())
        runs.append(json.loads(out.strip().splitlines()[-1]))
    for key, whose, limit in (("other_us", "of another rank", ("<=", 1)), ("own_us", "of the own rank", None)):
        b.add("Slots", f"reserve + release {whose}, uncontended", "us", [r[key]["median"] for r in runs], limit=limit,
              setting={"ranks": 2, "pairs_a_run": runs[0]["pairs"]})
    # as many ranks as cores: what a cycle costs when the other side is awake; and more of them: what sharing cores costs
    wanted_slots(b, 2, b.repeat(20000, 5000), ("<=", 20))
    wanted_slots(b, b.o.ranks, b.repeat(20000, 5000), None)


def wanted_slots(b, ranks, each, limit):
    """Every rank wants slots of the others, without a pause."""
    runs = []
    for _ in range(b.repeat(5, 3)):
        out = run([b.o.mpirun, "-np", str(ranks), "--oversubscribe", "--bind-to", "none", helper("slots"), "wanted", str(each)],
                  120, env=environment())
        runs.append(json.loads(out.strip().splitlines()[-1]))
    group, what = f"Slots: {ranks} ranks want {runs[0]['slots']}", "reserve, dispatch, run, finish, answer"
    setting = {"ranks": ranks, "slots": runs[0]["slots"], "each": each, "max_us": max(r["max_us"] for r in runs)}
    for p in ("p50", "p99"):
        b.add(group, f"{what}, {p}", "us", [r[f"{p}_us"] for r in runs], setting=setting, limit=limit if p == "p50" else None)
    b.add(group, f"{what}, all ranks", "1/s", [r["per_s"] for r in runs], setting=setting, better="more")


def completion(tokens, stream):
    # min_tokens: behind an end of sequence the demo model writes nothing but more of them, and nothing would be streamed
    body = {"prompt": PROMPT, "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, "temperature": 0}
    if stream:
        body.update(stream=True, stream_options={"include_usage": True})
    return body


def tokens_per_s(b, job, streams, tokens, n):
    """Answers of fixed length in parallel streams: all tokens by the time from the first request to the last byte."""
    body, runs = completion(tokens, True), []
    job.load("/v1/completions", body=body, connections=streams, requests=streams, tokens=tokens)  # warms up
    for _ in range(n):
        r = job.load("/v1/completions", body=body, connections=streams, requests=streams, tokens=tokens)
        runs.append(r["tokens"] / r["seconds"])
    return runs


def serve_one(b, ranks, threads, compute):
    options = (["--threads", str(threads)] if threads else []) + (["--compute", compute] if compute else [])
    with b.job(ranks, *options) as job:
        topology = job.get("/v1/topology")
        b.machine["isa"] = b.machine["isa"] or topology["cpu_isa"]
        if not compute:
            b.machine["compute"] = topology["compute"]
        tokens = job.post("/tokenize", {"prompt": PROMPT})["count"]
        setting = {"ranks": ranks, "threads": threads or max(b.cores // ranks, 1), "compute": topology["compute"],
                   "isa": topology["cpu_isa"], "prompt_tokens": tokens}
        group = (f"Demo model: {ranks} rank{'s' * (ranks > 1)}, {setting['threads']} "
                 f"thread{'s' * (setting['threads'] > 1)} each, {setting['compute']}")
        peer = not (ranks == 1 and threads == 1)

        def against(value):
            return {"name": LLAMA_SERVER, "value": value} if peer else None

        one, many, single = b.repeat(512, 256), b.repeat(256, 128), b.repeat(300, 100)
        b.add(group, "1 stream", "tokens/s", tokens_per_s(b, job, 1, one, b.repeat(5, 3)), peer=against(3284),
              setting=dict(setting, streams=1, output_tokens=one), better="more")
        b.add(group, "32 streams", "tokens/s", tokens_per_s(b, job, 32, many, b.repeat(5, 3)), peer=against(4358),
              setting=dict(setting, streams=32, output_tokens=many), better="more")
        latencies = [job.load("/v1/completions", body=completion(1, False), requests=single, tokens=1)["latency_ms"]
                     for _ in range(b.repeat(5, 3))]
        shape = dict(setting, connections=1, output_tokens=1, requests_a_run=single)
        b.add(group, "1-token completion, p50", "ms", [r["p50"] for r in latencies], peer=against(1.7), setting=shape)
        b.add(group, "1-token completion, p99", "ms", [r["p99"] for r in latencies], setting=shape)


def serve(b):
    """The demo model over HTTP, in several shapes of the job."""
    shapes = [(1, 0, ""), (1, 1, ""), (b.o.ranks, 0, "")]
    if not b.o.quick:
        shapes.insert(1, (1, 0, "f32"))
    for ranks, threads, compute in shapes:
        serve_one(b, ranks, threads, compute)


def forward(b):
    """The same work without processes, messages and HTTP: what is lost on the way."""
    model = b.o.model or os.path.join(TOP, "jobs/demo-model")
    tokens, rounds = b.repeat(256, 128), b.repeat(5, 3)
    for threads in sorted({b.cores, 1}, reverse=True):
        out = json.loads(run([b.o.program, "bench", "engine", model, "--threads", str(threads), "--input-len", "12", "--batch-size", "1,32",
                              "--context-len", "0", "--output-len", str(tokens), "--num-iters", str(rounds), "--json"], 120))
        for case in out["decode"]:
            sequences = case["batch_size"]
            b.add(f"Engine alone, {out['compute']}",
                  f"{sequences} sequence{'s' * (sequences > 1)}, {threads} thread{'s' * (threads > 1)}", "tokens/s",
                  [sequences * tokens / s for s in case["runs"]], better="more",
                  setting={"threads": threads, "sequences": sequences, "compute": out["compute"], "isa": out["isa"],
                           "output_tokens": tokens, "of_memory": round(case["of_memory"], 3),
                           "of_products": round(case["of_products"], 3)})


def parallel(b):
    """Two engines of a replica on two cores, without agents: their sums, and a prompt against one engine with one thread."""
    if b.cores < 2:
        return
    group, calls = "Tensor parallel, 2 engines of one thread", b.repeat(20000, 5000)
    for size, name, limit in ((8 << 10, "8 KiB", ("<=", 4)), (1 << 20, "1 MiB", None)):
        n = calls if size < 1 << 20 else calls // 20
        out = json.loads(run([helper("coll"), "reduce", "2", str(size), str(n), str(b.repeat(5, 3))], 60))
        b.add(group, f"all_reduce of {name}", "us", [r["median_us"] for r in out["runs"]], limit=limit,
              setting={"engines": 2, "bytes": size, "calls_a_run": n})
    model = b.o.model or os.path.join(TOP, "jobs/demo-model")
    prefill, token = [], []
    for _ in range(b.repeat(10, 5)):
        one, two = (json.loads(run([helper("coll"), "forward", model, "auto", n, "512", "32", "5"], 60))["runs"]
                    for n in ("1", "2"))
        for runs, key in ((prefill, "prefill_ms"), (token, "token_ms")):
            runs.append(min(r[key] for r in one) / min(r[key] for r in two))
    setting = {"engines": 2, "threads": 1, "prompt_tokens": 512, "pairs": len(prefill)}
    b.add(group, "prompt of 512 tokens against one engine", "x", prefill, limit=(">=", 1.6), better="more", setting=setting)
    b.add(group, "a token against one engine", "x", token, better="more", setting=setting)


def http(b):
    """Requests that need no engine, beside the HTTP library alone."""
    seconds, n = b.repeat(1.0, 0.5), b.repeat(5, 3)

    def measure(port, path, name):
        for connections in (64, 1):
            runs = [load(port, path, connections=connections, seconds=seconds) for _ in range(n)]
            b.add("HTTP", f"{name}, {connections} connection{'s' * (connections > 1)}", "requests/s",
                  [r["requests"] / r["seconds"] for r in runs], better="more",
                  setting={"connections": connections, "http_threads": 2, "seconds": seconds})

    with Bare(2) as bare:
        measure(bare.port, "/", "libmicrohttpd alone")
    with b.job(b.o.ranks) as job:
        measure(job.port, "/health", "/health")
        measure(job.port, "/v1/models", "/v1/models")


def plane(b):
    """The control plane alone: the engine does no maths. Beside the HTTP library alone, in turn with it."""
    seconds, n = b.repeat(2.0, 1.0), b.repeat(5, 3)
    body, stream = completion(1, False), completion(100, True)
    for ranks in sorted({2, b.o.ranks}):
        group = f"Control plane: null engine, {ranks} ranks"
        with Bare(2) as bare, b.job(ranks, "--engine", "null") as job:
            for connections in (1, 64):
                job.load("/v1/completions", body=body, connections=connections, seconds=0.5, tokens=1)
                before = histogram(job.metrics(), FIRST_CHUNK)
                ours, alone = [], []
                for _ in range(n):
                    alone.append(load(bare.port, "/", connections=connections, seconds=seconds / 2))
                    ours.append(job.load("/v1/completions", body=body, connections=connections, seconds=seconds, tokens=1))
                rate = [r["requests"] / r["seconds"] for r in ours]
                share = [r / (a["requests"] / a["seconds"]) for r, a in zip(rate, alone)]
                shape = {"ranks": ranks, "connections": connections, "output_tokens": 1, "http_threads": 2}
                name = f"1-token completion, {connections} connection{'s' * (connections > 1)}"
                many = connections > 1
                b.add(group, name, "requests/s", rate, limit=(">=", 40000 if many else 5000), setting=shape, better="more")
                b.add(group, f"{name}: of libmicrohttpd alone", "x", share, limit=(">=", 0.3) if many else None,
                      setting=shape, better="more")
                for key, limit in (("p50", None if many else 0.2), ("p99", None if many else 0.6)):
                    b.add(group, f"{name}, {key}", "ms", [r["latency_ms"][key] for r in ours],
                          limit=("<=", limit) if limit else None, setting=shape)
                b.add(group, f"reserve, dispatch, first answer inside the job, {connections} connection{'s' * many}, p50", "us",
                      [1e6 * median_of(histogram(job.metrics(), FIRST_CHUNK), before)], setting=shape)
            events, mock = [], []
            for _ in range(n):
                streams = {"body": stream, "connections": 32, "requests": 1280, "tokens": 100}
                r, m = job.load("/v1/completions", **streams), load(bare.port, "/v1/completions", **streams)
                events.append(r["tokens"] / r["seconds"])
                mock.append(m["tokens"] / m["seconds"])
            b.add(group, "SSE events, 32 streams of 100", "events/s", events, better="more",
                  setting={"ranks": ranks, "streams": 32, "output_tokens": 100})
            b.add(group, "SSE events, 32 streams of 100: of a server with nothing behind it", "x",
                  [e / m for e, m in zip(events, mock)], limit=(">=", 0.5), better="more",
                  setting={"ranks": ranks, "streams": 32, "output_tokens": 100})
    with b.job(2, "--engine", "null", "--router", "round_robin") as job: # 200 requests/s: all ranks sleep before most of them
        job.load("/v1/completions", body=body, connections=8, rate=200, seconds=seconds, tokens=1)
        far = [1e6 * median_of(histogram(job.metrics(), FIRST_CHUNK, {1}))]
        b.add("Control plane: null engine, 2 ranks", "dispatch to first answer of the other rank, which sleeps, p50", "us", far,
              limit=("<=", 100), setting={"ranks": 2, "requests_per_s": 200, "router": "round_robin"})
    with b.job(b.o.ranks, "--engine", "null") as job:
        group = f"Control plane: null engine, {b.o.ranks} ranks"
        b.add(group, "mpirun to /health 200", "ms", [job.ready_seconds * 1e3], limit=("<=", 1000), setting={"ranks": b.o.ranks})
        time.sleep(1)
        b.add(group, "PSS of all processes", "MB", [job.pss_mb()], limit=("<=", 80), setting={"ranks": b.o.ranks})


def overload(b):
    """Open-loop load below and far beyond what the job can do: what it serves must not fall, and who waits must not wait in vain."""
    step_us, slots, tokens, waiting = 2000, 16, 10, 32
    body = completion(tokens, False)
    options = ("--engine", "null", "--null-step-us", str(step_us), "--max-num-seqs", str(slots),
               "--max-queued-requests", str(waiting))
    with b.job(2, *options) as job:
        full = job.load("/v1/completions", body=body, connections=2 * slots, seconds=b.repeat(3.0, 1.5), tokens=tokens)
        capacity = full["requests"] / full["seconds"]
        shape = {"ranks": 2, "slots": 2 * slots, "queue": waiting, "null_step_us": step_us, "output_tokens": tokens}
        group = f"Overload: null engine, 2 replicas of {slots} slots, {step_us} us a step"
        b.add(group, "capacity (closed loop, all slots)", "requests/s", [capacity], better="more", setting=shape)
        best = 0
        for times in (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0):
            r = job.load("/v1/completions", body=body, connections=512, seconds=b.repeat(4.0, 2.0), tokens=tokens,
                         rate=times * capacity)
            done = r["requests"] - r["refused"]
            goodput = done / r["seconds"]
            best = max(best, goodput)
            bar = "#" * round(40 * goodput / (1.1 * capacity))
            b.add(group, f"goodput at {times:g} x capacity", "requests/s", [goodput], better="more",
                  limit=(">=", 0.9 * best) if times > 1 else None, note=bar,
                  setting=dict(shape, offered=times * capacity, refused=r["refused"], unsent=r["unsent"],
                               p50_ms=r["latency_ms"]["p50"], p99_ms=r["latency_ms"]["p99"]))
            b.add(group, f"latency of the served, p99, at {times:g} x", "ms", [r["latency_ms"]["p99"]], setting=shape)


def slo(b):
    """Open-loop load with a service level: how many a second have their first token in time, with and without admission."""
    step_us, slots, tokens, level = 2000, 16, 10, 60
    body = completion(tokens, True)
    options = ("--engine", "null", "--null-step-us", str(step_us), "--max-num-seqs", str(slots), "--slo-ttft-ms", str(level))
    shape = {"ranks": 2, "slots": 2 * slots, "null_step_us": step_us, "output_tokens": tokens, "slo_ttft_ms": level}
    group = f"Service level: first token within {level} ms; null engine, 2 replicas of {slots} slots, {step_us} us a step"
    with b.job(2, *options) as none, b.job(2, *options, "--admission", "slo") as kept:
        jobs = (("none", none), ("slo", kept))
        full = [job.load("/v1/completions", body=body, connections=2 * slots, seconds=b.repeat(2.0, 1.0), tokens=tokens)
                for _, job in jobs]
        capacity = sum(r["requests"] / r["seconds"] for r in full) / len(full)
        b.add(group, "capacity (closed loop, all slots)", "requests/s", [capacity], better="more", setting=shape)
        for times in (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0):
            for name, job in jobs:
                r = job.load("/v1/completions", body=body, connections=512, seconds=b.repeat(4.0, 2.0), tokens=tokens,
                             rate=times * capacity, within=level)
                goodput = r["within"] / r["seconds"]
                served = r["requests"] - r["refused"]
                words = (f"{100 * r['within'] / max(served, 1):.0f} % of {served} served; {r['refused']} refused; first token "
                         f"p50 {r['first_ms']['p50']:.0f} ms, p99 {r['first_ms']['p99']:.0f} ms")
                b.add(group, f"in time at {times:g} x capacity, admission {name}", "requests/s", [goodput], better="more",
                      note=words, setting=dict(shape, admission=name, offered=times * capacity, refused=r["refused"],
                                               served=served, unsent=r["unsent"], first_p50_ms=r["first_ms"]["p50"],
                                               first_p99_ms=r["first_ms"]["p99"]))


def loading(b):
    """A bf16 model of the page cache into the engine's layout, beside reading the same file with as many threads."""
    megabytes, rounds = b.repeat(1000, 500), b.repeat(5, 3)
    folder = os.environ.get("TMPDIR", "/tmp")
    if shutil.disk_usage(folder).free < 2e6 * megabytes:
        raise Failed(f"{folder}: no room for a model of {megabytes} MB")
    out = json.loads(run([helper("weights"), str(megabytes), folder, str(rounds)], 120))
    group, setting = f"Loading {megabytes} MB of bf16, cached", {"bytes": out["bytes"], "threads": out["threads"]}
    for key, what in (("read", "plain read, into a small buffer"), ("copy", "plain copy in memory"),
                      ("read_new", "plain read, into new shared memory"), ("load_new", "load, into new shared memory"),
                      ("read_touched", "plain read, into memory that has its pages"),
                      ("load_touched", "load, into memory that has its pages")):
        b.add(group, what, "GB/s", out[key], better="more", setting=dict(setting, gb_per_cpu_second=out[key + "_cpu"]))
    for kind, limit in (("new", (">=", 80)), ("touched", None)):
        shares = [100 * mine / plain for mine, plain in zip(out[f"load_{kind}_cpu"], out[f"read_{kind}_cpu"])]
        b.add(group, f"load by plain read, {'new' if kind == 'new' else 'touched'} memory, processor time", "%", shares,
              better="more", limit=limit, setting=setting)
    out = json.loads(run([helper("weights"), str(megabytes), folder, str(rounds), "cold"], 300))
    group = f"Loading {megabytes} MB of bf16, not in the page cache"
    for key, what in (("read", "plain read"), ("read_direct", "O_DIRECT, 1 MiB at a time"),
                      ("read_direct_large", "O_DIRECT, 8 MiB at a time"), ("load_new", "load, into new shared memory"),
                      ("load_touched", "load, into memory that has its pages")):
        if key in out:  # tmpfs has no O_DIRECT
            b.add(group, what, "GB/s", out[key], better="more", setting=dict(setting, gb_per_cpu_second=out[key + "_cpu"]))


SECTIONS = {"build": build, "start": start, "idle": idle, "slots": slots, "serve": serve, "forward": forward,
            "parallel": parallel, "http": http, "plane": plane, "hosts": hosts.measure, "stages": hosts.stages,
            "overload": overload, "slo": slo, "tokenize": tokenizers_bench.measure, "load": loading}


# ---- the whole -------------------------------------------------------------------------------------------------------
def parse():
    p = argparse.ArgumentParser(prog="bench", description="Figures of mpiserve on this machine.")
    p.add_argument("--program", default=os.path.join(TOP, "mpiserve"), help="the built program")
    p.add_argument("--model", default="", help="folder of a model; without it the demo model")
    p.add_argument("--ranks", type=int, default=8, help="ranks of the large job")
    p.add_argument("--quick", action="store_true", help="fewer and shorter runs, under a minute")
    p.add_argument("--build", action="store_true", help="time `make` from clean too, in a copy of the tree")
    p.add_argument("--idle-seconds", type=float, default=0, help="how long the idle job is watched (30, quick: 8)")
    p.add_argument("--only", default="", help=f"some of: {','.join(SECTIONS)}")
    p.add_argument("--json", nargs="?", const="-", metavar="FILE",
                   help="one JSON object to FILE, or to standard output (then the table goes to standard error)")
    o = p.parse_args()
    o.program = os.path.abspath(o.program)
    o.mpirun = os.environ.get("MPISERVE_MPIRUN", "mpirun")
    o.compiler = os.environ.get("CC", "gcc")
    o.sections = o.only.split(",") if o.only else [s for s in SECTIONS if s != "build" or o.build]
    for name in o.sections:
        if name not in SECTIONS:
            p.error(f"--only {name}: not one of {', '.join(SECTIONS)}")
    if not os.access(o.program, os.X_OK):
        p.error(f"{o.program} is not there: run `make`")
    return o


def stop(number, _):
    raise KeyboardInterrupt


def report(b, seconds):
    out = sys.stderr if b.o.json == "-" else sys.stdout
    machine.print_machine(b.machine, out)
    if b.figures:
        print_table(b.figures, out)
        if any(f.peer for f in b.figures):
            print(f"\n{PEER_NOTE}", file=out)
    worst = max([f.busy for f in b.figures], default=0)
    if worst > 0.1:
        print(f"\nnote: other work had up to {worst:.0%} of this machine before a figure (--json says which): "
              "its timings are worse than the program", file=out)
    for f in b.failures:
        print(f"did not run: {f['section']}: {f['error']}", file=out)
    judged = [f for f in b.figures if f.limit]
    print(f"\n{len(b.figures)} figures in {seconds:.0f} s; of {len(judged)} targets {sum(f.met() for f in judged)} met",
          file=out)
    if b.o.json:
        text = json.dumps({"machine": b.machine, "quick": b.o.quick, "seconds": round(seconds, 1),
                           "figures": [f.json() for f in b.figures], "failures": b.failures}, indent=1)
        if b.o.json == "-":
            print(text)
        else:
            with open(b.o.json, "w") as f:
                f.write(text + "\n")


def main():
    for s in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, stop)
    started = time.monotonic()
    b = Bench(parse())
    for name in b.o.sections:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            b.busy = round(machine.busy_share(0.3), 3)
            SECTIONS[name](b)
        except (Failed, OSError, KeyError, ValueError, subprocess.SubprocessError) as e:
            text = str(e) if isinstance(e, Failed) else f"{type(e).__name__}: {e}"
            print(f"  did not run: {text}", file=sys.stderr, flush=True)
            b.failures.append({"section": name, "error": text})
    report(b, time.monotonic() - started)
    return 1 if b.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
