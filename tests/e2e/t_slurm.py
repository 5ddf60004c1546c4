#!/usr/bin/env python3
"""slurm/serve.slurm in a real Slurm of two hosts (tests/lab): from sbatch to the last trace, over the network."""
import re

from harness_hosts import *

SLURM = os.path.join(TOP, "tests/lab/slurm")
LONG = {"prompt": "Once", "ignore_eos": True, "max_tokens": 150, "n": 2, "temperature": 1, "seed": 3}
SLOWLY = {"MPISERVE_FAULT": "slow-step:10"}


class Cluster(Lab):
    """Two hosts with Slurm. /dev/shm is each host's own, so it plays the part of a node's local disk (TMPDIR)."""

    def __init__(self):
        super().__init__(2)
        self.home = tempfile.mkdtemp(prefix="mpt-", dir="/tmp")
        self.top = f"{self.home}/top"  # looks like the checkout, whichever build is tested
        os.mkdir(self.top)
        os.symlink(PROGRAM, f"{self.top}/mpiserve")
        shutil.copytree(os.path.join(TOP, "slurm"), f"{self.top}/slurm")
        kept = ("MPISERVE_", "OMPI_", "SLURM_", "SBATCH_")
        self.environment = {k: v for k, v in self.environment.items() if not k.startswith(kept)}

    def __enter__(self):
        super().__enter__()
        self.before = {k: {p.pid for p in self.processes(k)} for k in range(self.n)}
        return self

    def __exit__(self, *_):
        super().__exit__()
        shutil.rmtree(self.home, ignore_errors=True)

    def call(self, *words, check_status=True):
        return self.run(SLURM if words[0] in ("up", "wait") else HOSTS, *words, check_status=check_status)

    def run(self, *words, cwd=TOP, check_status=True):
        done = subprocess.run(words, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=90)
        check(not check_status or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}")
        return done

    def slurm(self, *words, env=None, **more):
        pairs = dict({"HOME": self.home, "TMPDIR": "/dev/shm"}, **(env or {}))
        if "MPISERVE_MPIRUN" in os.environ:
            pairs["MPISERVE_MPIRUN"] = os.environ["MPISERVE_MPIRUN"]
        return self.run(SLURM, "exec", "env", *(f"{k}={v}" for k, v in pairs.items()), *words, **more)

    def status(self, *words):
        return self.slurm(PROGRAM, "status", *words, check_status=False)

    def left(self):
        """Processes and files that were not there before the first job."""
        found = [f"host {k}: {p}" for k in range(self.n) for p in self.processes(k)
                 if p.pid not in self.before[k] and not p.name.startswith("slurmstepd")]
        return found + [f"host {k}: {f}" for k in range(self.n) for f in self.files(k)]

    def nothing_is_left(self):
        try:
            until(lambda: not self.left(), 8 * SLOW, "nothing is left")
        except AssertionError:
            raise AssertionError(f"left: {self.left()}") from None


