#!/usr/bin/env python3
"""Job files: serving by one, who wins over whom, errors of `up` and of mpirun, and what is made from the option table."""
import re

from harness import *

FOLDER = tempfile.mkdtemp(prefix="mpt-jobs-", dir="/tmp")
os.symlink(DEMO, os.path.join(FOLDER, "model"))
PORT_LATER = ("--port", "0")  # from the command line, so that tests do not share a port


def job_file(text, name="job.yaml"):
    path = os.path.join(FOLDER, name)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    return path


def command(*arguments, **more):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MPISERVE_", "OMPI_"))}
    environment.update(more.pop("env", {}))
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=20 * SLOW, env=environment,
                          cwd=more.pop("cwd", None))


def served(job):
    return [m["id"] for m in job.get("/v1/models").json["data"]]


def a_file_says_everything():
    path = job_file("model: model\nserved-model-name: [first, second]\nranks: 3\nport: 0\napi_key: none\n"
                    "max_num_seqs: 4\nenforce_eager: true\n")
    with Job(model=path, ranks=None, cwd="/") as job:
        equal(len(job.agents()), 3, "ranks")
        equal(served(job), ["first", "second"])
        equal(content(job.chat("What is 17 + 25?", model="second")), content(job.chat("What is 17 + 25?")))
        equal(job.endpoint["key_file"], "", "api_key: none")
        check(f"{path}:7:1: enforce_eager is ignored: there is nothing to compile" in job.output(), job.output())
        equal(job.log().count("enforce_eager is ignored"), 1, "the note in the job's own log")
        job.signal(signal.SIGINT)
        equal(job.wait(), 0)
        equal(job.leftovers(), [])


def as_in_ray_serve():
    path = job_file("http_options: {host: 127.0.0.1, port: 0}\n"
                    "deployments:\n  - name: ray\n    model: model\n    num_replicas: 2\n    max_ongoing_requests: 3\n")
    with Job(model=path, ranks=2) as job:
        equal(served(job), ["ray"])
        equal(len(job.engines()), 2)


def command_line_then_environment_then_file():
    path = job_file("model: /nonexistent\nserved_model_name: of-the-file\nmax_num_seqs: 3\nmax_model_len: 512\n"
                    "ranks: 5\n")
    environment = {"MPISERVE_SERVED_MODEL_NAME": "of-the-environment", "MPISERVE_MAX_MODEL_LEN": "256",
                   "MPISERVE_RANKS": "1"}
    with Job(DEMO, "--max-model-len", "128", model=path, ranks=None, env=environment) as job:
        equal(served(job), ["of-the-environment"])
        equal(len(job.agents()), 1)
        error = job.post("/v1/completions", {"prompt": "a b " * 400, "max_tokens": 1}).json["error"]
        equal(error["n_ctx"], 128)


def mpirun_alone():
    """Without `up`: every rank reads the file."""
    path = job_file("model: model\nport: 0\nrun_dir: run\napi_key: none\nserved_model_name: bare\n")
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", TMPDIR=FOLDER,
                       PRTE_ALLOW_RUN_AS_ROOT="1", PRTE_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    environment.setdefault("ASAN_OPTIONS", "detect_leaks=0")
    mpirun = [os.environ.get("MPISERVE_MPIRUN", "mpirun"), "-np", "2", "--oversubscribe", "--bind-to", "none"]
    endpoint = os.path.join(FOLDER, "run", "endpoint.json")
    with open(os.path.join(FOLDER, "output"), "w+b") as output:
        job = subprocess.Popen([*mpirun, PROGRAM, path], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                               env=environment, cwd="/", start_new_session=True)
        try:
            def ready():
                check(job.poll() is None, f"mpirun ended: {open(output.name).read()}")
                if not os.path.exists(endpoint):
                    return None
                with open(endpoint) as f:
                    value = json.load(f)
                return value if value["state"] == "READY" else None
            equal(until(ready, START_LIMIT, "ready")["model"], "bare")
            job.send_signal(signal.SIGUSR1)
            equal(job.wait(20 * SLOW), 0, "exit status after a drain")
        finally:
            below = descendants(job.pid) if job.poll() is None else []
            job.poll() is None and job.kill()
            job.wait()
            for p in below:
                p.kill()


