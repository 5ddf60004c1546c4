#!/usr/bin/env python3
"""`mpiserve up` by itself: start, failures, signals, kills, leftovers; the job is tests/e2e/standin.c."""
import re

from harness import *

STANDIN = os.path.join(BUILD, "tests/e2e/standin")


def standin(*options, mode="", **more):
    return Job("--port", "8123", *options, model="models/tiny", program=STANDIN, env={"STANDIN": mode}, **more)


def says_what_to_do_when_ready():
    with standin(ranks=3) as job:
        text = job.output()
        check("mpiserve serves tiny with 3 ranks" in text, text)
        check("http://127.0.0.1:8123" in text and "run.log" in text and f"kill {job.up.pid}" in text, text)
        with open(job.endpoint["key_file"]) as f:
            line = f.read()
        check(re.fullmatch(r"Authorization: Bearer \S+\n", line), "the key file is a header for curl")
        check(line.split()[-1] not in text + job.log(), "the key is shown")
        equal(os.stat(job.endpoint["key_file"]).st_mode & 0o777, 0o600, "mode of the key file")
        equal(os.stat(job.dir()).st_mode & 0o777, 0o700, "mode of the job's folder")
        check(f"-H @{job.endpoint['key_file']} " in text, "curl gets the key from the file")
        equal(len(job.agents()), 3, "ranks in the file pids")


def a_signal_drains():
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with standin() as job:
            below = job.processes()
            job.signal(sig)
            equal(job.wait(), 0, f"exit status after {sig.name}")
            equal([p for p in below if p.alive()], [], "processes left")
            equal(job.leftovers(), [], "files left")
            check("stopped" in job.output() and "Forwarding" not in job.output(), job.output())


def a_second_signal_ends_at_once():
    with standin("--graceful-shutdown-timeout", "60", mode="deaf") as job:
        job.signal(signal.SIGINT)
        until(lambda: "draining" in job.output(), 2, "it says that it drains")
        time.sleep(0.3)
        check(job.up.poll() is None, "it waits for the ranks")
        started = time.monotonic()
        job.signal(signal.SIGINT)
        equal(job.wait(), 130)
        check(time.monotonic() - started < 3 * SLOW, "the end takes too long")
        equal(job.leftovers(), [])


def a_drain_has_an_end():
    with standin("--graceful-shutdown-timeout", "0", mode="deaf") as job:
        started = time.monotonic()
        job.signal(signal.SIGTERM)
        equal(job.wait(), 1)
        check(time.monotonic() - started < 8 * SLOW, "the end takes too long")
        check("does not end in time" in job.output(), job.output())
        equal(job.leftovers(), [])


def interrupted_before_it_was_ready():
    with standin(mode="slow", wait=False) as job:
        until(lambda: job.read_endpoint(), START_LIMIT, "the job is there")
        below = job.processes()
        job.signal(signal.SIGINT)
        equal(job.wait(3 * SLOW), 130)
        equal([p for p in below if p.alive()], [])
        equal(job.leftovers(), [])


def failed_starts_say_why():
    for mode, says in (("abort", "127.0.0.1:8123: the port is in use"), ("exit", "models/none: there is no such folder"),
                       ("silent", "exit code 3|Exit code:    3|exited with status 3|non-zero")):
        with standin(mode=mode, wait=False, ranks=3) as job:
            equal(job.wait(), 1, mode)
            check(re.search(says, job.output()) and "the job did not start" in job.output(), job.output())
            check(time.monotonic() - job.started < 6 * SLOW, f"{mode}: takes too long")
            equal(job.leftovers(), [], mode)
            log = os.path.join(job.base(), "last-failure.log")
            check(log in job.output() and os.path.exists(log), "the log is kept")


def the_reason_is_told_alone():
    """Ranks end one after the other when one has said why: a slow machine needs no second error."""
    with standin(mode="linger", wait=False, ranks=3) as job:
        equal(job.wait(), 1)
        errors = re.findall(r" E (?:rank \d+: )?(.*)", job.output())
        equal(errors, ["models/none: there is no such file", "the job did not start"], job.output())
        equal(job.leftovers(), [])


def a_word_that_is_no_command():
    done = subprocess.run([PROGRAM, "caht"], capture_output=True, text=True, timeout=20)
    equal(done.returncode, 2, done.stderr)
    check("`caht` is neither a command nor a folder" in done.stderr and "--help" in done.stderr, done.stderr)


def a_crash_is_shown_and_ends_the_job_within_a_second():
    with standin(mode="crash", ranks=4) as job:
        below, died = job.processes(), time.monotonic() + 0.1
        equal(job.wait(), 1)
        check(time.monotonic() - died < 1.5 * SLOW, "takes too long")
        equal([p for p in below if p.alive()], [])
        check("rank 1 (process" in job.output() and "died" in job.output(), job.output())
        equal(job.leftovers(), [])


def kills_leave_nothing():
    for victim in ("mpirun", "rank 0", "rank 2"):
        with standin(ranks=3) as job:
            below = job.processes()
            check(len(below) >= 7, f"mpirun, 3 ranks, 3 engines: {below}")
            (job.mpirun() if victim == "mpirun" else job.agents()[int(victim[-1])]).kill()
            until(lambda: not any(p.alive() for p in below), 1 * SLOW, f"nothing lives after {victim} was killed")
            equal(job.wait(3), 1, f"exit status after the end of {victim}")
            equal(job.leftovers(), [], victim)


