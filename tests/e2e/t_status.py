#!/usr/bin/env python3
"""`mpiserve status`: what it finds, shows and returns, of jobs that run, load, are silent, or answer nonsense; and what
`mpiserve up --publish` writes for it. Slurm's squeue is a script here; t_slurm.py has the real one."""
import socket

from harness import *

STANDIN = os.path.join(BUILD, "tests/e2e/standin")
READY, NOT_READY, USAGE, NONE = 0, 1, 2, 3


class Ground:
    """A temporary folder and a home of their own, and a folder for a squeue."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="mpt-", dir="/tmp")
        self.home = os.path.join(self.folder, "home")
        os.makedirs(f"{self.home}/bin")
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder, ignore_errors=True)

    def status(self, *words, tmp=None):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MPISERVE_", "SLURM_"))}
        env.update(HOME=self.home, TMPDIR=tmp or self.folder, PATH=f"{self.home}/bin:{env['PATH']}",
                   ASAN_OPTIONS="detect_leaks=0")
        return subprocess.run([PROGRAM, "status", *words], env=env, capture_output=True, text=True, timeout=30 * SLOW)

    def one(self, *words, **more):
        """Exit status and the only job of --json."""
        done = self.status("--json", *words, **more)
        check(done.stdout, done)
        [job] = json.loads(done.stdout)["jobs"]
        return done.returncode, job

    def squeue(self, script):
        with open(f"{self.home}/bin/squeue", "w") as f:
            f.write("#!/bin/sh\n" + script)
        os.chmod(f"{self.home}/bin/squeue", 0o755)

    def publish(self, id, **fields):
        """An endpoint file as a job writes it."""
        folder = f"{self.home}/.mpiserve/{id}"
        os.makedirs(folder)
        whole = dict(state="READY", url="http://127.0.0.1:9", host="0.0.0.0", port=9, key_file="", model="m", job="0badcafe",
                     pid=1, ranks=1, node="n", slurm_job=id)
        with open(f"{folder}/endpoint.json", "w") as f:
            json.dump(dict(whole, **fields), f)


def a_running_job():
    with Ground() as ground, Job(ranks=2, env={"MPISERVE_FAULT": "slow-step:10"}) as job:
        seen = ground.status(tmp=job.folder)
        equal(seen.returncode, READY, seen.stderr)
        for text in ("READY", job.endpoint["url"], "1 nodes, 2 ranks, 2 replicas", "0/0/0", "1/0/1", "0 of 64"):
            check(text in seen.stdout, f"{text}: {seen.stdout}")
        check(job.key()["Authorization"].split()[-1] not in seen.stdout + seen.stderr, "the key is shown")
        for words in ((), ("--job", job.endpoint["job"]), ("--run-dir", job.dir())):
            status, found = ground.one(*words, tmp=job.folder)
            equal((status, found["job"], found["state"], found["ready"], found["health"]),
                  (READY, job.endpoint["job"], "READY", True, 200), str(words))
            equal([r["replica_rank"]["rank"] for r in found["topology"]["replicas"]], [0, 1])
        stream = job.stream("/v1/completions", {"prompt": "Once", "ignore_eos": True, "max_tokens": 400})
        next(iter(stream))
        _, busy = ground.one(tmp=job.folder)
        check(busy["generated_tokens_per_s"] > 1, f"tokens flow: {busy['generated_tokens_per_s']}")
        equal(sum(r["slots_in_use"] for r in busy["topology"]["replicas"]), 1, "slots in use")
        check(abs(sum(r["generated_tokens_per_s"] for r in busy["rates"]) - busy["generated_tokens_per_s"]) < 1e-6, busy)
        stream.close()


def no_job():
    with Ground() as ground:
        for words in ((), ("--job", "77"), ("--run-dir", ground.folder)):
            done = ground.status(*words)
            equal((done.returncode, bool(done.stderr)), (NONE, True), str(words))
        equal(json.loads(ground.status("--json").stdout), {"jobs": []})
        ground.publish("5", state="DOWN", url="")
        equal(ground.status().returncode, NONE, "one that has ended")
        status, job = ground.one("--job", "5")
        equal((status, job["state"]), (NOT_READY, "DOWN"), "one that has ended, by its name")


def a_job_that_loads():
    with Ground() as ground, Job("--port", "9", model="models/tiny", program=STANDIN, env={"STANDIN": "slow"}, wait=False) as job:
        until(job.read_endpoint, START_LIMIT, "the job is there")
        status, found = ground.one(tmp=job.folder)
        equal((status, found["state"], found["health"]), (NOT_READY, "LOADING", 0))
        check("cannot connect" in found["reason"], found["reason"])


def published_from_pending_to_down():
    with Ground() as ground:
        folder = f"{ground.home}/.mpiserve/77"
        os.makedirs(os.path.dirname(folder))
        with Job("--publish", folder, "--host", "127.0.0.1", "--port", "9", model="models/tiny", program=STANDIN,
                 env={"SLURM_JOB_ID": "77"}, wait=False) as job:
            states = []

            def ready():
                try:
                    with open(f"{folder}/endpoint.json") as f:
                        e = json.load(f)
                except FileNotFoundError:
                    return None
                if e["state"] not in states[-1:]:
                    states.append(e["state"])
                return e if e["state"] == "READY" else None
            e = until(ready, START_LIMIT, "it is published")
            equal(states[0], "PENDING", "the first state")
            equal((e["key_file"], os.stat(f"{folder}/key").st_mode & 0o777, os.stat(folder).st_mode & 0o777),
                  (f"{folder}/key", 0o600, 0o700))
            equal(os.stat(f"{folder}/endpoint.json").st_mode & 0o777, 0o600)
            until(lambda: "scancel --batch --signal=USR1 77" in job.output(), 5, "it says how to stop it")
            check("run.log" in os.listdir(folder) and folder in job.output(), "the log is published")
            job.signal(signal.SIGUSR1)
            job.signal(signal.SIGUSR1)
            equal(job.wait(), 0, "USR1 drains, twice too")
            with open(f"{folder}/endpoint.json") as f:
                e = json.load(f)
            equal((e["state"], e["url"], e["key_file"]), ("DOWN", "", ""))
            equal(sorted(os.listdir(folder)), ["endpoint.json", "run.log"])
            equal(job.leftovers(), [])


def what_slurm_says():
    with Ground() as ground:
        ground.squeue("echo '7|PENDING|Resources'; echo '8|RUNNING|None'\n")
        status, job = ground.one("--job", "7")
        equal((status, job["state"], job["slurm_state"]), (NOT_READY, "PENDING", "PENDING (Resources)"))
        for id in ("8", "9"):
            ground.publish(id, job=f"job{id}")
        equal(ground.one("--job", "8")[1]["state"], "SILENT", "runs, and does not answer")
        equal(ground.one("--job", "9")[1]["state"], "DOWN", "Slurm does not have it any more")
        equal(ground.status("--job", "10").returncode, NONE)
        ground.squeue("echo 'Unable to contact slurm controller' >&2; exit 1\n")
        equal(ground.one("--job", "9")[1]["state"], "SILENT", "Slurm cannot be asked")
        equal(ground.status("--job", "10").returncode, NONE)


def servers_that_are_something_else():
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    rows = ((b"220 mail.example ESMTP\r\n", "does not speak HTTP"), (b"", "does not speak HTTP"),
            (None, "no answer in time"), (page.replace(b"2\r", b"9\r"), "ends after 2 of 9 bytes"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "in chunks"),
            (b"HTTP/1.1 503 No\r\nContent-Length: 29\r\n\r\n" + b'{"error":{"message":"tired"}}', "tired"),
            (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (65 << 20), "longer than"),
            (page.replace(b"{}", b"{]"), "column"))
    for answer, says in rows:
        with Ground() as ground, socket.create_server(("127.0.0.1", 0)) as server:
            def serve():
                while True:
                    try:
                        connection, _ = server.accept()
                    except OSError:
                        return
                    with contextlib.suppress(OSError):
                        connection.recv(4096)
                        if answer is None:
                            time.sleep(4)
                        connection.sendall(answer or b"")
                    connection.close()
            threading.Thread(target=serve, daemon=True).start()
            ground.publish("5", url=f"http://127.0.0.1:{server.getsockname()[1]}")
            status, job = ground.one("--job", "5")
            check(says in job["reason"], f"{(answer or b'')[:40]}: {job['reason']}")
            equal(status, READY if says == "column" else NOT_READY, job["reason"])
            server.shutdown(socket.SHUT_RDWR)


def wrong_usage_and_wrong_files():
    with Ground() as ground:
        for words, says in ((("--jsno",), "--jsno"), (("--job",), "needs a value"), (("--job", "1", "--run-dir", "x"), "give one"),
                            (("--job", "../x"), "no name of a job"), (("5",), "5")):
            done = ground.status(*words)
            equal((done.returncode, says in done.stderr), (USAGE, True), f"{words}: {done.stderr}")
        equal(ground.status("--help").returncode, 0)
        with open(f"{ground.folder}/endpoint.json", "w") as f:
            f.write("{")
        equal(ground.status("--run-dir", ground.folder).returncode, USAGE, "a broken file")
        for url in ("ftp://x", "http://", "http://127.0.0.1:x", "http://127.0.0.1:9/path"):
            ground.publish("6", url=url)
            check("no address" in ground.one("--job", "6")[1]["reason"], url)
            shutil.rmtree(f"{ground.home}/.mpiserve/6")


run(a_running_job, no_job, a_job_that_loads, published_from_pending_to_down, what_slurm_says,
    servers_that_are_something_else, wrong_usage_and_wrong_files)
