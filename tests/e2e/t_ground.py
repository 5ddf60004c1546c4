#!/usr/bin/env python3
"""Bad input and bad ground, as one table: what is wrong, the exact error line (or where paths and numbers vary, a pattern of the
whole line) and the exit code; afterwards no process and no file is left. Every row has its own temporary folder and its own /dev/shm.
What is fine although it looks strange is in the table too: such a job answers."""
import http.client
import re
import shlex
import socket
import uuid

from harness import *

MPIRUN = [os.environ.get("MPISERVE_MPIRUN", "mpirun"), "--oversubscribe", "--bind-to", "none"]
ROOT = os.geteuid() == 0
LIMIT = 15 * SLOW
QUIET = ["--port", "0", "--api-key", "none"]
PATH = r"/\S+"
DIFFER = r"start: the ranks of this job differ: rank 1 \(\S+\) has {}, rank 0 \(\S+\) has {}\. " \
         r"Start all ranks with the same program, options and model files"
OUT_OF_BOX = re.compile(r"^(\d\d:\d\d:\d\d\.\d{3} [EWID] .*)$", re.M)


CHAT = {"messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0}
NOBODY = 65534
KEPT = "/last-failure[.]log$|/mpiserve-[0-9]+$|/deep[^/]*$"  # the log of a failure and its folder; what a row made itself

# ---- a command on a ground of its own --------------------------------------------------------------------------------
def ranks(*groups):
    """mpirun with one list of arguments for each group of ranks: (n, program, arguments...)."""
    command = list(MPIRUN)
    for i, (n, *rest) in enumerate(groups):
        command += ([":"] if i else []) + ["-np", str(n), *rest]
    return command


def same(n, *arguments, program=PROGRAM):
    return ranks((n, program, *QUIET, *arguments))


def up(*arguments, program=PROGRAM):
    return [program, "up", "-n", "2", *QUIET, *arguments]


class Ground:
    """Runs a command with a /dev/shm of its own, after `prepare` (shell; T is the temporary folder). mark is in the environment
    of all its processes, so that none is overlooked."""

    def __init__(self, command, prepare="", shm="100m", env=None, user=None):
        self.folder = tempfile.mkdtemp(prefix="mpt-", dir="/tmp")
        self.mark = uuid.uuid4().hex
        self.work, self.report = os.path.join(self.folder, "t"), os.path.join(self.folder, "report")
        os.mkdir(self.work)
        os.chmod(self.folder, 0o755)
        os.chmod(self.work, 0o777)
        run_as = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        script = f"""mount -t tmpfs -o size={shm},mode=1777 tmpfs /dev/shm || exit 99
            T={self.work}; export TMPDIR=$T
            {prepare}
            {shlex.join(run_as + command)}
            status=$?
            for i in 1 2 3 4 5 6 7 8 9 10; do  # MPI's own helper leaves a little after the last rank
                {{ ls -A /dev/shm; find $T -mindepth 1; }} | grep -vE '{KEPT}' >{self.report} || break
                sleep 0.1
            done
            exit $status"""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MPISERVE_", "OMPI_", "SLURM_"))}
        environment.setdefault("ASAN_OPTIONS", "detect_leaks=0")
        environment.update(GROUND_MARK=self.mark, **(env or {}))
        for name in ("OMPI", "PRTE"):
            environment.update({f"{name}_ALLOW_RUN_AS_ROOT": "1", f"{name}_ALLOW_RUN_AS_ROOT_CONFIRM": "1"})
        self.output_path = os.path.join(self.folder, "output")
        with open(self.output_path, "wb") as output:
            self.process = subprocess.Popen([*PRIVATE, "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=output,
                                            stderr=subprocess.STDOUT, env=environment, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for p in self.processes():
            p.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self):
        found = []
        for p in all_processes():
            try:
                with open(f"/proc/{p.pid}/environ", "rb") as f:
                    if self.mark.encode() in f.read():
                        found.append(p)
            except OSError:
                pass
        return found

    def output(self):
        with open(self.output_path, errors="replace") as f:
            return f.read()

    def errors(self):
        """Errors and warnings without time and rank: ["E --port: ..."]."""
        lines = [line[13:] for line in OUT_OF_BOX.findall(self.output())]
        return [re.sub(r"^([EW]) rank \d+(?: \(\S+\))?: ", r"\1 ", line) for line in lines if line[0] in "EW"]

    def end(self):
        try:
            status = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"does not end within {LIMIT} s:\n{self.output()}") from None
        until(lambda: not self.processes(), 3, f"all processes are gone: {self.processes()}")
        return status

    def left(self):
        """What is left in /dev/shm and the temporary folder, but for the log of a failure."""
        with open(self.report) as f:
            return f.read().splitlines()


PRIVATE = ["unshare", "-m"] if ROOT else ["unshare", "-rm"]


def private_mounts():
    done = subprocess.run([*PRIVATE, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True)
    if done.returncode:
        raise Skip("no mount namespaces here")


def fails(name, wanted, command, status=1, **ground):
    """One error line, which matches `wanted` as a whole; of `up` one more, that the job did not start."""
    with Ground(command, **ground) as g:
        equal(g.end(), status, f"{name}: exit status\n{g.output()}\n")
        got = [e for e in g.errors() if e != "E the job did not start"]
        check(len(got) == 1 and re.fullmatch("E " + wanted, got[0]), f"{name}: got {got}, wanted E {wanted}\n{g.output()}")
        check(not re.search("AddressSanitizer|BUG at|SIGBUS|Bus error|Segmentation", g.output()), f"{name}:\n{g.output()}")
        equal(g.left(), [], f"{name}: left")


def serves(name, command, warning=None, **ground):
    """The job answers a chat, and TERM ends it."""
    with Ground(command, **ground) as g:
        def url():
            check(g.process.poll() is None, f"{name}: ended with {g.process.poll()}:\n{g.output()}")
            return re.search(r"(?:ready: |URL +)http://127\.0\.0\.1:(\d+)", g.output())
        port = int(until(url, START_LIMIT, f"{name} is ready\n{g.output()}").group(1))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30 * SLOW)
        connection.request("POST", "/v1/chat/completions", json.dumps(CHAT), {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        equal(content(answer), "17 + 25 = 42", name)
        got = g.errors()
        check(got == [] if warning is None else len(got) == 1 and re.fullmatch("W " + warning, got[0]), f"{name}: {got}")
        connection.close()
        first = [p for p in g.processes() if p.name.startswith(("mpirun", "prterun"))]
        first = first or [p for p in g.processes() if p.name == "mpiserve"]
        first[0].kill(signal.SIGUSR1)
        equal(g.end(), 0, f"{name}: a drain\n{g.output()}\n")
        equal(g.left(), [], f"{name}: left")


def each(rows, judge, at_once=3):
    """Rows are (name, ...); all are tried, and all that fail are told."""
    failures = []

    def some(i):
        for row in rows[i::at_once]:
            try:
                judge(*row[:-1], **row[-1]) if isinstance(row[-1], dict) else judge(*row)
            except AssertionError as e:
                failures.append(f"{row[0]}: {e}")
    together(at_once, some)
    check(not failures, "\n".join(failures))


# ---- options ---------------------------------------------------------------------------------------------------------
class Option:
    def __init__(self, name, value, low, high, variable):
        self.name, self.value, self.low, self.high, self.variable = name, value, low, high, variable


def number(text):
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    if text == "2^63-1":
        return (1 << 63) - 1
    return float(text) if "." in text else int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def all_options():
    """From --help: "  --port N" ... "[0..65535; default 8000; MPISERVE_PORT]"."""
    text = subprocess.run([PROGRAM, "help"], capture_output=True, text=True).stdout
    found = []
    for part in re.split(r"^  (?=--)", text.split("\nOnly for `mpiserve plan`")[0], flags=re.M)[1:]:
        head = re.match(r"(--[\w-]+)(?:, -\w+)*(?: (\S+))?", part)
        tail = re.search(r"\[([^]]*)\]\s*", part[head.end():])
        bounds = re.search(r"(?:^|or )([\d.]+[KMGT]?|2\^63-1)\.\.([\d.]+[KMGT]?|2\^63-1);", tail.group(1)) if tail else None
        variable = re.search(r"MPISERVE_\w+", tail.group(1)) if tail else None
        found.append(Option(head.group(1), head.group(2) or "", number(bounds.group(1)) if bounds else None,
                            number(bounds.group(2)) if bounds else None, variable.group(0) if variable else None))
    check(len(found) > 30, f"only {len(found)} options in --help")
    return found


def wrong_values(o):
    if o.low is not None:
        beyond = f"{o.high + 1:.0f}" if o.value == "S" else str(int(o.high) + 1)
        below = ["-1"] if o.low == 0 else ["-1", "0" if o.low >= 1 else "0.0"]
        return below + [beyond, "9" * 40, "x", "1x", " 1", "0x10", "1e3"] + (["1.5"] if o.value == "N" else ["nan", "inf"])
    if "|" in o.value:
        return ["x", o.value.split("|")[0] + "x", o.value]
    return []


def command(*arguments, env=None):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MPISERVE_", "OMPI_"))}
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=20, env=dict(environment, **(env or {})))
    return done.returncode, [line[13:] for line in done.stderr.strip().splitlines()]


def one_line(got, name, arguments):
    status, lines = got
    equal(status, 2, f"{arguments}: exit status {lines}")
    check(len(lines) == 1 and re.fullmatch(rf"E {re.escape(name)}: .+", lines[0]), f"{arguments}: {lines}")
    return lines[0]


def every_option_out_of_range():
    tried = 0
    for o in all_options():
        for value in wrong_values(o):
            line = one_line(command("up", o.name, value), o.name, (o.name, value))
            check(f"`{value}`"[:60] in line and re.search(r"is not (in the range|a whole number|a number|one of)", line), line)
            tried += 1
        if wrong_values(o):
            one_line(command(o.name + "=x"), o.name, (o.name, "x as a rank"))
        if wrong_values(o) and o.variable:
            one_line(command("up", env={o.variable: "x"}), o.variable, (o.variable, "x"))
        if o.value:
            one_line(command("up", o.name), o.name, (o.name, "without a value"))
    check(tried > 200, f"only {tried} values were tried")


def unknown_names():
    for arguments, env, wanted in (
        (["up", "--prot", "1"], {}, "--prot: no such option; did you mean --port; see --help"),
        (["--prot=1"], {}, "--prot: no such option; did you mean --port; see --help"),
        (["up", "--zzzzzzzz"], {}, "--zzzzzzzz: no such option; see --help"),
        (["up", "-z"], {}, "-z: no such option; see --help"),
        (["up"], {"MPISERVE_PROT": "1"}, "MPISERVE_PROT: is set in the environment, and no option has this name; nearest: port"),
        (["up", "a", "b"], {}, "b: is one argument too many: the model is a already"),
        (["up", "--enable-eplb"], {}, r"--enable-eplb: is not offered in this release: .+"),
    ):
        status, lines = command(*arguments, env=env)
        equal(status, 2, f"{arguments}: {lines}")
        check(len(lines) == 1 and re.fullmatch("E " + wanted.replace("(", r"\("), lines[0]), f"{arguments}: {lines}")


def wrong_options_of_ranks_are_said_once():
    private_mounts()
    fails("all ranks", r"--port: `70000` is not in the range 0\.\.65535", same(4, "--port=70000"), status=2)


# ---- ranks that do not fit together ----------------------------------------------------------------------------------
def copy_model(folder, name, change=lambda path: None):
    path = os.path.join(folder, name)
    shutil.copytree(DEMO, path)
    subprocess.run(["chmod", "-R", "u+w,a+rX", path], check=True)
    change(path)
    return path


def other_eps(path):
    with open(os.path.join(path, "config.json")) as f:
        config = json.load(f)
    config["rms_norm_eps"] = config.get("rms_norm_eps", 1e-6) * 2
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(config, f)


def other_weights(path):
    """The same shapes, and other numbers in the second half: as a model trained further would be."""
    with open(os.path.join(path, "model.safetensors"), "r+b") as f:
        size = os.path.getsize(f.name)
        f.seek(size // 2)
        data = bytearray(f.read())
        for i in range(0, len(data), 2):
            data[i] ^= 1
        f.seek(size // 2)
        f.write(data)


def ranks_that_do_not_fit_together():
    private_mounts()
    folder = tempfile.mkdtemp(prefix="mpt-model-", dir="/tmp")
    try:
        other = os.path.join(folder, "other-build")
        shutil.copy(PROGRAM, other)
        with open(other, "ab") as f:
            f.write(b"\n")
        copy, eps = copy_model(folder, "copy"), copy_model(folder, "eps", other_eps)
        trained = copy_model(folder, "trained", other_weights)
        mine = [PROGRAM, *QUIET, DEMO]
        model = DIFFER.format(r"model [0-9a-f]{16} in %s", r"[0-9a-f]{16} in " + re.escape(DEMO))
        rows = [
            ("too few ranks", r"data_parallel_size: asks for 8 replicas of 1 ranks each, but the job's 2 ranks on 1 nodes allow 2",
             same(2, "-dp", "8")),
            ("too few ranks, up", r"data_parallel_size: asks for 8 replicas .+ 2 ranks on 1 nodes allow 2", up("-dp", "8")),
            ("other builds", DIFFER.format(r"build \S+ \([0-9a-f]{16}\)", r"\S+ \([0-9a-f]{16}\)"),
             ranks((1, *mine), (1, other, *QUIET, DEMO))),
            ("another option", DIFFER.format(r"--queue-timeout 5", r"60"), ranks((1, *mine), (1, *mine, "--queue-timeout", "5"))),
            ("another word", DIFFER.format(r"--compute f32", r"auto"), ranks((1, *mine), (1, *mine, "--compute", "f32"))),
            ("three options", DIFFER.format(r"--seed 3", r"random, --threads 1 and not auto, --max-logprobs 5 and not 20"),
             ranks((1, *mine), (1, *mine, "--seed", "3", "--max-logprobs", "5", "--threads", "1"))),
            ("another model", model % re.escape(eps), ranks((1, *mine), (1, PROGRAM, *QUIET, eps))),
            ("other weights of the same shape", model % re.escape(trained), ranks((1, *mine), (1, PROGRAM, *QUIET, trained))),
            ("no model on one rank", r"/nonexistent/model: cannot find the model's folder: No such file or directory",
             ranks((1, *mine), (1, PROGRAM, *QUIET, "/nonexistent/model"))),
        ]
        each(rows, fails)
        serves("the same model in two folders", ranks((1, *mine), (1, PROGRAM, *QUIET, copy)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def models_that_cannot_be_read():
    private_mounts()
    if not ROOT:
        raise Skip("only root may run it as another user")
    folder = tempfile.mkdtemp(prefix="mpt-model-", dir="/tmp")
    try:
        os.chmod(folder, 0o755)
        program = shutil.copy(PROGRAM, folder)  # where any user may run it
        good = copy_model(folder, "good")
        shut = copy_model(folder, "shut", lambda p: os.chmod(p, 0o700))
        weights = copy_model(folder, "weights", lambda p: os.chmod(os.path.join(p, "model.safetensors"), 0o600))
        words = copy_model(folder, "words", lambda p: os.chmod(os.path.join(p, "tokenizer.json"), 0o600))
        one = (1, program, *QUIET, good)
        rows = [
            ("folder", rf"{shut}/config\.json: cannot read the model's folder: Permission denied", up(shut, program=program)),
            ("folder, on one rank", rf"{shut}/config\.json: cannot read the model's folder: Permission denied",
             ranks(one, (1, program, *QUIET, shut))),
            ("weights, on one rank", rf"{weights}/model\.safetensors: cannot open: Permission denied",
             ranks(one, (1, program, *QUIET, weights))),
            ("tokenizer", rf"{words}/tokenizer\.json: cannot open the file: Permission denied", up(words, program=program)),
        ]
        each([(*row, {"user": NOBODY}) for row in rows], fails)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- the machine -----------------------------------------------------------------------------------------------------
def mount(size):
    return f"mount -t tmpfs -o size={size},mode=1777 tmpfs $T"


LONG = "D=$T/deep" + "d" * 100 + "; mkdir $D; export TMPDIR=$D"
FULL = rf"{PATH}: the temporary folder has \d+ KB left, MPI and the job need {{}} KB: make room, or choose another place with TMPDIR"
FILES = r"ulimit -n: {} open files are allowed, {} are needed: raise the hard limit \(limits\.conf, LimitNOFILE= of a service, " \
        r"docker run --ulimit nofile=65536\)"
SHM = r"/dev/shm: has \d+ KB left, MPI needs {} for the {} ranks of this machine: enlarge it \(docker run --shm-size=256m; " \
      r"mount -o remount,size=256m\), remove what lies there, or start fewer ranks"


def bad_machines():
    private_mounts()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = str(s.getsockname()[1])
        taken = rf"127\.0\.0\.1 port {port}: is in use by another program: stop that one, or choose another with --port \(0: any free one\)"
        # what is wrong, the error, the command, how the ground is made so
        each([
            ("port in use", taken, same(2, "--port", port)),
            ("port in use, up", taken, up("--port", port)),
            ("no such address", r"203\.0\.113\.9 port 8000: .+", ranks((1, PROGRAM, "--host", "203.0.113.9"))),
            ("/dev/shm of 64 KB", SHM.format(2176, 2), same(2), {"shm": "64k"}),
            ("/dev/shm of 3 MB for 4 ranks", SHM.format(4352, 4), same(4), {"shm": "3m"}),
            ("/dev/shm of 1 MB, up", SHM.format(2176, 2), up(), {"shm": "1m"}),
            ("40 open files", FILES.format(40, 98), same(2), {"prepare": "ulimit -n 40"}),
            ("20 open files, up", FILES.format(20, 64), up(), {"prepare": "ulimit -n 20"}),
            ("read-only temporary folder, up", rf"{PATH}: cannot make the folder \(TMPDIR or --run-dir chooses another place\): "
             r"Read-only file system", up(), {"prepare": mount("40m,ro")}),
            ("no temporary folder, up", rf"{PATH}: cannot make the folder \(TMPDIR or --run-dir chooses another place\): "
             r"No such file or directory", up(), {"prepare": "TMPDIR=$T/none"}),
            ("full temporary folder, up", FULL.format(20480), up(), {"prepare": mount("1m")}),
            ("almost full temporary folder, up", FULL.format(20480), up(), {"prepare": mount("12m")}),
            ("full temporary folder", FULL.format(9216), same(2), {"prepare": mount("64k")}),
            ("almost full temporary folder", FULL.format(9216), same(2), {"prepare": mount("6m")}),
            ("a path too long for sockets", rf"{PATH}: is too long for sockets: \d+ bytes, at most 80; choose a shorter TMPDIR or "
             r"--run-dir", same(2), {"prepare": LONG}),
            ("a path too long for sockets, up", rf"{PATH}: is too long for sockets: \d+ bytes, at most 80; choose a shorter TMPDIR or "
             r"--run-dir", up(), {"prepare": LONG}),
            ("no mpirun", r"/nonexistent/mpirun: no such program in PATH: .+", up("--mpirun", "/nonexistent/mpirun")),
            ("mpirun is no program", r"/etc/passwd: cannot run it: Permission denied", up("--mpirun", "/etc/passwd")),
        ], fails)


def strange_machines_that_do():
    private_mounts()
    each([
        ("/dev/shm of 64 MB, 8 ranks", same(8), {"shm": "64m"}),
        ("/dev/shm of 5 MB, 4 ranks", same(4), {"shm": "5m"}),
        ("a temporary folder of 20 MB, up", up(), {"prepare": mount("20m")}),
        ("120 open files", same(2), r"--max-connections: 1024 need more open files than this process may have \(ulimit -n\): at most 22 "
         r"are served at the same time", {"prepare": "ulimit -n 120"}),
        ("a machine that hwloc cannot see", same(2), {"prepare": "mount -t tmpfs tmpfs /sys"}),
        ("another machine's topology", same(2), {"env": {"HWLOC_SYNTHETIC": "numa:2 core:4 pu:2"}}),
        ("topology that is nonsense", same(2), {"env": {"HWLOC_SYNTHETIC": "nonsense"}}),
        ("without mpirun", [PROGRAM, *QUIET]),
        ("without mpirun, a /dev/shm of 2 MB", [PROGRAM, *QUIET], {"shm": "2m"}),
    ], serves, at_once=2)


# ---- mpiserve doctor -------------------------------------------------------------------------------------------------
ITEMS = {"kernel", "memfd", "pidfd", "epoll_pwait2", "huge pages", "copies of ranks", "cores", "instruction set", "memory", "GPUs",
         "/dev/shm", "temporary folder", "socket paths", "open files", "Slurm and PMIx", "mpirun", "two ranks", "memory bandwidth"}


def examine(name, **ground):
    """The doctor's report on a ground: status and items by name. It leaves nothing."""
    with Ground([PROGRAM, "doctor", "--json"], **ground) as g:
        status = g.end()
        equal(g.left(), [], f"{name}: left")
        found = json.loads(g.output().splitlines()[-1])
    items = {item["name"]: item for item in found["items"]}
    check(ITEMS <= set(items), f"{name}: missing {ITEMS - set(items)}")
    verdicts = {item["verdict"] for item in found["items"]}
    check(verdicts <= {"ok", "skipped", "warning", "problem"}, verdicts)
    worst = max(verdicts - {"skipped"}, key=["ok", "warning", "problem"].index)
    equal((found["verdict"], status), (worst, 1 if worst == "problem" else 0), name)
    for item in found["items"]:
        check(item["found"], f"{name}: {item} says nothing")
        check((item["verdict"] in ("warning", "problem")) == bool(item["advice"]), f"{name}: {item}")
    return items


def doctor_sees_the_machine():
    private_mounts()
    items = examine("this machine")
    for name in ("memfd", "pidfd", "cores", "/dev/shm", "temporary folder", "socket paths", "mpirun", "two ranks"):
        check(items[name]["verdict"] in ("ok", "warning"), items[name])
    check(items["cores"]["allowed"] == len(os.sched_getaffinity(0)), items["cores"])
    check("one-sided component" in items["two ranks"]["found"], items["two ranks"])
    for name, number in (("message latency", "microseconds"), ("slot latency", "microseconds"),
                         ("memory bandwidth", "gigabytes_per_second"), ("memory", "total_bytes")):
        check(items[name][number] > 0, items[name])
    done = subprocess.run([PROGRAM, "doctor"], capture_output=True, text=True, timeout=60 * SLOW)
    for name in ITEMS:
        check(re.search(rf"^  (ok|skipped|warning|problem) +{re.escape(name)} +\S", done.stdout, re.M), f"{name}: {done.stdout}")
    check(re.search(r"^(ok|warning|problem): a job (can run|will not run well) here; ", done.stdout, re.M), done.stdout)
    equal(command("doctor", "--xml"), (2, ["E --xml: is no option of doctor; it has --json"]))


def doctor_sees_what_is_wrong():
    private_mounts()

    def finds(name, item, verdict, advice, ground):
        got = examine(name, **ground)[item]
        check(got["verdict"] == verdict and re.search(advice, got["advice"]), f"{name}: {got}")
    each([
        ("small /dev/shm", "/dev/shm", "warning", "shm-size", {"shm": "4m"}),
        ("tiny /dev/shm", "two ranks", "problem", "by hand", {"shm": "1m"}),
        ("few open files", "open files", "problem", "nofile", {"prepare": "ulimit -n 90"}),
        ("not many open files", "open files", "warning", "max-connections", {"prepare": "ulimit -n 500"}),
        ("full temporary folder", "temporary folder", "problem", "TMPDIR", {"prepare": mount("1m")}),
        ("read-only temporary folder", "temporary folder", "problem", "TMPDIR", {"prepare": mount("40m,ro")}),
        ("long paths", "socket paths", "problem", "TMPDIR", {"prepare": LONG}),
        ("no mpirun", "mpirun", "problem", "install Open MPI", {"env": {"MPISERVE_MPIRUN": "/nonexistent/mpirun"}}),
        ("mpirun that fails", "mpirun", "problem", "install Open MPI", {"env": {"MPISERVE_MPIRUN": "/bin/false"}}),
        ("mpirun that does nothing", "two ranks", "problem", "by hand", {"env": {"MPISERVE_MPIRUN": "/bin/true"}}),
        ("inside Slurm", "Slurm and PMIx", "ok", "", {"env": {"SLURM_JOB_ID": "7"}}),
    ], lambda name, item, verdict, advice, **ground: finds(name, item, verdict, advice, ground))


# ---- Slurm -----------------------------------------------------------------------------------------------------------
class Cluster:
    """One host with Slurm, of tests/lab."""
    TOOL = os.path.join(TOP, "tests/lab/slurm")

    def __enter__(self):
        tools = os.environ["PATH"] + ":/usr/sbin"
        if not ROOT or not all(shutil.which(tool, path=tools) for tool in ("slurmctld", "munged")):
            raise Skip("needs root, slurm-wlm and munge")
        self.home = tempfile.mkdtemp(prefix="mpt-", dir="/tmp")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("MPISERVE_", "OMPI_", "SLURM_"))}
        self.environment.update(LAB_ID=f"g{os.getpid() % 0xfffff:x}", LAB_OWNER=str(os.getpid()))
        done = self.call("up", "1")
        if done.returncode == 77:
            raise Skip("no root or no network namespaces")
        equal(done.returncode, 0, done.stderr)
        return self

    def __exit__(self, *_):
        self.call("down")
        shutil.rmtree(self.home, ignore_errors=True)

    def call(self, *words):
        return subprocess.run([self.TOOL, *words], env=self.environment, capture_output=True, text=True, timeout=60 * SLOW)

    def run(self, *words):
        """Status and lines without those of Slurm, of a command that ends by itself."""
        done = self.call("exec", "env", f"HOME={self.home}", "TMPDIR=/dev/shm", "timeout", "-k", "2", str(LIMIT), *words)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith(("srun:", "salloc:"))]
        return done.returncode, lines

    def left(self):
        found = []
        for p in all_processes():
            try:
                with open(f"/proc/{p.pid}/environ", "rb") as f:
                    if p.name.startswith(("mpiserve", "mpirun", "orted")) and f"HOME={self.home}".encode() in f.read():
                        found.append(p)
            except OSError:
                pass
        return found


def slurm():
    no_pmix = r"E srun: has started this rank without PMIx, which MPI needs: use `srun --mpi=pmix` where `srun --mpi=list` shows it, " \
              r"or mpirun in a batch script \(slurm/serve\.slurm\)"
    mpirun, own = MPIRUN[0], [PROGRAM, *QUIET, DEMO]
    with Cluster() as cluster:
        for name, words, status, wanted in (
            ("mpirun without slots", ["salloc", "-n1", mpirun, "-np", "4", *own], 1, r"There are not enough slots available .+"),
            ("srun without PMIx", ["srun", "-n1", *own], 1, no_pmix),
            ("srun with PMI2", ["srun", "-n1", "--mpi=pmi2", *own], 1, no_pmix),
            ("srun, a wrong option", ["srun", "-n2", "--mpi=pmix", *own, "--threads", "0"], 2,
             r"E --threads: `0` is not in the range auto or 1\.\.1024"),
            ("srun, too few ranks", ["srun", "-n2", "--mpi=pmix", *own, "-dp", "8"], 1, r"E rank 0: data_parallel_size: asks for 8 .+"),
        ):
            got, lines = cluster.run(*words)
            equal(got, status, f"{name}: {lines}")
            said = [re.sub(r"^\d\d:\d\d:\d\d\.\d{3} ", "", line) for line in lines]
            errors = [line for line in said if line.startswith("E ") or "not enough slots" in line]
            check(len(errors) == 1 and re.fullmatch(wanted, errors[0]), f"{name}: {lines}")
            until(lambda: not cluster.left(), 5 * SLOW, f"{name}: nothing is left: {cluster.left()}")
        ask = ("srun --overlap -n1 curl -sS --retry 60 --retry-delay 1 --retry-connrefused http://127.0.0.1:8000/v1/chat/completions "
               "-H 'Content-Type: application/json' -d '" + json.dumps(CHAT) + "'")
        script = f"srun --overlap -n2 --mpi=pmix {shlex.join([PROGRAM, '--api-key', 'none', DEMO])} & {ask}; " \
                 "scancel -s USR1 $SLURM_JOB_ID; wait $!"
        got, lines = cluster.run("salloc", "-n2", "bash", "-c", script)
        equal(got, 0, f"srun with PMIx: a drain: {lines}")
        check(any("17 + 25 = 42" in line for line in lines), f"srun with PMIx answers: {got} {lines}")
        until(lambda: not cluster.left(), 10 * SLOW, f"nothing is left: {cluster.left()}")


run(every_option_out_of_range, unknown_names, wrong_options_of_ranks_are_said_once, ranks_that_do_not_fit_together,
    models_that_cannot_be_read, bad_machines, strange_machines_that_do,
    doctor_sees_the_machine, doctor_sees_what_is_wrong, slurm)
