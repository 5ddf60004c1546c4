"""What the end-to-end tests share: TAP, jobs started by `mpiserve up`, HTTP with server-sent events, processes.

A test file is a list of functions given to run(); each is one case, and takes no arguments:

    from harness import *
    def answers():
        with Job("--compute", "f32", ranks=2) as job:
            equal(job.chat("What is 17 + 25?")["choices"][0]["message"]["content"], "42")
    run(answers)

Every wait is bounded. Each job has a temporary folder of its own (TMPDIR), so that leftovers can be looked for. Only
processes started here are ever signalled. Python 3.9, standard library only.
"""
import contextlib
import glob
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(TOP, os.environ.get("BUILD", "build"))
PROGRAM = os.path.join(TOP, os.environ.get("PROGRAM", "mpiserve"))
DEMO = os.path.join(TOP, "jobs/demo-model")
SLOW = 5 if os.environ.get("SANITIZE") else 1  # sanitizers: waits are longer, promises about time are not judged
START_LIMIT = 30 * SLOW
os.environ.setdefault("ASAN_OPTIONS", "detect_leaks=0")  # MPI keeps memory until the process ends


# ---- cases and TAP ---------------------------------------------------------------------------------------------------
class Skip(Exception):
    pass


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def equal(got, wanted, what=""):
    check(got == wanted, f"{what + ': ' if what else ''}got {got!r:.600}, wanted {wanted!r:.600}")


def run(*cases):
    """Runs the functions in order and ends the process. `t_x.py name...` runs only those."""
    wanted = sys.argv[1:]
    cases = [c for c in cases if not wanted or c.__name__ in wanted]
    print(f"1..{len(cases)}", flush=True)
    failed = 0
    for number, case in enumerate(cases, 1):
        name, started = case.__name__.replace("_", " "), time.monotonic()
        try:
            case()
            print(f"ok {number} - {name} # {time.monotonic() - started:.2f} s", flush=True)
        except Skip as reason:
            print(f"ok {number} - {name} # SKIP {reason}", flush=True)
        except Exception as e:
            failed += 1
            print(f"not ok {number} - {name}", flush=True)
            way = [f"{os.path.basename(f.filename)}:{f.lineno}" for f in traceback.extract_tb(e.__traceback__)[1:]]
            lines = f"{type(e).__name__}: {e}\nat {' > '.join(way)}".splitlines()
            print("".join(f"# {line}\n" for line in lines), end="", flush=True)
    sys.exit(1 if failed else 0)