def errors_name_the_place():
    for text, says in (("max_num_seq: 1\n", "1:1: max_num_seq: no such option; did you mean max_num_seqs"),
                       ("port: 1\n\nport: 2\n", "3:1: port: is given twice; the first is in line 1"),
                       ("port: 70000\n", "1:7: port: `70000` is not in the range 0..65535"),
                       ("deployments:\n  - name: a\n  - name: b\n", "3:5: deployments: a job serves one deployment"),
                       ("\tport: 1\n", "1:1: a tab in front of the line"),
                       ("api_key: sk-1234567890\n", "1:10: api_key: a key in a job file is copied")):
        path = job_file(text)
        for start in (("up", path), ("up", "--config", path), (path,)):
            done = command(*start)
            check(done.returncode != 0, f"{start}: {done}")
            check(f"{path}:{says}" in done.stderr and "sk-1" not in done.stderr, done.stderr)
            equal(len(done.stderr.strip().splitlines()), 1, f"one line: {done.stderr}")
    done = command("up", "/nonexistent/job.yaml")
    check("/nonexistent/job.yaml: there is no such file" in done.stderr, done.stderr)
    done = command("up", "jobs/nothing.yaml", cwd=TOP)
    check(" jobs/nothing.yaml: there is no such file" in done.stderr, done.stderr)


def late_errors_name_the_place_too():
    path = job_file("model: model\nport: 0\nmax_model_len: 100000\n")
    with Job(model=path, ranks=1, wait=False) as job:
        equal(job.wait(), 1)
        check(f"{path}:3:16: max_model_len: 100000 is more than the model's 1024" in job.output(), job.output())


def a_file_that_differs_between_ranks_is_refused():
    """Ranks of several hosts may see different files of one name."""
    path = job_file("model: model\nport: 0\nmax_num_seqs: 4\n")
    job_file("model: model\nport: 0\nmax_num_seqs: 5\n", "other.yaml")
    script = os.path.join(FOLDER, "rank")
    with open(script, "w", encoding="utf-8") as f:
        f.write(f'#!/bin/sh\n[ "$OMPI_COMM_WORLD_RANK" = 0 ] || exec {PROGRAM} {FOLDER}/other.yaml\nexec {PROGRAM} {path}\n')
    os.chmod(script, 0o755)
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", TMPDIR=FOLDER,
                       PRTE_ALLOW_RUN_AS_ROOT="1", PRTE_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    environment.setdefault("ASAN_OPTIONS", "detect_leaks=0")
    done = subprocess.run([os.environ.get("MPISERVE_MPIRUN", "mpirun"), "-np", "2", "--oversubscribe", "--bind-to", "none",
                           script], capture_output=True, text=True, timeout=30 * SLOW, env=environment)
    wanted = "rank 1 .* has --max-num-seqs 5, rank 0 .* has 4"
    check(done.returncode != 0 and re.search(wanted, done.stderr), done.stderr)


# ---- made from the option table --------------------------------------------------------------------------------------
def documents_are_not_stale():
    done = subprocess.run([os.path.join(TOP, "tests/tools/docs"), "--check", PROGRAM], capture_output=True, text=True)
    equal((done.returncode, done.stdout, done.stderr), (0, "", ""))


