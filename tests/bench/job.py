"""Processes of the bench: a job started by a bare mpirun, programs of build/tests/bench. All are ended with the bench, also
when it is killed; only processes started here are ever signalled."""
import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(TOP, "tests/e2e"))
from harness import Process, descendants  # noqa: E402

BUILD = os.path.join(TOP, os.environ.get("BUILD", "build"))
START_LIMIT, STOP_LIMIT = 20, 8
libc = ctypes.CDLL(None)


def histogram(metrics, name, engines=None):
    """Counts at or below each bound, over these replicas or all."""
    counts = {}
    for line in metrics.splitlines():
        m = re.match(re.escape(name) + r'_bucket\{(.*)\} (\S+)$', line)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', m.group(1))) if m else {}
        if labels and (engines is None or int(labels["engine"]) in engines):
            counts[float(labels["le"])] = counts.get(float(labels["le"]), 0) + float(m.group(2))
    return counts


def median_of(counts, before=None):
    """Of what came since `before`, linear within a bucket."""
    counts = {bound: n - (before or {}).get(bound, 0) for bound, n in counts.items()}
    half, low, below = counts[float("inf")] / 2, 0.0, 0.0
    for bound in sorted(counts):
        if counts[bound] >= half > 0:
            return low + (bound - low) * (half - below) / (counts[bound] - below)
        low, below = bound, counts[bound]
    raise Failed("no request was answered")


class Failed(Exception):
    """Something did not run."""


def die_with_parent():
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def environment(**more):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MPISERVE_")}
    if os.geteuid() == 0:
        for name in ("OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT"):
            env[name] = env[name + "_CONFIRM"] = "1"
    env.update(more)
    return env


def helper(name):
    path = os.path.join(BUILD, "tests/bench", name)
    if not os.path.exists(path):
        raise Failed(f"{os.path.relpath(path, TOP)} is not there: run `make bench`")
    return path


def run(command, limit, **more):
    """Output of a program that must end within the limit."""
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         preexec_fn=die_with_parent, start_new_session=True, **more)
    try:
        out, err = p.communicate(timeout=limit)
    except BaseException as e:
        end_tree(p)
        if isinstance(e, subprocess.TimeoutExpired):
            raise Failed(f"not within {limit} s: {' '.join(command)[:200]}") from None
        raise
    if p.returncode:
        raise Failed(f"{os.path.basename(command[0])} ended with {p.returncode}: {(err or out).strip()[-400:]}")
    return out


def end_tree(p):
    """The process and all below it, by force."""
    if p.poll() is None:
        below = descendants(p.pid)
        p.kill()
        for other in below:
            other.kill()
    p.wait()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def load(port, path, body=None, connections=1, requests=0, seconds=0.0, tokens=None, limit=60, rate=0.0, within=0):
    """The load client's object. Failed requests fail the figure."""
    command = [helper("load"), "--port", str(port), "--path", path, "--connections", str(connections),
               "--timeout", str(limit)]
    command += ["--requests", str(requests)] if requests else ["--seconds", str(seconds)]
    if rate:
        command += ["--rate", str(rate)]
    if within:
        command += ["--within", str(within)]
    if tokens is not None:
        command += ["--tokens", str(tokens)]
    with tempfile.NamedTemporaryFile("w", prefix="mpb-", suffix=".json") as f:
        if body is not None:
            json.dump(body, f)
            f.flush()
            command += ["--body", f.name]
        p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                             preexec_fn=die_with_parent)
        try:
            out, _ = p.communicate(timeout=limit + 5)
        except BaseException:
            end_tree(p)
            raise
    try:
        result = json.loads(out)
    except ValueError:
        raise Failed(f"the load client ended with {p.returncode}: {out!r}") from None
    if p.returncode:
        raise Failed(f"{result.get('failed', 'all')} of {result.get('requests', '?')} requests to {path} failed: "
                     f"{result.get('error')}")
    return result