def until(condition, seconds, what):
    """Waits until condition() is true and returns its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        check(time.monotonic() < end, f"not within {seconds} s: {what}")
        time.sleep(0.01)


def together(n, work):
    """work(0) .. work(n - 1), each in a thread; returns their results, raises the first error."""
    results, errors = [None] * n, []

    def one(i):
        try:
            results[i] = work(i)
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120 * SLOW)
        check(not t.is_alive(), "a thread does not end")
    if errors:
        raise errors[0]
    return results


# ---- processes -------------------------------------------------------------------------------------------------------
class Process:
    """A process by pid and start time, so that a pid given away again is not mistaken for it."""

    def __init__(self, pid):
        self.pid = pid
        self.name, self.parent, self.start = self.stat()

    def stat(self):
        with open(f"/proc/{self.pid}/stat") as f:
            text = f.read()
        head, tail = text.rsplit(")", 1)
        fields = tail.split()
        if fields[0] in "ZX":
            raise ProcessLookupError(self.pid)
        return head.split("(", 1)[1], int(fields[1]), int(fields[19])

    def alive(self):
        try:
            return self.stat()[2] == self.start
        except (OSError, ValueError):
            return False

    def cpu_seconds(self):
        with open(f"/proc/{self.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self, sig=signal.SIGKILL):
        if self.alive():
            with contextlib.suppress(ProcessLookupError):  # it may end in between
                os.kill(self.pid, sig)

    def __repr__(self):
        return f"{self.name}({self.pid})"


def all_processes():
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                found.append(Process(int(entry)))
            except (OSError, ValueError):
                pass
    return found


def descendants(pid):
    everyone, known = all_processes(), {pid}
    found = []
    while True:
        more = [p for p in everyone if p.parent in known and p.pid not in known]
        if not more:
            return found
        found += more
        known.update(p.pid for p in more)


# ---- HTTP ------------------------------------------------------------------------------------------------------------
class Answer:
    def __init__(self, response, body):
        self.status, self.headers, self.body = response.status, response.headers, body

    @property
    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:300]!r}"


class Stream:
    """The events of a streamed answer; iterating gives the JSON objects. `done` says whether [DONE] was seen."""

    def __init__(self, connection, response):
        self.connection, self.response, self.done, self.status = connection, response, False, response.status
        self.headers, self.comments = response.headers, 0

    def __iter__(self):
        event = b""
        while True:
            line = self.response.readline()
            if not line:
                return
            if line == b"\n":
                if event.startswith(b"data: [DONE]"):
                    self.done = True
                elif event:
                    check(event.startswith(b"data: "), f"a strange event: {event!r}")
                    check(not self.done, "an event behind [DONE]")
                    yield json.loads(event[6:])
                event = b""
            elif line.startswith(b":"):
                self.comments += 1
            else:
                event += line.rstrip(b"\n")

    def close(self):
        """Leaves in the middle, as a client that is killed would."""
        if self.connection.sock:
            self.connection.sock.close()
        self.response.close()
        self.connection.close()


# ---- jobs ------------------------------------------------------------------------------------------------------------
class Job:
    """A running `mpiserve up`. The port is a free one unless --port is among the options."""
    address = "127.0.0.1"
    on = ()  # what the command stands behind

    def __init__(self, *options, ranks=2, model=DEMO, env=None, program=PROGRAM, wait=True, folder=None,
                 cwd=None, user=None):
        """model: the first argument; a model or a job file. ranks: None leaves their number to others. user: a uid."""
        self.own_folder = folder is None
        self.folder = folder or tempfile.mkdtemp(prefix="mpt-", dir="/tmp")
        self.uid, other = os.getuid() if user is None else user, {}
        if self.uid != os.getuid():
            os.chown(self.folder, self.uid, -1)
            other = {"user": self.uid, "group": 65534, "extra_groups": []}
        self.endpoint = None
        port = () if any(o.startswith("--port") for o in options) else ("--port", "0")
        count = () if ranks is None else ("-n", str(ranks))
        command = [*self.on, program, "up", *count, *([model] if model else []), *port, *options]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MPISERVE_", "OMPI_"))}
        if "MPISERVE_MPIRUN" in os.environ:
            environment["MPISERVE_MPIRUN"] = os.environ["MPISERVE_MPIRUN"]
        environment.update(TMPDIR=self.folder, **(env or {}))
        self.output_path = os.path.join(self.folder, "output")
        self.started = time.monotonic()
        with open(self.output_path, "wb") as output:
            self.up = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                       env=environment, start_new_session=True, cwd=cwd, **other)
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.close()
                raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """The end by force, for a job that was not stopped; then its temporary folder goes."""
        if self.up.poll() is None:
            below = descendants(self.up.pid)
            self.up.kill()
            self.up.wait()
            for p in below:
                p.kill()
        if self.own_folder:
            for shm in self.shm_left():
                shutil.rmtree(shm, ignore_errors=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    def output(self):
        with open(self.output_path, errors="replace") as f:
            return f.read()

    # -- its folder --
    def base(self):
        return os.path.join(self.folder, f"mpiserve-{self.uid}")

    def dir(self):
        """The job's folder, or None while there is none."""
        found = [d for d in glob.glob(os.path.join(self.base(), "*")) if os.path.isdir(d) and not d.endswith(".new")]
        return found[0] if found else None

    def read_endpoint(self):
        try:
            with open(os.path.join(self.dir() or "/nonexistent", "endpoint.json")) as f:
                self.endpoint = json.load(f)
        except FileNotFoundError:
            pass
        return self.endpoint

    def wait_ready(self, seconds=START_LIMIT):
        def ready():
            check(self.up.poll() is None, f"up ended with {self.up.returncode}:\n{self.output()}")
            return (self.read_endpoint() or {}).get("state") == "READY" and "  try   " in self.output()
        try:
            until(ready, seconds, "the job is ready")
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.output()}\n{self.log()}") from None
        return time.monotonic() - self.started

    def log(self):
        try:
            with open(os.path.join(self.dir() or "/nonexistent", "run.log"), errors="replace") as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def shm_left(self):
        """What the job has in /dev/shm. (The owner file names the process of `up`.)"""
        mine = []
        for folder in glob.glob(f"/dev/shm/mpiserve-{self.uid}-*"):
            try:
                with open(os.path.join(folder, "owner")) as f:
                    if int(f.read().split()[0]) == self.up.pid:
                        mine.append(folder)
            except (OSError, ValueError, IndexError):
                pass
        return mine

    def leftovers(self):
        """Everything but what is meant to stay: the log of a failure."""
        kept = {self.output_path, os.path.join(self.base(), "last-failure.log"), self.base()}
        files = [os.path.join(top, f) for top, folders, names in os.walk(self.folder) for f in folders + names]
        return [f for f in files if f not in kept] + self.shm_left()

    # -- its processes --
    def processes(self):
        return descendants(self.up.pid)

    def mpirun(self):
        return [p for p in self.processes() if p.parent == self.up.pid and p.name.startswith(("mpirun", "prterun"))][0]

    def agents(self):
        """rank -> process."""
        with open(os.path.join(self.dir(), "pids")) as f:
            return {int(rank): Process(int(pid)) for rank, pid in (line.split() for line in f)}

    def engines(self):
        """rank -> engine process."""
        rank_of = {p.pid: rank for rank, p in self.agents().items()}
        return {rank_of[p.parent]: p for p in self.processes()
                if p.name.startswith("mpiserve-eng") and p.parent in rank_of}

    def signal(self, sig):
        self.up.send_signal(sig)

    def wait(self, seconds=20 * SLOW):
        """The exit status of up."""
        try:
            return self.up.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"up does not end within {seconds} s:\n{self.output()}\n{self.log()}") from None

    # -- HTTP --
    def key(self):
        path = self.endpoint["key_file"]
        if not path:
            return {}
        with open(path) as f:
            name, value = f.read().strip().split(": ", 1)
        return {name: value}

    def connect(self, timeout=60 * SLOW):
        return http.client.HTTPConnection(self.address, self.endpoint["port"], timeout=timeout)

    def send(self, method, path, body=None, headers=None, key=True, timeout=60 * SLOW):
        connection = self.connect(timeout)
        all_headers = dict(self.key() if key else {})
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
            all_headers["Content-Type"] = "application/json"
        all_headers.update(headers or {})
        connection.request(method, path, body, all_headers)
        return connection, connection.getresponse()

    def call(self, method, path, body=None, **more):
        connection, response = self.send(method, path, body, **more)
        with contextlib.closing(connection):
            return Answer(response, response.read())

    def get(self, path, **more):
        return self.call("GET", path, **more)

    def post(self, path, body, **more):
        return self.call("POST", path, body, **more)

    def stream(self, path, body, **more):
        connection, response = self.send("POST", path, dict(body, stream=True), **more)
        if response.status != 200:
            raise AssertionError(f"{response.status}: {response.read()[:500]!r}")
        check(response.headers["Content-Type"].startswith("text/event-stream"), "not an event stream")
        return Stream(connection, response)

    def chat(self, text, **fields):
        messages = text if isinstance(text, list) else [{"role": "user", "content": text}]
        answer = self.post("/v1/chat/completions", dict({"messages": messages, "temperature": 0}, **fields))
        equal(answer.status, 200, f"status of a chat {answer}")
        return answer.json

    def metric(self, name, **labels):
        """The sum of a metric over all label sets that hold these labels; None when there is none."""
        total = None
        for line in self.get("/metrics", key=False).body.decode().splitlines():
            head, _, value = line.rpartition(" ")
            if head.split("{")[0] == name and all(f'{k}="{v}"' in head for k, v in labels.items()):
                total = (total or 0) + float(value)
        return total

    def healthy(self):
        try:
            return self.get("/health", key=False, timeout=5).status == 200
        except OSError:
            return False


