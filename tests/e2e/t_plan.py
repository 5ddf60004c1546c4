#!/usr/bin/env python3
"""mpiserve plan: what it prints, what it refuses, and that the job does the same."""
import re
import shlex
import struct

from harness import *


def plan(*arguments, env=None):
    """(exit code, stdout, stderr); in an empty temporary folder, which stays empty: no MPI, nothing is left."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MPISERVE_")}
    with tempfile.TemporaryDirectory(prefix="mpt-", dir="/tmp") as folder:
        done = subprocess.run([PROGRAM, "plan", *arguments], capture_output=True, text=True, timeout=20 * SLOW,
                              env={**environment, "TMPDIR": folder, **(env or {})})
        equal(os.listdir(folder), [], "left in TMPDIR")
    return done.returncode, done.stdout, done.stderr


def planned(*arguments, code=0):
    got, out, err = plan(*arguments, "--json")
    equal(got, code, f"{arguments}: {err}")
    value = json.loads(out)
    equal(out.count("\n"), 1, "one line")
    equal(value["fits"], code == 0, "fits")
    equal(len(err.strip().splitlines()), len(value["refusals"]), f"a line for each refusal: {err}")
    for r in value["refusals"]:
        check(r["message"] in err and r["where"] in err, f"{r} in {err}")
    return value


def cpus_of(text):
    found = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        found |= set(range(int(low), int(high or low) + 1))
    return found


BIG = ("--nodes", "4", "--gpus-per-node", "8", "--cores", "64", "--numa", "2", "--memory-per-node", "256G")


def a_picture_sizes_and_the_lines_to_start_it():
    code, out, err = plan(DEMO, *BIG, "--port", "81", "--served-model-name", "it's")
    equal((code, err), (0, ""))
    for line in ("it's: 4 nodes, 8 ranks on each, 64 cores in 2 NUMA domains on each",
                 "32 replicas of one engine each, PACK; an engine takes cores",
                 "| rank 0  replica 0  ReplicaRank {rank 0, node_rank 0, local_rank 0}  CPUs 0-7   |",
                 "| rank 7  replica 7  ReplicaRank {rank 7, node_rank 0, local_rank 7}  CPUs 56-63 |",
                 "nodes 1 to 3 likewise: ranks 8 to 31, 8 engines each",
                 "a replica: 65536 tokens in its KV cache (4096 blocks of 16); 64 sequences of 1024 tokens",
                 "the job:   2097152 tokens; 2048 sequences of 1024 tokens",
                 "an engine: 8 cores, 8 threads",
                 "note: engines of --engine cpu take cores. What is shown"):
        check(line in out, f"no `{line}` in:\n{out}")
    check(re.search(r"an engine: KV cache +\d+\.\d MiB\n", out) and re.search(r"and has +256.0 GiB\n", out), out)
    lines = [shlex.split(line) for line in out.splitlines() if line.startswith(("  mpirun ", "  sbatch "))]
    for line in lines:
        equal(line[-5:], [DEMO, "--port", "81", "--served-model-name", "it's"], "the job's options, and no others")
    equal(lines[0][:10], ["mpirun", "--hostfile", "HOSTS", "-np", "32", "--map-by", "ppr:8:node", "--oversubscribe",
                          "--bind-to", "none"])
    equal(lines[1][:6], ["sbatch", "--nodes=4", "--ntasks-per-node=8", "--cpus-per-task=8", "--mem=0", "slurm/serve.slurm"])
    boxes = [line for line in out.splitlines() if line.startswith(("  +", "  |"))]
    equal(len({len(line) for line in boxes}), 1, "straight edges")


def one_object_for_programs():
    value = planned(DEMO, *BIG)
    equal(value["ground"], {"nodes": 4, "ranks_per_node": 8, "cores_per_node": 64, "numa_per_node": 2, "gpus_per_node": 8,
                            "memory_per_node_bytes": 256 << 30, "this_machine": False})
    place = value["placement"]
    ranks = [(node["node"], r) for node in place["nodes"] for r in node["ranks"]]
    equal([r["rank"] for _, r in ranks], list(range(32)))
    for node, r in ranks:
        equal(r["replica_rank"], {"rank": r["rank"], "node_rank": node, "local_rank": r["rank"] % 8})
        equal(len(cpus_of(r["cpus"])), 8)
    equal((place["data_parallel_size"], place["data_parallel_size_local"], place["engine_takes"]), (32, None, "cores"))
    engine, node = value["engine"], value["node"]
    equal(node["needed_bytes"], node["weights_bytes"] + 8 * node["rank_bytes"] + 8 *
          (engine["kv_cache_bytes"] + engine["activation_bytes"] + engine["ring_bytes"]))
    equal((value["kv_blocks"], value["block_size"], value["max_model_len"]), (4096, 16, 1024))
    equal(value["replica"], {"kv_tokens": 65536, "full_sequences": 64, "max_num_seqs": 64, "max_ongoing_requests": 64})
    equal(value["job"]["kv_tokens"], 32 * 65536)
    equal(value["commands"]["up"], None)


def tensors(folder):
    for name in os.listdir(folder):
        if name.endswith(".safetensors"):
            with open(os.path.join(folder, name), "rb") as f:
                header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            yield from (t["data_offsets"] for key, t in header.items() if key != "__metadata__")


def sizes_follow_the_model_and_the_options():
    f32, bf16 = (planned(DEMO, "--ranks", "1", "--cores", "1", "--compute", c) for c in ("f32", "bf16"))
    equal(f32["engine"]["kv_cache_bytes"], 2 * bf16["engine"]["kv_cache_bytes"], "twice the bytes of a number")
    # K and V, 5 layers of 4 heads of 32 numbers, 2 bytes, for each token of 4096 blocks and the one never handed out
    equal(bf16["engine"]["kv_cache_bytes"], 2 * 5 * 4 * 32 * 2 * 16 * 4097)
    stored = sum(end - start for start, end in tensors(DEMO))
    check(stored <= f32["node"]["weights_bytes"] <= 2 * stored, f"{stored} bytes stored, {f32['node']}")
    small = planned(DEMO, "--ranks", "1", "--cores", "1", "--max-model-len", "100", "--max-num-seqs", "10")
    equal(small["replica"], {"kv_tokens": 1120, "full_sequences": 10, "max_num_seqs": 10, "max_ongoing_requests": 10})
    tight = planned(DEMO, "--ranks", "1", "--cores", "1", "--kv-cache-memory-bytes", "8M")
    check(tight["engine"]["kv_cache_bytes"] <= 8 << 20 and tight["replica"]["full_sequences"] < 64, tight["engine"])
    check(small["engine"]["activation_bytes"] < tight["engine"]["activation_bytes"], "smaller limits, less memory")
    # without a number: half of a node, shared by its ranks
    share = planned(DEMO, "--ranks", "4", "--cores", "4", "--memory-per-node", "800M")
    check(99 << 20 < share["engine"]["kv_cache_bytes"] <= 100 << 20, share["engine"])


def strategies():
    def takes(*arguments):
        value = planned(DEMO, "--nodes", "4", "--cores", "8", "--ranks-per-node", "4", *arguments)
        return [node["engines"] for node in value["placement"]["nodes"]]

    option = "--placement-group-strategy"
    equal(takes(), [4, 4, 4, 4])
    equal(takes("-dp", "6"), [4, 2, 0, 0])
    equal(takes("-dp", "6", option, "SPREAD"), [2, 2, 1, 1])
    equal(takes("-dp", "4", option, "STRICT_PACK"), [4, 0, 0, 0])
    equal(takes("-dp", "3", option, "STRICT_SPREAD"), [1, 1, 1, 0])
    equal(takes(option, "STRICT_SPREAD"), [1, 1, 1, 1])
    equal(takes("-dp", "7", "-dpl", "1", option, "SPREAD"), [1, 2, 2, 2])
    equal(takes("-dpl", "0"), [0, 4, 4, 4])
    code, out, _ = plan(DEMO, "--nodes", "4", "--cores", "8", "--ranks-per-node", "1", "-dpl", "0")
    check(code == 0 and "| rank 0  no engine " in out and "node 0: HTTP on rank 0" in out, out)


def topologies():
    for words, ranks, cores, least, most in (
            ("numa:2 core:4 pu:2", 4, 8, 2, 2), ("numa:4 core:16 pu:1", 7, 64, 8, 16), ("core:6 pu:1", 6, 6, 1, 1),
            ("package:2 numa:2 core:3 pu:1", 4, 12, 3, 3), ("numa:1 core:3 pu:4", 2, 3, 1, 2)):
        value = planned(DEMO, "--topology", words, "--ranks", str(ranks))
        equal(value["ground"]["cores_per_node"], cores, words)
        sets = [cpus_of(r["cpus"]) for r in value["placement"]["nodes"][0]["ranks"]]
        equal(len(set().union(*sets)), sum(map(len, sets)), f"{words}: disjoint")
        equal(value["placement"]["cores_shared"], False)
        equal((value["engine"]["least_cores"], value["engine"]["most_cores"]), (least, most), words)
    two = planned(DEMO, "--topology", "numa:2 core:4 pu:2")
    equal(two["ground"]["ranks_per_node"], 2, "one a NUMA domain")
    equal([r["cpus"] for r in two["placement"]["nodes"][0]["ranks"]], ["0-7", "8-15"])
    crowded = planned(DEMO, "--cores", "2", "--ranks", "5")
    check(crowded["placement"]["cores_shared"] and any("5 engines share 2 cores" in n for n in crowded["notes"]), crowded["notes"])


REFUSED = (  # options, where, what the message says
    (("--cores", "8", "--memory-per-node", "30M", "--ranks", "4"), "--memory-per-node",
     ("a node needs", "4 engines", "has 31457280", "fewer ranks")),
    (("--cores", "8", "--memory-per-node", "1M", "--ranks", "1"), "--memory-per-node",
     ("one sequence of 1024 tokens", "share is 524288", "--max-model-len")),
    (("--cores", "8", "--kv-cache-memory-bytes", "64K"), "--kv-cache-memory-bytes", ("1024 tokens", "there are 65536")),
    (("--max-model-len", "2000"), "--max-model-len", ("2000 is more than the model's 1024",)),
    (("--nodes", "2", "--ranks-per-node", "2", "-dp", "5"), "data_parallel_size", ("5 replicas", "4 ranks on 2 nodes allow 4")),
    (("--nodes", "2", "--ranks-per-node", "2", "-dp", "3", "--placement-group-strategy", "STRICT_SPREAD"), "data_parallel_size",
     ("3 replicas", "allow 2 under STRICT_SPREAD")),
    (("--nodes", "2", "--ranks-per-node", "2", "-dp", "3", "--placement-group-strategy", "STRICT_PACK"), "data_parallel_size",
     ("3 replicas", "on one node", "holds 2")),
    (("--nodes", "2", "--ranks-per-node", "2", "-dpl", "2", "--placement-group-strategy", "STRICT_SPREAD"),
     "data_parallel_size_local", ("2 replicas on the head node",)),
    (("--ranks", "1", "-dpl", "0"), "data_parallel_size_local", ("no rank is left",)),
    (("--gpus-per-node", "2", "--ranks-per-node", "4"), "--gpus-per-node", ("4 engines", "2 GPUs")),
    (("--ranks", "5", "--nodes", "2"), "--ranks", ("5 ranks", "--nodes 2")),
    (("--ranks", "6", "--nodes", "2", "--ranks-per-node", "2"), "--ranks", ("is 6", "is 4")),
    (("--cores", "5", "--numa", "2"), "--numa", ("5 cores", "--topology")),
    (("--numa", "2"), "--numa", ("needs --cores",)),
    (("--topology", "numa:2 cores"), "--topology", ("does not understand", "numa:2 cores")),
    (("--topology", "core:2", "--cores", "2"), "--topology", ("leave --cores",)),
    (("-tp", "3", "--ranks", "3"), "--tensor-parallel-size", ("3", "8")),
    (("--nodes", "0"), "--nodes", ("1..65536",)),
    (("--memory-per-nod", "1G"), "--memory-per-nod", ("did you mean --memory-per-node",)),
    (("--json=yes",), "--json", ("false|true",)),
    (("a", "b"), "b", ("one argument too many",)),
)


def what_cannot_be_is_refused_with_numbers():
    for arguments, where, words in REFUSED:
        model = () if arguments[0] == "a" else (DEMO,)
        code, out, err = plan(*model, *arguments)
        equal(code, 1, f"{arguments}: {err}")
        check("Start" not in out and "mpirun" not in out, f"{arguments}: {out}")
        check(f" E {where}: " in err and all(w in err for w in words), f"{arguments}: {err}")
        equal(len(err.strip().splitlines()), 1, f"one line: {err}")
        if "--json=yes" not in arguments:
            value = json.loads(plan(*model, "--json", *arguments)[1])
            equal(value["refusals"][0]["where"], where)
    code, out, err = plan("/nonexistent")
    check(code == 1 and "/nonexistent" in err, err)
    check("is set in the environment" in plan(env={"MPISERVE_NODES": "4"})[2], "not from the environment")
    for command in ("up",):
        done = subprocess.run([PROGRAM, command, "--nodes", "2"], capture_output=True, text=True, timeout=20)
        check(done.returncode == 2 and "only for `mpiserve plan`" in done.stderr, done.stderr)


def job_files():
    with tempfile.TemporaryDirectory(prefix="mpt-", dir="/tmp") as folder:
        path = os.path.join(folder, "job.yaml")
        with open(path, "w") as f:
            f.write(f"model: {DEMO}\nmax_num_seqs: 4\nplacement_group_strategy: SPREAD\ndata_parallel_size: 2\nmax_model_len: 512\n")
        value = planned(path, "--nodes", "2", "--ranks-per-node", "2", "--max-num-seqs", "5")
        equal(value["replica"]["full_sequences"], 5, "the command line wins")
        equal((value["max_model_len"], [n["engines"] for n in value["placement"]["nodes"]]), (512, [1, 1]))
        check(value["commands"]["mpirun"].endswith(f" {path} --max-num-seqs 5"), value["commands"])
        with open(path, "a") as f:
            f.write("kv_cache_memory_bytes: 64K\n")
        code, _, err = plan(path, "--ranks", "2")
        check(code == 1 and f"{path}:6:24: kv_cache_memory_bytes: one sequence of 512" in err, err)
        with open(path, "w") as f:
            f.write("nodes: 2\n")
        code, _, err = plan(path)
        check(code == 1 and f"{path}:1:1" in err, err)


def a_thousand_nodes():
    """Whole, and a page: how long it takes is not judged here."""
    value = planned(DEMO, "--nodes", "1000", "--gpus-per-node", "8", "--cores", "64", "-dp", "4000",
                    "--placement-group-strategy", "SPREAD")
    equal([n["engines"] for n in value["placement"]["nodes"]], [4] * 1000)
    code, out, _ = plan(DEMO, "--nodes", "1000", "--gpus-per-node", "8", "--cores", "64")
    check(code == 0 and len(out.splitlines()) < 60, f"a page, not {len(out.splitlines())} lines")


def the_job_is_as_planned():
    options = ("--compute", "f32", "-dp", "2", "--data-parallel-size-local", "0", "--max-num-seqs", "8")
    value = planned(DEMO, "--ranks", "3", *options)
    with Job(*options, ranks=3) as job:
        topology = job.get("/v1/topology").json
        config = job.get("/metrics").body.decode()
    ranks = [r for node in value["placement"]["nodes"] for r in node["ranks"]]
    equal([r["replica"] for r in topology["ranks"]], [r["replica"] for r in ranks])
    equal([r["replica_rank"] for r in topology["replicas"]], [r["replica_rank"] for r in ranks if r["replica"] is not None])
    equal(topology["cpu_isa"], value["engine"]["isa"])
    blocks = re.search(r'num_(?:gpu|cpu)_blocks="(\d+)"', config)
    if blocks:
        check(int(blocks.group(1)) in (value["kv_blocks"], value["kv_blocks"] + 1), f"{blocks.group(0)}: {value['kv_blocks']}")


def replicas_of_several_engines():
    def parts(value):
        return [(r["replica"], r["pp_rank"], r["tp_rank"]) if r["replica"] is not None else None
                for node in value["placement"]["nodes"] for r in node["ranks"]]

    one = planned(DEMO, "--ranks", "4", "--cores", "4", "--compute", "f32")
    both = planned(DEMO, "--ranks", "4", "--cores", "4", "--compute", "f32", "-tp", "2", "-pp", "2")
    equal(parts(both), [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)])
    equal(both["placement"]["data_parallel_size"], 1)
    # 5 layers in stages of 3 and 2, KV heads in halves; the weights of a node are all parts together, norms and padding twice
    equal(both["engine"]["kv_cache_bytes"] / both["kv_blocks"] / (one["engine"]["kv_cache_bytes"] / one["kv_blocks"]), 3 / 5 / 2)
    check(one["node"]["weights_bytes"] < both["node"]["weights_bytes"] < 1.3 * one["node"]["weights_bytes"], (one["node"], both["node"]))
    check(both["engine"]["weights_bytes"] < 0.5 * one["engine"]["weights_bytes"], (one["engine"], both["engine"]))
    # whole replicas first, then one of the stages that are left on two nodes; none of those under a strict strategy
    across = ("--nodes", "2", "--ranks-per-node", "3", "--cores", "8", "-pp", "2")
    equal(parts(planned(DEMO, *across)), [(0, 0, 0), (0, 1, 0), (1, 0, 0), (2, 0, 0), (2, 1, 0), (1, 1, 0)])
    equal(parts(planned(DEMO, *across, "--placement-group-strategy", "STRICT_SPREAD"))[2::3], [None, None])
    code, out, _ = plan(DEMO, "--nodes", "100", "--ranks-per-node", "1", "--cores", "8", "-pp", "2")
    check(code == 0 and "50 replicas of 2 engines each (2 stages of 1), PACK" in out and "rank 1  replica 0  stage 1, tensor part 0" in out, out)
    check("nodes 2 to 99 likewise: ranks 2 to 99, 1 engine each" in out and len(out.splitlines()) < 40, out)
    value = planned(DEMO, "--nodes", "1000", "--gpus-per-node", "8", "--cores", "64", "-tp", "4", "-pp", "4")
    equal(value["placement"]["data_parallel_size"], 500)


def the_job_keeps_the_strategy():
    options = ("-dp", "2", "--placement-group-strategy", "STRICT_SPREAD")
    refusal = planned(DEMO, "--ranks", "2", *options, code=1)["refusals"][0]["message"]
    with Job(*options, ranks=2, wait=False) as job:
        until(lambda: job.up.poll() is not None, START_LIMIT, "refused")
        equal(job.up.returncode, 1)
        check(refusal in job.output(), f"{refusal} in {job.output()}")
    with Job("--placement-group-strategy", "STRICT_SPREAD", "--compute", "f32", ranks=2) as job:
        equal([r["replica"] for r in job.get("/v1/topology").json["ranks"]], [0, None], "one on the only node")


run(a_picture_sizes_and_the_lines_to_start_it, one_object_for_programs, sizes_follow_the_model_and_the_options, strategies,
    topologies, what_cannot_be_is_refused_with_numbers, job_files, a_thousand_nodes, the_job_is_as_planned, replicas_of_several_engines,
    the_job_keeps_the_strategy)