class SlurmJob(Job):
    """sbatch [SBATCH...] slurm/serve.slurm [OPTIONS...]"""

    def __init__(self, cluster, *options, sbatch=("-N2",), script="slurm/serve.slurm", cwd=None, env=None, wait=True):
        self.cluster, self.endpoint, self.uid = cluster, None, os.getuid()
        self.started = time.monotonic()
        done = cluster.slurm("sbatch", "--parsable", "-o", f"{cluster.home}/out.%j", *sbatch, script, *options, env=env,
                             cwd=cwd or cluster.top)
        self.id = done.stdout.strip()
        self.folder = f"{cluster.home}/.mpiserve/{self.id}"
        self.output_path = f"{cluster.home}/out.{self.id}"
        if wait:
            self.wait_for("READY")
            self.seconds = time.monotonic() - self.started

    def close(self):
        self.cluster.slurm("scancel", self.id, check_status=False)

    def read_endpoint(self):
        try:
            with open(f"{self.folder}/endpoint.json") as f:
                self.endpoint = json.load(f)
        except FileNotFoundError:
            pass
        return self.endpoint

    def output(self):
        try:
            return super().output()
        except FileNotFoundError:
            return ""

    def wait_for(self, state):
        def there():
            now = (self.read_endpoint() or {}).get("state")
            check(now != "DOWN" or state == "DOWN", f"the job is down:\n{self.output()}")
            return now == state and (state != "READY" or "  try   " in self.output())
        try:
            until(there, START_LIMIT, f"the endpoint file says {state}")
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.output()}") from None

    def connect(self, timeout=60 * SLOW):
        host, port = re.fullmatch(r"http://node(\d):(\d+)", self.endpoint["url"]).groups()
        return http.client.HTTPConnection(f"{NETWORK}.{int(host) + 1}", int(port), timeout=timeout)

    def end(self):
        """Slurm's last word on it."""
        return self.cluster.call("wait", self.id, "60").stdout.strip()

    def ends(self, state):
        equal(self.end(), state, f"Slurm's state; the job's output:\n{self.output()}\n")
        self.wait_for("DOWN")
        check(not os.path.exists(f"{self.folder}/key"), "the key goes with the job")
        self.cluster.nothing_is_left()


def two_hosts_from_sbatch_to_the_end_of_a_drain():
    with Cluster() as cluster, SlurmJob(cluster, env=SLOWLY) as job:
        print(f"# sbatch to READY on 2 hosts: {job.seconds:.1f} s")
        text, e = job.output(), job.endpoint
        equal({r["host"] for r in job.get("/v1/topology").json["ranks"]}, {"node0", "node1"}, "hosts")
        equal((e["slurm_job"], e["node"], e["ranks"]), (job.id, "node0", 4), "in the endpoint file")
        for name in ("endpoint.json", "key"):
            equal(os.stat(f"{job.folder}/{name}").st_mode & 0o777, 0o600, f"mode of {name}")
        equal(e["key_file"], f"{job.folder}/key", "the key file that others see")
        check(job.key()["Authorization"].split()[-1] not in text + job.log(), "the key is shown")
        check(re.search(rf"ssh -N -L {e['port']}:node0:{e['port']} \w+@login", text), f"the line for a laptop: {text}")
        example = re.search(r"^  try   (.*)$", text, re.M).group(1)
        answer = cluster.call("exec", "login", "sh", "-c", example).stdout
        equal(content(json.loads(answer)), "17 + 25 = 42", "the example as printed")
        shown = cluster.status("--job", job.id)
        check(shown.returncode == 0 and "READY" in shown.stdout and "2 nodes, 4 ranks" in shown.stdout, shown)
        stream = job.stream("/v1/completions", LONG)
        events = iter(stream)
        next(events)
        for _ in range(2):  # as often as one likes
            cluster.slurm("scancel", "--batch", "--signal=USR1", job.id)
        job.wait_for("DRAINING")
        finished = sum(c["finish_reason"] is not None for event in events for c in event.get("choices", []))
        equal((finished, stream.done), (2, True), "the running stream ends as it should")
        job.ends("COMPLETED")
        gone = cluster.status("--job", job.id)
        check(gone.returncode == 1 and "DOWN" in gone.stdout, gone)


def plain_scancel_leaves_nothing():
    with Cluster() as cluster, SlurmJob(cluster) as job:
        cluster.slurm("scancel", job.id)
        job.ends("CANCELLED")


