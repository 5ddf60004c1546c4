#!/usr/bin/env python3
"""LoRA adapters behind the real server: under their own names, together with the base, through crashes, and what is wrong with a folder."""
from concurrent.futures import ThreadPoolExecutor
from harness import *

REFERENCE = os.path.join(TOP, "tests/reference")
BASE = os.path.join(REFERENCE, "models/llama_tied_llama3")
FOLDERS = {"attention": os.path.join(REFERENCE, "adapters/llama_attention"), "all": os.path.join(REFERENCE, "adapters/llama_all")}
MODULES = ("--lora-modules", *(f"{name}={folder}" for name, folder in FOLDERS.items()))
OPTIONS = ("--compute", "f32", "--max-num-batched-tokens", "64", "--served-model-name", "base")
TOLERANCE = 2e-3


def prompts(folder):
    with open(os.path.join(folder, "reference.json")) as f:
        return json.load(f)["prompts"]


WANTED = {"base": prompts(BASE), **{name: prompts(folder) for name, folder in FOLDERS.items()}}


def body(model, ids, n=24):
    return {"model": model, "prompt": ids, "temperature": 0, "ignore_eos": True, "max_tokens": n, "logprobs": 1,
            "return_token_ids": True}


def ask(job, model, ids, n=24):
    answer = job.post("/v1/completions", body(model, ids, n))
    equal(answer.status, 200, f"{answer}")
    equal(answer.json["model"], model)
    choice = answer.json["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"], answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]


def judge(answer, prompt, what):
    equal(answer[0], prompt["greedy"]["ids"], what)
    worst = max(abs(a - b) for a, b in zip(answer[1], prompt["greedy"]["logprobs"]))
    check(worst <= TOLERANCE, f"{what}: log-probabilities are off by {worst:g}")


def everybody(job):
    """Every prompt of every model at the same time: (model, i) -> answer."""
    asked = [(model, i) for i in range(4) for model in WANTED]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda a: ask(job, a[0], WANTED[a[0]][a[1]]["ids"]), asked))
    return dict(zip(asked, answers))


def served_together(*options, ranks=1):
    def serve():
        with Job(*OPTIONS, *MODULES, *options, ranks=ranks, model=BASE) as job:
            answers = everybody(job)
            for (model, i), answer in answers.items():
                judge(answer, WANTED[model][i], f"{model}, prompt {i}, with the others")
            for (model, i), answer in answers.items():
                again = ask(job, model, WANTED[model][i]["ids"])
                equal(again[:2], answer[:2], f"bits of {model}, prompt {i}, cached and alone")
    serve.__name__ = " ".join(("served together", *options))
    return serve


def the_prefix_cache_does_not_mix():
    ids = WANTED["base"][3]["ids"]
    with Job(*OPTIONS, *MODULES, ranks=1, model=BASE) as job:
        for model in ("base", "attention", "all"):
            equal([ask(job, model, ids, 1)[2] for _ in range(2)], [0, 96], f"cached tokens of {model}")
        equal(ask(job, "base", ids, 1)[2], 96, "cached tokens of the base again")


def the_router_knows_adapters_prefixes():
    ids = WANTED["base"][3]["ids"]
    with Job(*OPTIONS, *MODULES, "--router", "prefix_aware", ranks=2, model=BASE) as job:
        for model in ("attention", "all", "base"):
            ask(job, model, ids, 1)
            time.sleep(0.5)  # leaders tell what they have
            equal([ask(job, model, ids, 1)[2] for _ in range(4)], [96] * 4, f"cached tokens of {model}")


def a_crash_keeps_the_text():
    prompt = WANTED["all"][1]
    with Job(*OPTIONS, *MODULES, ranks=1, model=BASE, env={"MPISERVE_FAULT": "slow-step:20"}) as job:
        for n in (1, 10):
            old, got = job.engines(), []
            stream = job.stream("/v1/completions", {**body("all", prompt["ids"]), "stream": True})
            for event in stream:
                equal(event["model"], "all")
                for choice in event["choices"]:
                    got += choice.get("token_ids") or []
                if len(got) >= n and old:
                    for p in old.values():
                        p.kill()
                    old = None
            check(stream.done and old is None, "killed in the middle of a whole stream")
            equal(got, prompt["greedy"]["ids"], f"tokens after a kill behind {n}")


