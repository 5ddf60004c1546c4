"""What jobs over GPUs must do, whatever the GPU: for t_cuda.py, over the emulation, and for tests/gpu/t_gpu.py."""
import math
import re

from harness import *

CHATS = [c for c in expected_chats() if c["min_gap"] >= 0.1 and len(c["ids"]) < 30][:6]
LIMITS = ("--compute", "f32", "--max-model-len", "512", "--max-num-seqs", "8", "--max-num-batched-tokens", "256")
CUDA = ("--engine", "cuda", *LIMITS)
SEEDED = {"prompt": "Once upon a time", "max_tokens": 60, "seed": 7, "temperature": 0.9, "top_p": 0.95, "top_k": 40,
          "presence_penalty": 0.5, "ignore_eos": True, "logprobs": 3}


def draws_of_a_cpu(program):
    def completion(*options, program):
        with Job(*options, program=program, ranks=1) as job:
            answer = job.post("/v1/completions", SEEDED)
            equal(answer.status, 200, f"{answer}")
            return answer.json["choices"][0]
    cpu, cuda = completion(*LIMITS, program=PROGRAM), completion(*CUDA, program=program)
    equal(cuda["text"], cpu["text"])
    for got, wanted in zip(cuda["logprobs"]["top_logprobs"], cpu["logprobs"]["top_logprobs"]):
        equal(list(got), list(wanted), "the best tokens")
        check(all(abs(got[t] - wanted[t]) < 1e-3 for t in got), f"{got} {wanted}")


def other_numbers(program):
    for compute in ("auto", "f16"):
        with Job("--engine", "cuda", "--compute", compute, *LIMITS[2:], program=program, ranks=1) as job:
            check(f"{'bf16' if compute == 'auto' else compute} on cuda" in job.log(), job.log())
            answer = job.chat("What is 17 + 25?")
            check("42" in answer["choices"][0]["message"]["content"], answer)


def vectors_and_scores(program):
    """What the reference library says, from models that make nothing else; of vectors, which are normalised, too."""
    folder = os.path.join(TOP, "tests/reference/embeddings")
    options = ("--engine", "cuda", "--compute", "f32", "--max-num-batched-tokens", "320", "--max-num-seqs", "8")
    with open(os.path.join(folder, "encoders.json")) as f:
        encoders = json.load(f)["models"]

    def job_of(model):
        return Job(*options, program=program, ranks=1, model=os.path.join(folder, model))

    def length(vector):
        return math.sqrt(sum(x * x for x in vector))
    with job_of("bert_scorer") as job:
        pairs = encoders["bert_scorer"]["pairs"]
        answer = job.post("/v1/score", {"text_1": [p["query"] for p in pairs], "text_2": [p["document"] for p in pairs]})
        for got, p in zip(answer.json["data"], pairs):
            wanted = 1 / (1 + math.exp(-p["logit"])) if encoders["bert_scorer"]["sigmoid"] else p["logit"]
            check(abs(got["score"] - wanted) < 1e-3, f"{got}, wanted {wanted}")
    with job_of("xlmr") as job:
        texts = encoders["xlmr"]["texts"]
        answer = job.post("/v1/embeddings", {"input": [t["ids"] for t in texts]})
        equal(answer.status, 200, f"{answer}")
        for got, t in zip(answer.json["data"], texts):
            wanted, a = t["cls"], got["embedding"]
            cosine = sum(x * y for x, y in zip(a, wanted)) / length(a) / length(wanted)
            check(cosine > 0.99999, f"{t['text']!r}: {cosine}")


def base_and_adapters(program, *options, ranks=1):
    """Greedy tokens of a model and of two adapters, asked for together: what the reference library says."""
    reference = os.path.join(TOP, "tests/reference")
    base = os.path.join(reference, "models/llama_tied_llama3")
    folders = {"base": base, **{name: os.path.join(reference, "adapters", f"llama_{name}") for name in ("attention", "all")}}
    wanted = {}
    for name, folder in folders.items():
        with open(os.path.join(folder, "reference.json")) as f:
            wanted.update({(name, i): p for i, p in enumerate(json.load(f)["prompts"])})
    modules = [f"{name}={folder}" for name, folder in folders.items() if name != "base"]
    with Job("--engine", "cuda", "--compute", "f32", "--max-num-batched-tokens", "64", "--served-model-name", "base",
             *options, "--lora-modules", *modules, program=program, ranks=ranks, model=base) as job:
        def ask(key):
            body = {"model": key[0], "prompt": wanted[key]["ids"], "temperature": 0, "ignore_eos": True, "max_tokens": 24,
                    "return_token_ids": True}
            answer = job.post("/v1/completions", body)
            equal(answer.status, 200, f"{answer}")
            equal(answer.json["choices"][0]["token_ids"], wanted[key]["greedy"]["ids"], f"{key}")
        keys = list(wanted)
        together(len(keys), lambda i: ask(keys[i]))


def killed_in_a_stream(program, after, *options, ranks=1):
    """A replica whose last engine is killed behind so many letters: the text of one that is not."""
    with Job(*CUDA, *options, program=program, ranks=ranks) as job:
        wanted, old = text_of(job.post("/v1/completions", SEEDED)), job.engines()
        equal(streamed_until(job, SEEDED, after, old[ranks - 1].kill), (wanted, True), f"text after a kill behind {after} letters")
        check(not any(engine.alive() for engine in old.values()), "the stream was shorter than expected, or a part of the group outlived it")
        equal(text_of(job.post("/v1/completions", SEEDED)), wanted, "with the new engine")


def answers_of_a_group(program, tp, pp, **env):
    """A replica of several GPUs: the references' tokens, each engine with a GPU of its own, and an end in order. Returns the log."""
    with Job(*CUDA, "-tp", str(tp), "-pp", str(pp), program=program, ranks=tp * pp, env=env) as job:
        together(len(CHATS), lambda i: ask_chat(job, CHATS[i]))
        log = job.log()
        gpus = re.findall(r"f32 on cuda, (GPU-[0-9a-f-]+)", log)
        equal((len(gpus), len(set(gpus))), (tp * pp, tp * pp), f"GPUs of {tp} x {pp} engines: {gpus}")
        job.signal(signal.SIGINT)
        equal(job.wait(), 0, job.output())
        return log
