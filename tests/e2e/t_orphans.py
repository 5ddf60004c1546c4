#!/usr/bin/env python3
"""Whatever is killed: a second later nothing of the job lives; its files are gone, at the latest at the next start."""
from harness import *

LONG = {"prompt": "Once", "ignore_eos": True, "max_tokens": 900, "n": 8, "temperature": 1}


def kill_and_look(victim, busy):
    folder = tempfile.mkdtemp(prefix="mpt-", dir="/tmp")
    try:
        with Job("--compute", "f32", ranks=4, folder=folder) as job:
            below = job.processes()
            names = sorted(p.name[:12] for p in below)
            equal([names.count("mpiserve-eng"), len(job.engines())], [4, 4], f"engines {names}")
            stream = iter(job.stream("/v1/completions", LONG)) if busy else None
            if busy:
                next(stream)
            {"mpirun": job.mpirun, "up": lambda: Process(job.up.pid), "agent 0": lambda: job.agents()[0],
             "agent 3": lambda: job.agents()[3]}[victim]().kill()
            if victim == "up":
                job.up.wait()
            until(lambda: not [p for p in below if p.alive()], 1 * SLOW, f"nothing lives after {victim} was killed")
            if victim == "up":
                with Job(ranks=1, folder=folder, wait=False) as after:
                    until(lambda: not job.shm_left(), START_LIMIT, "the next start removes shared memory")
                    after.wait_ready()
                    after.signal(signal.SIGINT)
                    equal(after.wait(), 0)
            else:
                equal(job.wait(3 * SLOW), 1, "exit status of up")
            equal(job.leftovers(), [], "leftovers")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def mpirun_is_killed():
    kill_and_look("mpirun", busy=False)


def up_is_killed():
    kill_and_look("up", busy=False)


def an_agent_is_killed():
    kill_and_look("agent 3", busy=False)


def rank_0_is_killed():
    kill_and_look("agent 0", busy=False)


def the_same_under_load():
    for victim in ("mpirun", "up", "agent 3", "agent 0"):
        kill_and_look(victim, busy=True)


def sweep_removes_what_a_killed_up_left():
    with Job(ranks=1) as job:
        def sweep(*words):
            done = subprocess.run([PROGRAM, "sweep", *words], env=dict(os.environ, TMPDIR=job.folder), capture_output=True, text=True)
            return done.returncode, done.stdout
        below = job.processes()
        equal(sweep(), (0, "0 folders of dead jobs removed\n"), "nothing is dead")
        job.up.kill()
        job.up.wait()
        until(lambda: not [p for p in below if p.alive()], 1 * SLOW, "nothing lives")
        check(sweep()[0] == 0, "sweep")
        equal(job.leftovers(), [], "leftovers")
        equal(sweep("--all")[0], 2, "a wrong option")


def a_clean_end_leaves_nothing():
    with Job(ranks=4) as job:
        below = job.processes()
        job.signal(signal.SIGTERM)
        equal(job.wait(), 0)
        equal([p for p in below if p.alive()], [])
        equal(job.leftovers(), [])


def shared_files(processes):
    """What they have mapped by name in /dev/shm."""
    files = set()
    for p in processes:
        with open(f"/proc/{p.pid}/maps") as maps:
            files |= {line.split()[5] for line in maps if " /dev/shm/" in line and "(deleted)" not in line}
    return files


def a_bare_mpirun_is_killed():
    folder = tempfile.mkdtemp(prefix="mpt-", dir="/tmp")
    environment = dict(os.environ, TMPDIR=folder, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                       PRTE_ALLOW_RUN_AS_ROOT="1", PRTE_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    mpirun = os.environ.get("MPISERVE_MPIRUN", "mpirun")
    command = [mpirun, "-np", "2", "--oversubscribe", "--bind-to", "none", PROGRAM, DEMO, "--port", "0"]
    try:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)
        until(lambda: glob.glob(os.path.join(folder, "mpiserve-*", "*", "endpoint.json")), START_LIMIT, "it starts")
        below = descendants(process.pid)
        made = shared_files(p for p in below if p.name == "mpiserve")
        check(made, "MPI shares memory")
        process.kill()
        process.wait()
        until(lambda: not [p for p in below if p.alive()], 1 * SLOW, "nothing lives")
        with Job(ranks=1, folder=folder) as after:
            left = lambda: [path for path in made if os.path.exists(path)]
            until(lambda: not left(), 5 * SLOW, f"{made} is gone")
            after.signal(signal.SIGINT)
            equal(after.wait(), 0)
        until(lambda: not glob.glob(os.path.join(folder, "*mpi*")), 5 * SLOW, "its folders are gone")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


run(mpirun_is_killed, up_is_killed, an_agent_is_killed, rank_0_is_killed, the_same_under_load,
    a_bare_mpirun_is_killed, sweep_removes_what_a_killed_up_left, a_clean_end_leaves_nothing)