def valid(value, schema, root):
    """As much of JSON Schema as jobs/schema.json uses; an unknown word fails."""
    for word, by in schema.items():
        if word in ("description", "deprecated", "title", "$schema", "$comment", "$defs", "patternProperties",
                    "additionalProperties"):
            continue
        if word == "$ref":
            ok = valid(value, root["$defs"][by.split("/")[-1]], root)
        elif word == "anyOf":
            ok = any(valid(value, one, root) for one in by)
        elif word == "type":
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            ok = {"object": isinstance(value, dict), "array": isinstance(value, list), "string": isinstance(value, str),
                  "null": value is None, "integer": number and value == int(value), "number": number}[by]
        elif word == "enum":
            ok = value in by
        elif word == "const":
            ok = value == by
        elif word in ("minimum", "maximum"):
            ok = not isinstance(value, (int, float)) or (value >= by if word == "minimum" else value <= by)
        elif word == "pattern":
            ok = not isinstance(value, str) or re.search(by, value)
        elif word in ("minItems", "maxItems", "minLength"):
            ok = not isinstance(value, (list, str)) or (len(value) <= by if word == "maxItems" else len(value) >= by)
        elif word == "items":
            ok = not isinstance(value, list) or all(valid(one, by, root) for one in value)
        elif word == "properties":
            ok = not isinstance(value, dict) or all(known(k, v, schema, root) for k, v in value.items())
        else:
            raise AssertionError(f"the schema says {word}")
        if not ok:
            return False
    return True


def known(key, value, schema, root):
    found = [s for name, s in schema["properties"].items() if name == key]
    found += [s for pattern, s in schema["patternProperties"].items() if re.search(pattern, key)]
    return bool(found) and all(valid(value, s, root) for s in found)


def schema_and_program_agree():
    with open(os.path.join(TOP, "jobs/schema.json"), encoding="utf-8") as f:
        schema = json.load(f)
    equal(schema["$schema"], "https://json-schema.org/draft/2020-12/schema")
    # JSON is YAML: the same text for both.
    for value, good in (({}, True), ({"port": 0}, True), ({"port": 70000}, False), ({"port": "80"}, False), ({"port": None}, True),
                        ({"prot": 1}, False), ({"max-num-seqs": 4}, True), ({"max_num_seqs": 0}, False),
                        ({"dtype": "bfloat16"}, True), ({"compute": "fp8"}, False), ({"served_model_name": "a"}, True),
                        ({"served_model_name": ["a", "b"]}, True), ({"served_model_name": []}, False),
                        ({"kv_cache_memory_bytes": "2G"}, True), ({"kv_cache_memory_bytes": "2X"}, False),
                        ({"max_model_len": "auto"}, True), ({"threads": "auto"}, True), ({"queue_timeout_s": 1.5}, True),
                        ({"queue_timeout": "x"}, False), ({"api_key": "none"}, True), ({"api_key": "sk-1234567890"}, False),
                        ({"enforce_eager": True}, True), ({"ssl_keyfile": "x"}, False), ({"config": "x.yaml"}, False),
                        ({"scheduling_policy": "fcfs"}, True), ({"scheduling_policy": "priority"}, True), ({"scheduling_policy": "lifo"}, False),
                        ({"stream_interval": 1}, True), ({"stream_interval": 2}, False),
                        ({"http_options": {"port": 1, "request_timeout_s": 2}}, True), ({"http_options": {"ranks": 1}}, False),
                        ({"http_options": []}, False), ({"deployments": [{"name": "a", "num_replicas": 1}]}, True),
                        ({"deployments": []}, False), ({"deployments": [{"port": 1}]}, False), ({"name": "a"}, False)):
        equal(bool(valid(value, schema, schema)), good, f"the schema about {value}")
        # An error of the file, or (good) the one of the command line, which comes later.
        done = command("up", job_file(json.dumps(value)), "--api-key", "none", "--host", "0.0.0.0")
        equal("--api-key: none is only possible" in done.stderr, good, f"the program about {value}: {done.stderr}")


try:
    run(a_file_says_everything, as_in_ray_serve, command_line_then_environment_then_file, mpirun_alone, errors_name_the_place,
        late_errors_name_the_place_too, a_file_that_differs_between_ranks_is_refused, documents_are_not_stale,
        schema_and_program_agree)
finally:
    shutil.rmtree(FOLDER, ignore_errors=True)