def ask_chat(job, chat):
    """One of expected_chats: ids and text are the reference's."""
    answer = job.post("/v1/chat/completions", {"messages": chat["messages"], "temperature": 0, "return_token_ids": True,
                                               "max_completion_tokens": len(chat["ids"]) + 8})
    equal(answer.status, 200, f"{answer}")
    choice = answer.json["choices"][0]
    equal((choice["token_ids"], choice["message"]["content"]), (chat["ids"], chat["text"]))


def streamed_until(job, body, after, act):
    """The text of a streamed completion, and whether it came to its end; act() once, when so many letters have come (how many events
    they come in is nobody's promise)."""
    text, acted = "", False
    stream = job.stream("/v1/completions", body)
    for event in stream:
        check("error" not in event, event)
        text += "".join(c["text"] for c in event["choices"])
        if len(text) >= after and not acted:
            acted = True
            act()
    check(acted, f"the text had only {len(text)} letters")
    return text, stream.done


def hung_in(log):
    """Ranks of which a job's log says that their engine hangs: what their agent saw, or what those say that wait for them."""
    silent = re.findall(r"engine of rank (\d+) \([^)]*\) (?:hung|was killed by its agent: (?!another engine))", log)
    return {int(rank) for rank in silent + re.findall(r"\(rank (\d+)\) has not come", log)}


def refused_field(job, body, param, *words, path, status=400):
    """An error that names the field, with these words."""
    answer = job.post(path, body)
    equal(answer.status, status, f"{body!r:.200}: {answer}")
    equal(answer.json["error"]["param"], param, f"{body!r:.200}: {answer}")
    for word in words:
        check(word in answer.json["error"]["message"], f"no {word!r} in {answer}")


def text_of(answer):
    """Of a completion that is not streamed."""
    equal(answer.status, 200, f"{answer}")
    return answer.json["choices"][0]["text"]


def content(answer):
    return answer["choices"][0]["message"]["content"]


def expected_chats():
    with open(os.path.join(DEMO, "expected.json")) as f:
        return json.load(f)
