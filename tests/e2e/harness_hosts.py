"""Jobs over the hosts of tests/lab. The test process lives on the machine and looks into each host: its files through
/proc/PID/root, its processes by their network namespace. HTTP goes out from the lab's host `login`.

    with Lab(2) as lab, HostsJob(lab, ranks=4) as job: ...
"""
import ctypes

from harness import *

HOSTS = os.path.join(TOP, "tests/lab/hosts")
NETWORK = "10.77.0"
CLONE_NEWNET = 0x40000000


def enter_network(fd):
    libc = ctypes.CDLL(None, use_errno=True)
    check(libc.setns(fd, CLONE_NEWNET) == 0, f"setns: {os.strerror(ctypes.get_errno())}")


class Lab:
    """N hosts. Inside `with` this process is in the network of the host `login`."""
    count = 0

    def __init__(self, n):
        Lab.count += 1
        self.n = n
        self.environment = dict(os.environ, LAB_ID=f"e{os.getpid() % 0xfffff:x}{Lab.count % 10}", LAB_OWNER=str(os.getpid()))

    def __enter__(self):
        self.outside = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        done = self.call("up", str(self.n), check_status=False)
        if done.returncode == 77:
            raise Skip("no root or no network namespaces")
        equal(done.returncode, 0, done.stderr)
        self.folder = self.call("dir").stdout.strip()
        self.holders = [self.holder(f"host{k}") for k in range(self.n)]
        fd = os.open(f"/proc/{self.holder('login')}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        enter_network(fd)
        os.close(fd)
        return self

    def __exit__(self, *_):
        enter_network(self.outside)
        os.close(self.outside)
        self.call("down")

    def holder(self, name):
        with open(os.path.join(self.folder, name, "pid")) as f:
            return int(f.read())

    def call(self, *words, check_status=True):
        done = subprocess.run([HOSTS, *words], env=self.environment, capture_output=True, text=True, timeout=30)
        check(not check_status or done.returncode == 0, f"hosts {words}: {done.stderr}")
        return done

    def root(self, k):
        return f"/proc/{self.holders[k]}/root"

    def tmp(self, k):
        return os.path.join(self.folder, f"host{k}/tmp")

    def processes(self, k):
        """What runs on host k, but for the process that holds the host."""
        def network(pid):
            try:
                return os.stat(f"/proc/{pid}/ns/net").st_ino
            except OSError:
                return None
        mine = network(self.holders[k])
        return [p for p in all_processes() if p.pid != self.holders[k] and network(p.pid) == mine]

    def hostfile(self, slots, order=None):
        path = os.path.join(self.folder, f"hosts.{slots}")
        with open(path, "w") as f:
            f.writelines(f"node{k} slots={slots}\n" for k in (order or range(self.n)))
        return path

    def files(self, k):
        """What jobs and MPI have on host k: in its temporary folder and its /dev/shm."""
        places = [self.tmp(k), self.root(k) + "/dev/shm"]
        found = [os.path.join(top, f) for place in places for top, folders, names in os.walk(place) for f in folders + names]
        return sorted(f.removeprefix(self.root(k)) for f in found)


class HostsJob(Job):
    """`mpiserve up` on host 0 with ranks in blocks over all hosts; each host has its own temporary folder."""
    address = f"{NETWORK}.1"

    def __init__(self, lab, *options, ranks=4, env=None, mpirun=(), **more):
        self.lab = lab
        self.on = (HOSTS, "exec", "0")
        environment = {"LAB_ID": lab.environment["LAB_ID"], "OMPI_MCA_plm_rsh_agent": lab.folder + "/agent",
                       "PRTE_MCA_plm_ssh_agent": lab.folder + "/agent", **(env or {})}
        host = () if "--host" in options else ("--host", "0.0.0.0")
        file = () if "--hostfile" in options else ("--hostfile", lab.hostfile(-(-ranks // lab.n)))
        super().__init__(*host, *file, *options, "--", "-x", "ASAN_OPTIONS", *mpirun, ranks=ranks, env=environment,
                         folder=lab.tmp(0), **more)

    def shm_left(self):
        return [self.lab.root(0) + f for f in self.lab.files(0) if f.startswith("/dev/shm")]

    def close(self):
        if self.up.poll() is None:
            self.up.kill()
            self.up.wait()
        try:
            until(self.nothing_lives, 6 * SLOW, "nothing lives")
        except AssertionError:
            for p in self.everything():
                p.kill()

    def ranks(self):
        """/v1/topology's, by rank: {rank, node_rank, local_rank, pid, host, replica}."""
        return self.get("/v1/topology").json["ranks"]

    def all_agents(self):
        return {r["rank"]: Process(r["pid"]) for r in self.ranks()}

    def all_engines(self):
        """rank -> engine process, on every host."""
        rank_of = {r["pid"]: r["rank"] for r in self.ranks()}
        return {rank_of[p.parent]: p for p in all_processes() if p.name.startswith("mpiserve-eng") and p.parent in rank_of}

    def everything(self):
        return [p for k in range(self.lab.n) for p in self.lab.processes(k)]

    def nothing_lives(self):
        return not self.everything()

    def files_left(self, *without):
        kept = ("output", "mpiserve-0", "mpiserve-0/last-failure.log")
        return [f"host {k}: {f}" for k in range(self.lab.n) if k not in without for f in self.lab.files(k)
                if f.removeprefix(self.lab.tmp(k) + "/") not in kept]