def models_are_listed():
    with Job(*OPTIONS, *MODULES, ranks=1, model=BASE) as job:
        cards = {card["id"]: card for card in job.get("/v1/models").json["data"]}
        equal(list(cards), ["base", "attention", "all"])
        equal((cards["base"]["parent"], cards["base"]["root"]), (None, "base"))
        for name, folder in FOLDERS.items():
            equal((cards[name]["parent"], cards[name]["root"]), ("base", folder))
            equal(cards[name]["max_model_len"], cards["base"]["max_model_len"])
            equal(job.get(f"/v1/models/{name}").json, cards[name])
        equal(job.get("/v1/models/other").status, 404)
        for path, more in (("/v1/completions", {"prompt": [5]}), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})):
            answer = job.post(path, {"model": "other", **more})
            equal((answer.status, answer.json["error"]["code"]), (404, "model_not_found"), path)
        equal(job.post("/tokenize", {"model": "all", "prompt": "<5>"}).status, 200)


def job_files_name_them():
    texts = ("lora_modules: {all: all}", "lora_modules: [all=all]", "lora_modules:\n  - {name: all, path: all}",
             "lora_modules: all=all", f"deployments:\n  - model: {BASE}\n    lora_modules: {{all: all}}")
    for text in texts:
        with tempfile.TemporaryDirectory() as top:
            shutil.copytree(FOLDERS["all"], os.path.join(top, "all"))
            with open(os.path.join(top, "job.yaml"), "w") as f:
                f.write(f"{text}\ncompute: f32\n" + ("" if text.startswith("dep") else f"model: {BASE}\n"))
            with Job(ranks=1, model=os.path.join(top, "job.yaml")) as job:
                judge(ask(job, "all", WANTED["all"][1]["ids"]), WANTED["all"][1], text)


def fails(wanted, *options):
    done = subprocess.run([PROGRAM, "up", "-n", "1", "--port", "0", *options, BASE], capture_output=True, text=True, timeout=60 * SLOW)
    out = done.stdout + done.stderr
    errors = [line for line in out.splitlines() if " E " in f" {line}" and "the job did not start" not in line]
    check(done.returncode != 0 and any(wanted in line for line in errors), f"{options}: {out}")
    equal(len(errors), 1, out)


def bad_folders_are_told_once():
    with tempfile.TemporaryDirectory() as top:
        folder = os.path.join(top, "a")

        def edited(**fields):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(FOLDERS["attention"], folder)
            path = os.path.join(folder, "adapter_config.json")
            with open(path) as f:
                config = json.load(f)
            with open(path, "w") as f:
                json.dump({**config, **fields}, f)
            return f"a={folder}"
        for fields, wanted in (({"use_dora": True}, '"use_dora" is not offered'),
                               ({"peft_type": "IA3"}, '"peft_type" is "IA3"; offered: LORA'),
                               ({"bias": "lora_only"}, '"bias" is "lora_only"'),
                               ({"r": 9}, "q_proj.lora_A.weight has shape [8, 64]; adapter_config.json and the model ask for [9, 64]")):
            fails(wanted, "--lora-modules", edited(**fields))
            fails("--lora-modules: a: " + folder, "--lora-modules", edited(**fields))
        os.unlink(os.path.join(folder, "adapter_model.safetensors"))
        fails("adapter_model.safetensors", "--lora-modules", f"a={folder}")
        fails("is the name of the model itself", "--lora-modules", f"base={FOLDERS['all']}", "--served-model-name", "base")
        other = os.path.join(REFERENCE, "adapters/deepseek_latent")
        fails("of llama models, adapters may change self_attn.q_proj", "--lora-modules", f"a={other}")
        fails("`x` is named twice", "--lora-modules", f"x={folder}", "--lora-modules", f"x={folder}")
        fails("has no name: write NAME=FOLDER", f"--lora-modules={folder}")


run(served_together(), served_together("-q", "auto", "--enable-lora", "--max-lora-rank", "64"), served_together("-tp", "2", ranks=2),
    served_together("-pp", "2", ranks=2), the_prefix_cache_does_not_mix, the_router_knows_adapters_prefixes, a_crash_keeps_the_text,
    models_are_listed, job_files_name_them, bad_folders_are_told_once)
