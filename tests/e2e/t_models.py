#!/usr/bin/env python3
"""Every architecture behind the real server: the references' greedy tokens and log-probabilities, of prompts alone, together and cached."""
from concurrent.futures import ThreadPoolExecutor
from harness import *

MODELS = os.path.join(TOP, "tests/reference/models")
TOLERANCE = 2e-3


def prompts(folder):
    with open(os.path.join(MODELS, folder, "reference.json")) as f:
        return json.load(f)["prompts"]


def ask(job, prompt):
    """Token ids, log-probabilities, and how many tokens of the prompt were cached."""
    answer = job.post("/v1/completions", {
        "prompt": prompt["ids"], "temperature": 0, "ignore_eos": True, "max_tokens": 24, "logprobs": 1, "return_token_ids": True})
    equal(answer.status, 200, f"{answer}")
    choice = answer.json["choices"][0]
    cached = answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"], cached


def judge(answer, prompt, what):
    ids, logprobs, _ = answer
    wanted = prompt["greedy"]
    equal(ids, wanted["ids"], what)
    worst = max(abs(a - b) for a, b in zip(logprobs, wanted["logprobs"]))
    check(worst <= TOLERANCE, f"{what}: log-probabilities are off by {worst:g}")


def serves(folder, *options):
    all_prompts = prompts(folder)
    with Job("--compute", "f32", "--max-num-batched-tokens", "64", *options, ranks=1, model=os.path.join(MODELS, folder)) as job:
        with ThreadPoolExecutor(len(all_prompts)) as pool:
            together = list(pool.map(lambda p: ask(job, p), all_prompts))
        for i, (answer, prompt) in enumerate(zip(together, all_prompts)):
            judge(answer, prompt, f"prompt {i} with the others")
            again = ask(job, prompt)
            judge(again, prompt, f"prompt {i} again")
            equal(again[:2], answer[:2], f"bits of prompt {i}, cached and not")
            equal(again[2], (len(prompt["ids"]) - 1) // 16 * 16, f"cached tokens of prompt {i}")


def prompts_that_rotate_otherwise_share_nothing():
    """llama_dynamic: the frequencies of a prompt beyond 64 tokens depend on its length."""
    prompt = prompts("llama_dynamic")[3]
    with Job("--compute", "f32", ranks=1, model=os.path.join(MODELS, "llama_dynamic")) as job:
        ask(job, {"ids": prompt["ids"][:60]})
        ask(job, {"ids": prompt["ids"][:80]})
        answer = ask(job, prompt)
        judge(answer, prompt, "the prompt behind two shorter ones")
        equal(answer[2], 0, "cached tokens")
        equal(ask(job, {"ids": prompt["ids"][:62]})[2], 48, "cached tokens of one more short one")


def other_formats_answer_alike_alone_together_and_cached():
    all_prompts = prompts("qwen3_moe")
    for options in (("-q", "int8"), ("-q", "int4", "--kv-cache-dtype", "int8"), ("--kv-cache-dtype", "f16"),
                    ("--load-format", "dummy", "-q", "int8", "--compute", "bf16")):
        with Job("--compute", "f32", "--max-num-batched-tokens", "64", *options, ranks=1,
                 model=os.path.join(MODELS, "qwen3_moe")) as job:
            with ThreadPoolExecutor(len(all_prompts)) as pool:
                together = list(pool.map(lambda p: ask(job, p), all_prompts))
            for prompt, answer in zip(all_prompts, together):
                equal(ask(job, prompt)[:2], answer[:2], f"{options}")


def codes_are_not_made_of_codes():
    done = subprocess.run([PROGRAM, "up", "-n", "1", "--port", "0", "-q", "int8", os.path.join(MODELS, "qwen3_awq")],
                          capture_output=True, text=True, timeout=60 * SLOW)
    check(done.returncode != 0 and "quantised already, and stay as they are stored" in done.stdout + done.stderr,
          done.stdout + done.stderr)


def case(folder):
    def serve():
        serves(folder)
    serve.__name__ = folder
    return serve


run(prompts_that_rotate_otherwise_share_nothing, other_formats_answer_alike_alone_together_and_cached,
    codes_are_not_made_of_codes,
    *(case(folder) for folder in sorted(os.listdir(MODELS)) if os.path.isdir(os.path.join(MODELS, folder))))