class Bare:
    """libmicrohttpd alone."""

    def __init__(self, threads):
        self.p = subprocess.Popen([helper("bare_http"), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  text=True, preexec_fn=die_with_parent)
        line = self.p.stdout.readline()
        if not line:
            self.p.wait()
            raise Failed("bare_http did not start")
        self.port = int(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.p.stdin.close()
        try:
            self.p.wait(2)
        except subprocess.TimeoutExpired:
            end_tree(self.p)
        self.p.stdout.close()


class Job:
    """`mpirun -np N ./mpiserve` as typed, with a folder of its own; ready when /health says 200."""

    def __init__(self, program, ranks, *options, model=None, mpirun="mpirun"):
        self.ranks, self.options = ranks, options
        self.folder = tempfile.mkdtemp(prefix="mpb-", dir="/tmp")
        self.shm = tempfile.mkdtemp(prefix="mpb-", dir="/dev/shm") if os.access("/dev/shm", os.W_OK) else self.folder
        mpi = {f"OMPI_MCA_{part}_backing_directory": self.shm for part in ("btl_vader", "btl_sm", "osc_sm", "osc_rdma")}
        self.port = free_port()
        command = [mpirun, "-np", str(ranks), "--oversubscribe", "--bind-to", "none", program, *([model] if model else []),
                   "--port", str(self.port), "--api-key", "none", *options]
        self.output = open(os.path.join(self.folder, "output"), "w+b")
        self.started = time.monotonic()
        self.p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT,
                                  env=environment(TMPDIR=self.folder, **mpi), start_new_session=True,
                                  preexec_fn=die_with_parent)
        try:
            self.ready_seconds = self.wait_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def said(self):
        self.output.flush()
        with open(self.output.name, errors="replace") as f:
            return f.read()[-1500:]

    def healthy(self):
        """A look at /health that costs the starting job next to nothing: one short-lived connection."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as s:
                s.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                return s.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def wait_ready(self):
        while time.monotonic() < self.started + START_LIMIT:
            if self.healthy():
                return time.monotonic() - self.started
            if self.p.poll() is not None:
                raise Failed(f"the job ended with {self.p.returncode}: {self.said()}")
            time.sleep(0.002)
        raise Failed(f"the job is not ready within {START_LIMIT} s: {self.said()}")

    def close(self):
        """Drains; by force if that takes too long."""
        if self.p.poll() is None and self.healthy():
            self.p.send_signal(signal.SIGUSR1)
            try:
                self.p.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                pass
        end_tree(self.p)
        self.output.close()
        for folder in (self.folder, self.shm):
            shutil.rmtree(folder, ignore_errors=True)

    def text(self, method, path, body=None):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            c.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"} if body else {})
            r = c.getresponse()
            text = r.read()
            if r.status != 200:
                raise Failed(f"{method} {path}: {r.status} {text[:200]!r}")
            return text
        finally:
            c.close()

    def call(self, method, path, body=None):
        return json.loads(self.text(method, path, body))

    def metrics(self):
        return self.text("GET", "/metrics").decode()

    def get(self, path):
        return self.call("GET", path)

    def post(self, path, body):
        return self.call("POST", path, body)

    def load(self, path, **more):
        return load(self.port, path, **more)

    def processes(self):
        return [Process(self.p.pid)] + descendants(self.p.pid)

    def cpu_seconds(self):
        """CPU time of all processes of the job, those that ended and were waited for included."""
        total = 0
        for p in self.processes():
            total += cpu_seconds_of(p.pid)
        return total

    def pss_mb(self):
        total = 0
        for p in self.processes():
            try:
                with open(f"/proc/{p.pid}/smaps_rollup") as f:
                    total += sum(int(line.split()[1]) for line in f if line.startswith("Pss:"))
            except OSError:
                pass
        return total / 1024


def cpu_seconds_of(pid):
    """From /proc/PID/schedstat of every thread, which counts nanoseconds, where the kernel has it; else stat's ticks."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    hz = os.sysconf("SC_CLK_TCK")
    own, children = (int(fields[11]) + int(fields[12])) / hz, (int(fields[13]) + int(fields[14])) / hz
    try:
        exact = 0
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat") as f:
                exact += int(f.read().split()[0])
        own = exact / 1e9
    except (OSError, ValueError):
        pass
    return own + children