def a_killed_up_leaves_nothing_alive_and_the_next_start_removes_its_files():
    folder = tempfile.mkdtemp(prefix="mpt-", dir="/tmp")
    try:
        with standin(ranks=3, folder=folder) as first:
            below = first.processes()
            first.up.kill()
            first.up.wait()
            until(lambda: not any(p.alive() for p in below), 1 * SLOW, "nothing lives")
            check(first.leftovers(), "a killed up cannot remove its files")
            old = first.dir()
            with standin(ranks=2, folder=folder) as second:
                check(not os.path.exists(old), "the old folder is removed")
                equal(first.shm_left(), [], "shared memory")
                second.signal(signal.SIGINT)
                equal(second.wait(), 0)
                equal(second.leftovers(), [])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def a_given_folder_keeps_what_is_not_ours():
    folder = tempfile.mkdtemp(prefix="mpt-", dir="/tmp")
    try:
        with open(os.path.join(folder, "mine"), "w") as f:
            f.write("x")
        with standin("--run-dir", folder, wait=False) as job:
            until(lambda: "  try   " in job.output(), START_LIMIT, "ready")
            check(os.path.exists(os.path.join(folder, "endpoint.json")), "endpoint file")
            with standin("--run-dir", folder, wait=False) as other:
                equal(other.wait(), 1)
                check("in use by a running job" in other.output(), other.output())
            job.signal(signal.SIGINT)
            equal(job.wait(), 0)
        equal(sorted(os.listdir(folder)), ["mine", "run.log"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wrong_places_are_errors():
    long = "/tmp/" + "x" * 90
    for env, says in (({"TMPDIR": "/proc"}, "/proc/mpiserve"), ({"TMPDIR": long}, "too long|cannot make"),
                      ({"TMPDIR": "/dev/null"}, "cannot make")):
        done = subprocess.run([STANDIN, "up", "models/tiny"], env=dict(os.environ, **env), capture_output=True,
                              text=True, timeout=20)
        equal(done.returncode, 1, str(env))
        check(re.search(says, done.stderr), done.stderr)
    for options, status, says in ((["--mpirun", "no-such-mpirun"], 1, "no such program in PATH"), (["--prot", "1"], 2, "--port"),
                                  (["--api-key", "sk-12345678"], 2, "--api-key-file")):
        done = subprocess.run([STANDIN, "up", "models/tiny", *options], capture_output=True, text=True, timeout=20)
        equal(done.returncode, status, str(options))
        check(says in done.stderr and "sk-1234" not in done.stderr, done.stderr)


def loading_is_shown():
    with standin(mode="loading") as job:  # no terminal: lines, not many
        lines = [line for line in job.output().splitlines() if "loading weights" in line]
        check(len(lines) == 1 and re.search(r"loading weights: \d+ %, [\d.]+ of [\d.]+ GB, [\d.]+ GB/s$", lines[0]), job.output())
        check("#" not in lines[0] and "\x1b" not in job.output(), job.output())


def loading_is_a_bar_on_a_terminal():
    folder = tempfile.mkdtemp(prefix="mpt-", dir="/tmp")
    master, slave = os.openpty()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MPISERVE_", "OMPI_"))}
    if "MPISERVE_MPIRUN" in os.environ:
        env["MPISERVE_MPIRUN"] = os.environ["MPISERVE_MPIRUN"]
    up = subprocess.Popen([STANDIN, "up", "-n", "2", "models/tiny", "--port", "8123"], stdin=subprocess.DEVNULL, stdout=slave,
                          stderr=slave, env=dict(env, STANDIN="loading", TMPDIR=folder), start_new_session=True)
    os.close(slave)
    seen = b""
    try:
        os.set_blocking(master, False)
        def ready():
            nonlocal seen
            try:
                seen += os.read(master, 65536)
            except BlockingIOError:
                pass
            return b"  try   " in seen
        until(ready, START_LIMIT, "the job is ready")
        up.send_signal(signal.SIGINT)
        equal(up.wait(20), 0)
    finally:
        if up.poll() is None:
            up.kill()
            up.wait()
        os.close(master)
        shutil.rmtree(folder, ignore_errors=True)
    # all engines together; the line goes before anything else is said
    check(b"\rloading weights: ############.................. 42 %, 1.7 of 4.0 GB, 3.50 GB/s\x1b[K\r\x1b[K" in seen, repr(seen))
    check(seen.rfind(b"\r\x1b[K") < seen.find(b"serves tiny"), repr(seen))


def idle_up_sleeps():
    with standin(ranks=1) as job:
        def ticks():
            with open(f"/proc/{job.up.pid}/stat") as f:
                fields = f.read().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])
        before = ticks()
        time.sleep(2)
        check(ticks() - before <= 1, "an idle up uses the processor")


run(says_what_to_do_when_ready, a_signal_drains, a_second_signal_ends_at_once, a_drain_has_an_end,
    interrupted_before_it_was_ready, failed_starts_say_why, the_reason_is_told_alone, a_word_that_is_no_command,
    a_crash_is_shown_and_ends_the_job_within_a_second,
    kills_leave_nothing, a_killed_up_leaves_nothing_alive_and_the_next_start_removes_its_files,
    a_given_folder_keeps_what_is_not_ours, wrong_places_are_errors, loading_is_shown, loading_is_a_bar_on_a_terminal,
    idle_up_sleeps)
