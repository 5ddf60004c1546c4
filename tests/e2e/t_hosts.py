#!/usr/bin/env python3
"""A job over several hosts: every host answers, engines come back anywhere, and options mean what they say."""
from harness_hosts import *

CHATS = [c for c in expected_chats() if c["min_gap"] >= 0.1]
F32 = ("--compute", "f32")


def streamed(job, chat):
    text = ""
    stream = job.stream("/v1/chat/completions", {"messages": chat["messages"], "temperature": 0})
    for event in stream:
        check("error" not in event, event)
        text += "".join(c["delta"].get("content") or "" for c in event["choices"])
    equal((text, stream.done), (chat["text"], True))


def check_topology(job, hosts, per_host):
    """Ranks in blocks over the hosts, a replica each; ReplicaRank as the layout gives it."""
    topology = job.get("/v1/topology").json
    equal(topology["nodes"], hosts)
    for r in topology["ranks"]:
        host, local = divmod(r["rank"], per_host)
        equal((r["host"], r["node_rank"], r["local_rank"], r["replica"]), (f"node{host}", host, local, r["rank"]))
    equal([r["replica_rank"] for r in topology["replicas"]],
          [{"rank": i, "node_rank": i // per_host, "local_rank": i % per_host} for i in range(hosts * per_host)])


def check_answers(job):
    """All chats, 8 at a time; every replica had some, and every slot was given back."""
    together(8, lambda i: [ask_chat(job, c) for c in CHATS[i::8]])
    together(8, lambda i: [streamed(job, c) for c in CHATS[i::8]])
    n = len(job.ranks())

    def quiet():
        return all(job.metric("mpiserve_slots_in_use", engine=i) == 0 for i in range(n))
    until(quiet, 5 * SLOW, "all slots are free")
    for i in range(n):
        taken, freed = (job.metric(f"mpiserve_slot_{what}_total", engine=i) for what in ("dispatches", "finishes"))
        check(taken > 0, f"replica {i} had no request")
        equal(taken, freed, f"slots of replica {i}")
        check(job.metric("mpiserve_dispatch_to_first_chunk_seconds_count", engine=i) >= taken, "first answers are timed")


def two_hosts():
    with Lab(2) as lab, HostsJob(lab, *F32, ranks=8) as job:
        until(job.healthy, START_LIMIT, "/health is 200")
        print(f"# 2 hosts, 8 ranks: /health 200 after {time.monotonic() - job.started:.2f} s")
        equal(job.endpoint["url"], f"http://node0:{job.endpoint['port']}")
        check_topology(job, 2, 4)
        check_answers(job)
        equal(job.log().count(" weights of "), 2, "weights are loaded once a host")
        for k in range(2):
            bells = [f for f in lab.files(k) if "/bell." in f]
            equal(len(bells), 4, f"doorbells of host {k}")
        job.signal(signal.SIGINT)
        equal(job.wait(), 0, job.output())
        until(job.nothing_lives, 3 * SLOW, "nothing lives")
        equal(job.files_left(), [])


def four_hosts():
    with Lab(4) as lab, HostsJob(lab, *F32, ranks=8) as job:
        check_topology(job, 4, 2)
        check_answers(job)
        job.signal(signal.SIGINT)
        equal(job.wait(), 0, job.output())
        until(job.nothing_lives, 3 * SLOW, "nothing lives")
        equal(job.files_left(), [])


def an_engine_dies_on_another_host():
    body = {"prompt": "Repeat after me: " + " ".join(f"word{i % 10}" for i in range(90)), "temperature": 1.0, "seed": 11,
            "ignore_eos": True, "max_tokens": 200}
    with Lab(2) as lab, HostsJob(lab, *F32, "--data-parallel-size-local", "0", ranks=2) as job:
        equal([r["replica"] for r in job.ranks()], [None, 0], "host 0 has no engine")
        wanted = job.post("/v1/completions", body).json["choices"][0]["text"]
        for after in (0, len(wanted) // 5):
            old = job.all_engines()
            equal(list(old), [1])
            equal(streamed_until(job, body, after, old[1].kill), (wanted, True), f"text after a kill behind {after} letters")
            until(lambda: not old[1].alive(), 5 * SLOW, "it was killed")
            until(lambda: job.all_engines().get(1) and job.healthy(), 10 * SLOW, "the engine is back")


def replicas_on_the_head_node():
    """--data-parallel-size-local: how many replicas the first host has, and where the others are."""
    rows = [((), [0, 1, 2, 3]), (("--data-parallel-size-local", "0"), [2, 3]), (("--data-parallel-size-local", "1"), [0, 2, 3]),
            (("-dp", "2", "-dpl", "1"), [0, 2]), (("-dp", "3"), [0, 1, 2])]
    with Lab(2) as lab:
        for options, leaders in rows:
            with HostsJob(lab, *options, ranks=4) as job:
                equal([r["rank"] for r in job.ranks() if r["replica"] is not None], leaders, f"{options}")
                equal(content(job.chat("What is 17 + 25?")), "17 + 25 = 42")


def refused(lab, *options, ranks=4, **more):
    """The job does not start; what was said."""
    with HostsJob(lab, *options, ranks=ranks, wait=False, **more) as job:
        equal(job.wait(), 1, job.output())
        until(job.nothing_lives, 4 * SLOW, "nothing lives")
        equal(job.files_left(), [])
        return job.output()


def numbers_that_do_not_fit():
    rows = [(("-dpl", "3"), "--data-parallel-size-local", "asks for 3 replicas", "whose 2 ranks allow 2"),
            (("-dp", "5"), "--data-parallel-size", "asks for 5 replicas", "4 ranks on 2 nodes allow 4"),
            (("-dp", "4", "-dpl", "0"), "--data-parallel-size", "asks for 4 replicas", "allow 2 with this"),
            (("-dp", "1", "-dpl", "2"), "--data-parallel-size-local", "is 2, more than", "= 1")]
    with Lab(2) as lab:
        for options, *words in rows:
            said = refused(lab, *options).replace("data_parallel_size", "--data-parallel-size").replace("_", "-")
            for word in words:
                check(word in said, f"{options}: {word!r} is not in {said}")


def the_head_nodes_address():
    with Lab(2) as lab:
        for name, url in (("node0", "node0"), (f"{NETWORK}.1", f"{NETWORK}.1"), ("localhost", "node0"), ("127.0.0.1", "node0")):
            with HostsJob(lab, "--data-parallel-address", name, ranks=2) as job:
                equal(job.endpoint["url"], f"http://{url}:{job.endpoint['port']}", name)
        for name in ("node1", f"{NETWORK}.2"):
            said = refused(lab, "--data-parallel-address", name, ranks=2)
            check(f"({NETWORK}.2) is no address of the head node: rank 0 runs on node0 ({NETWORK}.1" in said, said)
        said = refused(lab, "--data-parallel-address", "nohost", ranks=2)
        check("nohost is no address and no name that node0 can resolve" in said, said)


def ranks_that_differ():
    with Lab(2) as lab:
        for k in range(2):
            folder = lab.root(k) + "/dev/shm/model"
            shutil.copytree(DEMO, folder)
            if k == 1:
                with open(folder + "/config.json") as f:
                    config = json.load(f)
                with open(folder + "/config.json", "w") as f:
                    json.dump(dict(config, rms_norm_eps=0.001), f)
        with HostsJob(lab, ranks=2, model="/dev/shm/model", wait=False) as job:
            equal(job.wait(), 1, job.output())
            check("rank 1 (node1) has model" in job.output(), job.output())
        shutil.rmtree(lab.root(1) + "/dev/shm/model")
        with HostsJob(lab, ranks=2, model="/dev/shm/model", wait=False) as job:
            equal(job.wait(), 1, job.output())
            check("rank 1 (node1): /dev/shm/model" in job.output(), job.output())
        shutil.rmtree(lab.root(0) + "/dev/shm/model")
        equal(job.files_left(), [])


def options_in_the_environment_reach_all_hosts():
    with Lab(2) as lab, HostsJob(lab, ranks=2, env={"MPISERVE_MAX_ONGOING_REQUESTS": "3", "MPISERVE_API_KEY": "sk-of-the-user"}) as job:
        equal([r["num_slots"] for r in job.get("/v1/topology", headers={"Authorization": "Bearer sk-of-the-user"}, key=False)
              .json["replicas"]], [3, 3])


def the_users_choice_of_components_is_kept():
    """Without a component for windows between hosts there is no window: so the variable was not overwritten."""
    with Lab(2) as lab:
        said = refused(lab, ranks=2, env={"OMPI_MCA_osc": "sm"})
        check("slot window" in said and "OMPI_MCA_osc" in said, said)


def components_are_chosen_before_mpi_starts():
    """For windows between hosts over TCP, by the version of MPI; what the user has chosen stays, on every host."""
    if os.path.isdir("/sys/class/infiniband") and os.listdir("/sys/class/infiniband"):
        return  # then the choice is MPI's
    version = subprocess.run([os.environ.get("MPISERVE_MPIRUN", "mpirun"), "--version"], capture_output=True, text=True).stdout
    ours = "sm,pt2pt" if "Open MPI) 4." in version else "^ucx"
    with Lab(2) as lab:
        for users, wanted in ((None, ours), ("sm", "sm"), ("^rdma", "^rdma")):
            environment = {k: v for k, v in lab.environment.items() if k != "OMPI_MCA_osc"}
            if users:
                environment["OMPI_MCA_osc"] = users
            done = subprocess.run([HOSTS, "mpirun", "-np", "4", "-x", "ASAN_OPTIONS", os.path.join(BUILD, "tests/mpi/components"), wanted], env=environment,
                                  capture_output=True, text=True, timeout=60 * SLOW)
            equal((done.returncode, "\nok 1 - " in done.stdout), (0, True), f"{users}: {done.stdout}{done.stderr}")


def bells_between_hosts():
    with Lab(2) as lab:
        done = subprocess.run([HOSTS, "mpirun", "-np", "2", "-x", "ASAN_OPTIONS", os.path.join(BUILD, "tests/e2e/far")], env=lab.environment,
                              capture_output=True, text=True, timeout=90 * SLOW)
        equal((done.returncode, done.stdout.count("\nok "), "1..4" in done.stdout), (0, 3, True), f"{done.stdout}{done.stderr}")


def rank_0_must_be_where_up_is():
    with Lab(2) as lab:
        said = refused(lab, "--hostfile", lab.hostfile(1, order=(1,)), ranks=2)
        check("let the list of hosts begin with the machine of `mpiserve up`" in said, said)


run(two_hosts, four_hosts, an_engine_dies_on_another_host, replicas_on_the_head_node, numbers_that_do_not_fit,
    the_head_nodes_address, ranks_that_differ, options_in_the_environment_reach_all_hosts,
    the_users_choice_of_components_is_kept, components_are_chosen_before_mpi_starts, bells_between_hosts, rank_0_must_be_where_up_is)