def a_job_that_cannot_start_says_why():
    with Cluster() as cluster:
        taken = subprocess.Popen([HOSTS, "exec", "0", sys.executable, "-m", "http.server", "8123"], env=cluster.environment,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(lambda: cluster.call("exec", "0", "sh", "-c", "ss -ltn | grep -c :8123 || true").stdout.strip() == "1", 10,
                  "the port is taken")
            for options, says in ((("/nowhere/model",), "/nowhere/model"), (("--port", "8123"), "port 8123: is in use"),
                                  (("--prot", "1"), "did you mean --port")):
                with SlurmJob(cluster, *options, wait=False) as job:
                    equal(job.end(), "FAILED", f"{options}: {job.output()}")
                    check(time.monotonic() - job.started < 15 * SLOW, f"{options}: takes too long")
                    check(says in job.output(), f"{options}: {job.output()}")
        finally:
            taken.kill()
            taken.wait()
        cluster.nothing_is_left()


def from_any_folder_with_options_behind_the_script():
    with Cluster() as cluster:
        old = {"1000001": "DOWN", "1000002": "READY"}
        for name, state in old.items():
            os.makedirs(f"{cluster.home}/.mpiserve/{name}")
            with open(f"{cluster.home}/.mpiserve/{name}/endpoint.json", "w") as f:
                f.write('{"state":"%s"}' % state)
            os.utime(f.name, (1e9, 1e9))
        rows = ((cluster.top, "slurm/serve.slurm", {}), (f"{cluster.top}/slurm", "serve.slurm", {}),
                (cluster.home, "top/slurm/serve.slurm", {"MPISERVE_HOME": cluster.top}))
        for cwd, script, env in rows:
            with SlurmJob(cluster, DEMO, "--port", "8123", "--served-model-name", "x", cwd=cwd, script=script, env=env,
                          sbatch=("-N1", "--ntasks-per-node=3")) as job:
                e = job.endpoint
                equal((e["url"], e["model"], e["ranks"]), ("http://node0:8123", "x", 3), script)
                cluster.slurm("scancel", "--batch", "--signal=USR1", job.id)
                job.ends("COMPLETED")
        equal(sorted(os.listdir(f"{cluster.home}/.mpiserve")), ["1", "1000002", "2", "3"], "what ended long ago is forgotten")
        for env, says in (({}, "set MPISERVE_HOME"), ({"MPISERVE_HOME": "/nowhere"}, "/nowhere")):
            with SlurmJob(cluster, cwd=cluster.home, script="top/slurm/serve.slurm", env=env, wait=False) as job:
                equal(job.end(), "FAILED")
                check(says in job.output(), job.output())


def killed_ranks_end_the_job_and_leave_nothing():
    with Cluster() as cluster, SlurmJob(cluster) as job:
        [victim] = [r["pid"] for r in job.get("/v1/topology").json["ranks"] if r["rank"] == 3]
        os.kill(victim, signal.SIGKILL)
        job.ends("FAILED")
        words = ("rank 3", "signal 9", "Socket closed")  # the last: Open MPI 5 names who noticed, not who died
        check(any(w in job.output() for w in words), job.output())


def status_asks_slurm_where_the_job_is_silent():
    with Cluster() as cluster:
        with SlurmJob(cluster, sbatch=("-N2", "--hold"), wait=False) as waiting:
            shown = cluster.status("--json", "--job", waiting.id)
            [job] = json.loads(shown.stdout)["jobs"]
            equal((shown.returncode, job["state"], job["slurm_state"]), (1, "PENDING", "PENDING (JobHeldUser)"))
        with SlurmJob(cluster, sbatch=("-N1",)) as job:
            def is_up(p):
                with open(f"/proc/{p.pid}/cmdline") as f:
                    return f.read().split("\0")[1:2] == ["up"]
            [up] = [p for p in cluster.processes(0) if p.name == "mpiserve" and is_up(p)]
            up.kill()
            equal(job.end(), "FAILED", job.output())
            equal(job.read_endpoint()["state"], "READY", "nobody was left to say otherwise")
            shown = cluster.status("--job", job.id)
            check(shown.returncode == 1 and "DOWN" in shown.stdout, shown)


if os.geteuid() or not all(shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin") for tool in ("slurmctld", "munged")):
    print("1..0 # SKIP needs root, slurm-wlm and munge")
    sys.exit(0)
run(two_hosts_from_sbatch_to_the_end_of_a_drain, plain_scancel_leaves_nothing, a_job_that_cannot_start_says_why,
    from_any_folder_with_options_behind_the_script, killed_ranks_end_the_job_and_leave_nothing,
    status_asks_slurm_where_the_job_is_silent)
