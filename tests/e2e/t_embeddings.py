#!/usr/bin/env python3
"""/v1/embeddings: the reference's vectors, however they are asked for and whatever dies meanwhile; errors name their field."""
import base64
import functools
import math
import struct
from harness import *

FOLDER = os.path.join(TOP, "tests/reference/embeddings")
MODEL = os.path.join(FOLDER, "qwen3")
OPTIONS = ("--compute", "f32", "--max-num-batched-tokens", "64", "--max-num-seqs", "8")
with open(os.path.join(FOLDER, "vectors.json")) as f:
    GOLDEN = json.load(f)
with open(os.path.join(FOLDER, "encoders.json")) as f:
    ENCODERS = json.load(f)["models"]
WHOLE = ("--compute", "f32", "--max-num-batched-tokens", "320", "--max-num-seqs", "8")
TEXTS, END, TOLERANCE = GOLDEN["texts"], GOLDEN["end"], GOLDEN["tolerance"]
LONG = max(range(len(TEXTS)), key=lambda i: len(TEXTS[i]["ids"]))


def text(ids):
    return "".join(f"<{i}>" for i in ids)


def unit(vector):
    length = math.sqrt(sum(v * v for v in vector))
    return [v / length for v in vector]


def near(got, wanted, what, tolerance=TOLERANCE):
    equal(len(got), len(wanted), f"{what}: numbers")
    worst = max(abs(a - b) for a, b in zip(got, wanted))
    check(worst <= tolerance, f"{what}: off by {worst:g}")


def ask(job, given, **more):
    answer = job.post("/v1/embeddings", {"input": given, **more})
    equal(answer.status, 200, f"{answer}")
    return answer.json


def vectors(answer):
    equal([d["index"] for d in answer["data"]], list(range(len(answer["data"]))))
    equal({d["object"] for d in answer["data"]}, {"embedding"})
    return [d["embedding"] for d in answer["data"]]


def floats(text64):
    data = base64.b64decode(text64, validate=True)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def changed_model(folder, pooling, modules=3, prompt=None, width=64):
    """A copy of the model that pools otherwise."""
    shutil.copytree(MODEL, folder)

    def edit(name, change):
        path = os.path.join(folder, name)
        with open(path) as f:
            value = json.load(f)
        value = change(value)
        with open(path, "w") as f:
            json.dump(value, f)
    edit("1_Pooling/config.json", lambda c: {**{k: v if k == "include_prompt" else False for k, v in c.items()},
                                             "word_embedding_dimension": width, f"pooling_mode_{pooling}": True})
    edit("modules.json", lambda m: m[:modules])
    edit("config.json", lambda c: {**c, "architectures": ["Qwen3Model"]})
    edit("config_sentence_transformers.json", lambda c: {**c, "default_prompt_name": prompt})
    return folder


# ---- values ----------------------------------------------------------------------------------------------------------
def the_four_forms_of_input():
    with Job(*OPTIONS, ranks=1, model=MODEL) as job:
        for i, t in enumerate(TEXTS):
            whole = t["ids"] + [END]
            one = ask(job, text(t["ids"]))
            equal(one["usage"], {"prompt_tokens": len(whole), "total_tokens": len(whole)})
            equal((one["object"], one["model"]), ("list", "qwen3"))
            near(vectors(one)[0], unit(t["lasttoken"]), f"text {i}")
            equal(vectors(ask(job, whole)), vectors(one), "ids of the same text")
        until(lambda: "/v1/embeddings -H" in job.output(), 5 * SLOW, "the example when it is ready")
        all_texts = ask(job, [text(t["ids"]) for t in TEXTS])
        all_ids = ask(job, [t["ids"] + [END] for t in TEXTS])
        equal(all_texts["usage"]["prompt_tokens"], sum(len(t["ids"]) + 1 for t in TEXTS))
        for i, t in enumerate(TEXTS):
            near(vectors(all_texts)[i], unit(t["lasttoken"]), f"text {i} of a list")
        equal(vectors(all_ids), vectors(all_texts), "lists of ids")


def base64_and_dimensions():
    with Job(*OPTIONS, ranks=1, model=MODEL) as job:
        given = text(TEXTS[1]["ids"])
        whole = vectors(ask(job, given, encoding_format="float"))[0]
        coded = vectors(ask(job, given, encoding_format="base64"))[0]
        equal([struct.unpack("<f", struct.pack("<f", v))[0] for v in whole], floats(coded), "base64")
        check(abs(sum(v * v for v in whole) - 1) < 1e-6, "length 1")
        for n in (1, 2, 17, 64):
            for form in ("float", "base64"):
                got = vectors(ask(job, given, dimensions=n, encoding_format=form))[0]
                near(floats(got) if form == "base64" else got, unit(whole[:n]), f"{n} dimensions", 1e-6)


def other_poolings():
    for pooling, flag in (("mean", "mean_tokens"), ("cls", "cls_token"), ("lasttoken", "lasttoken")):
        with tempfile.TemporaryDirectory() as top:
            model = changed_model(os.path.join(top, "model"), flag, modules=2)
            with Job(*OPTIONS, ranks=1, model=model) as job:
                for again in range(2):  # the second time blocks of the prompts are cached
                    got = vectors(ask(job, [text(t["ids"]) for t in TEXTS]))
                    for i, t in enumerate(TEXTS):
                        near(got[i], t[pooling], f"{pooling} of text {i}, not normalised", 2e-3)
                equal(vectors(ask(job, text(TEXTS[LONG]["ids"])))[0], got[LONG], f"{pooling} alone")


def a_default_prompt_comes_first():
    with tempfile.TemporaryDirectory() as top:
        model = changed_model(os.path.join(top, "model"), "lasttoken", prompt="query")
        with Job(*OPTIONS, ranks=1, model=model) as asks, Job(*OPTIONS, ranks=1, model=MODEL) as plain:
            ids = TEXTS[1]["ids"]
            equal(vectors(ask(asks, text(ids))), vectors(ask(plain, text([7, 8, 9] + ids))))
            equal(vectors(ask(asks, ids)), vectors(ask(plain, ids)), "ids are taken as they are")


def bits_do_not_depend_on_company_or_chunks():
    given = [text(t["ids"]) for t in TEXTS]
    for pooling in ("lasttoken", "mean_tokens"):
        with tempfile.TemporaryDirectory() as top:
            model = changed_model(os.path.join(top, "model"), pooling)
            with Job(*OPTIONS, ranks=1, model=model) as job:
                wanted = vectors(ask(job, given))
                equal([vectors(ask(job, g))[0] for g in given], wanted, "one by one")
                equal(vectors(ask(job, given * 20)), wanted * 20, "more than fit at once")
            with Job("--compute", "f32", "--max-num-batched-tokens", "9", "--max-num-seqs", "3", "--no-enable-prefix-caching",
                     ranks=1, model=model) as job:
                equal(vectors(ask(job, given)), wanted, "chunks of 9 tokens")


def replicas_of_several_engines():
    given = [text(t["ids"]) for t in TEXTS]
    for options, ranks in ((("-tp", "2"), 2), (("-pp", "2"), 2), ((), 2)):
        with Job(*OPTIONS, *options, ranks=ranks, model=MODEL) as job:
            got = vectors(ask(job, given))
            for i, t in enumerate(TEXTS):
                near(got[i], unit(t["lasttoken"]), f"text {i} with {options}")
            equal([vectors(ask(job, g))[0] for g in given], got, f"bits with {options}")


# ---- encoders ----------------------------------------------------------------------------------------------------------
def encoder(name):
    """Its folder, texts, their ids and wanted vectors, and the tolerance."""
    texts = ENCODERS[name]["texts"]
    wanted = [unit(t["mean"]) for t in texts] if name == "bert" else [t["cls"] for t in texts]
    return os.path.join(FOLDER, name), [t["text"] for t in texts], [t["ids"] for t in texts], wanted


def encoders_read_whole_prompts():
    for name in ("bert", "xlmr"):
        model, texts, ids, wanted = encoder(name)
        with Job(*WHOLE, ranks=1, model=model) as job:
            answer = ask(job, texts)
            got = vectors(answer)
            equal(answer["usage"]["prompt_tokens"], sum(map(len, ids)), "special tokens count")
            for i in range(len(texts)):
                near(got[i], wanted[i], f"{name}, text {i}", 1e-5)
            equal(vectors(ask(job, ids)), got, "ids of the same texts")
            equal([vectors(ask(job, t))[0] for t in texts], got, "one by one")
            equal(vectors(ask(job, texts * 20)), got * 20, "more than fit at once")
            equal(job.metric("vllm:prefix_cache_hits_total"), 0, "no cached blocks are of use")
        for options, ranks in ((("-tp", "2"), 2), (("-pp", "2"), 2)):
            with Job(*WHOLE, *options, ranks=ranks, model=model) as job:
                parts = vectors(ask(job, texts))
                for i in range(len(texts)):
                    near(parts[i], wanted[i], f"{name}, text {i} with {options}", 1e-5)
                equal([vectors(ask(job, t))[0] for t in texts], parts, f"bits with {options}")


def an_encoder_killed_in_the_middle():
    for name in ("bert", "xlmr"):
        model, texts, _, _ = encoder(name)
        given = texts * 6
        with Job(*WHOLE, ranks=1, model=model) as job:
            wanted = vectors(ask(job, given))
        with Job(*WHOLE, ranks=1, model=model, env={"MPISERVE_FAULT": "slow-step:30"}) as job:
            for delay in (0.05, 0.2):
                old = job.engines()
                results = together(2, lambda i: (ask(job, given), time.monotonic()) if i == 0 else
                                   (time.sleep(delay), [p.kill() for p in old.values()], time.monotonic()))
                equal(vectors(results[0][0]), wanted, f"killed after {delay} s")
                check(results[1][2] < results[0][1], "the kill came before the answer")
                until(job.healthy, 10 * SLOW, "/health is 200 again")


def what_an_encoder_does_not_do():
    model, texts, ids, _ = encoder("bert")
    cls, sep = ids[0][0], ids[0][-1]
    long, body = ids[-1] + ids[-1], [5, 6, 7, 8, 9] * 80
    with Job(*WHOLE, ranks=1, model=model) as job:
        refused(job, {"prompt": "a"}, "model", "/v1/embeddings", path="/v1/completions")
        refused(job, {"messages": [{"role": "user", "content": "a"}]}, "model", "/v1/embeddings", path="/v1/chat/completions")
        refused(job, {"query": "a", "documents": ["b"]}, "model", "classifier", path="/v1/rerank")
        refused(job, {"input": long}, "input_tokens", str(len(long)), "320")
        refused(job, {"input": texts[-1] * 2}, "input_tokens", "320")
        equal(ask(job, body[:320])["usage"]["prompt_tokens"], 320, "all positions")
        # a cut leaves what the tokenizer puts around a text
        for side, kept in (("right", ids[2][1:8]), ("left", ids[2][-8:-1])):
            cut = ask(job, texts[2], truncate_prompt_tokens=9, truncation_side=side)
            equal(cut["usage"]["prompt_tokens"], 9)
            equal(vectors(cut), vectors(ask(job, [cls] + kept + [sep])), f"cut {side}")
        equal(ask(job, texts[-1] * 2, truncate_prompt_tokens=-1)["usage"]["prompt_tokens"], 320)
    for options, words in ((("--max-num-batched-tokens", "300", "--max-num-seqs", "8"), ("300", "320", "--max-num-batched-tokens 320")),
                           (("--engine", "cuda"), ("cuda",))):
        done = subprocess.run([PROGRAM, "up", "-n", "1", model, "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, timeout=60 * SLOW)
        check(done.returncode not in (0, None), "it ends with an error")
        for word in words:
            check(word in done.stderr + done.stdout, f"no {word!r} in {done.stderr + done.stdout}")
    with Job("--max-num-batched-tokens", "64", "--max-model-len", "64", "--max-num-seqs", "8", "--compute", "f32", ranks=1, model=model) as job:
        refused(job, {"input": ids[-1]}, "input_tokens", str(len(ids[-1])), "64")
        near(vectors(ask(job, texts[1]))[0], encoder("bert")[3][1], "a lower limit", 1e-5)


# ---- deaths ----------------------------------------------------------------------------------------------------------
def killed_in_the_middle():
    given = [text(t["ids"]) for t in TEXTS] * 4
    for pooling in ("lasttoken", "mean_tokens"):
        with tempfile.TemporaryDirectory() as top:
            model = changed_model(os.path.join(top, "model"), pooling)
            with Job(*OPTIONS, ranks=1, model=model) as job:
                wanted = vectors(ask(job, given))
            with Job(*OPTIONS, "--no-enable-prefix-caching", ranks=1, model=model, env={"MPISERVE_FAULT": "slow-step:20"}) as job:
                for delay in (0.05, 0.3):
                    old = job.engines()
                    results = together(2, lambda i: (ask(job, given), time.monotonic()) if i == 0 else
                                       (time.sleep(delay), [p.kill() for p in old.values()], time.monotonic()))
                    equal(vectors(results[0][0]), wanted, f"killed after {delay} s")
                    check(results[1][2] < results[0][1], "the kill came before the answer")
                    until(lambda: all(not p.alive() for p in old.values()), 5 * SLOW, "the old engines are gone")
                    until(job.healthy, 10 * SLOW, "/health is 200 again")


def vectors_that_are_not_finite_fail_alone():
    with Job(*OPTIONS, ranks=1, model=MODEL, env={"MPISERVE_FAULT": "nan-token:300"}) as job:
        old = job.engines()
        equal(job.post("/v1/embeddings", {"input": [5, 300, 6]}).status, 500)
        near(vectors(ask(job, text(TEXTS[1]["ids"])))[0], unit(TEXTS[1]["lasttoken"]), "the next one")
        check(old[0].alive(), "the engine lives on")


# ---- errors ----------------------------------------------------------------------------------------------------------
refused = functools.partial(refused_field, path="/v1/embeddings")


def errors_name_the_field():
    with Job(*OPTIONS, ranks=1, model=MODEL) as job:
        refused(job, {}, "input", "required")
        refused(job, {"input": ""}, "input", "empty")
        refused(job, {"input": []}, "input", "empty")
        refused(job, {"input": 7}, "input", "integer")
        refused(job, {"input": ["a", ""]}, "input[1]", "empty")
        refused(job, {"input": ["a", [1]]}, "input[1]", "array")
        refused(job, {"input": [1, 512]}, "input[1]", "512")
        refused(job, {"input": [[1], [1, -1]]}, "input[1][1]", "-1")
        refused(job, {"input": ["a"] * 2049}, "input", "2048")
        refused(job, {"input": "a", "encoding_format": "int8"}, "encoding_format", "base64")
        refused(job, {"input": "a", "dimensions": 0}, "dimensions", "64")
        refused(job, {"input": "a", "dimensions": 65}, "dimensions", "64")
        refused(job, {"input": "a", "dimensions": 1.5}, "dimensions", "integer")
        refused(job, {"input": "a", "model": "other"}, "model", "other", status=404)
        refused(job, {"messages": [{"role": "user", "content": "a"}]}, "messages", "input")
        refused(job, {"input": [5] * 513}, "input_tokens", "512")
        equal(ask(job, [5] * 512)["usage"]["prompt_tokens"], 512, "the whole context")
        equal(ask(job, [5] * 600, truncate_prompt_tokens=-1)["usage"]["prompt_tokens"], 512, "cut to the context")


def models_do_what_their_folders_say():
    chat = {"messages": [{"role": "user", "content": "a"}]}
    with Job(*OPTIONS, ranks=1, model=MODEL) as job:
        refused(job, {"prompt": "a"}, "model", "/v1/embeddings", path="/v1/completions")
        refused(job, chat, "model", "/v1/embeddings", path="/v1/chat/completions")
        equal(job.post("/tokenize", {"prompt": "<5>"}).json["tokens"], [5, END])
    with Job(*OPTIONS, ranks=1) as job:
        refused(job, {"input": "a"}, "model", "modules.json")
        refused(job, {"input": "a", "dimensions": 3}, "model", "modules.json")


def reservations_hold_for_embeddings():
    with Job(*OPTIONS, "--max-num-seqs", "2", ranks=1, model=MODEL) as job:
        held = job.post("/v1/reservations", {}).json["id"]
        body = {"input": text(TEXTS[0]["ids"])}
        answer = job.post("/v1/embeddings", body, headers={"X-Reservation": held})
        equal(answer.status, 200, f"{answer}")
        equal(job.post("/v1/embeddings", body, headers={"X-Reservation": held}).status, 409)
        equal(job.post("/v1/embeddings", {"input": ["a", "b"]}, headers={"X-Reservation": held}).status, 400)


def without_maths():
    with Job(*OPTIONS, "--engine", "null", ranks=1, model=MODEL) as job:
        got = vectors(ask(job, [[5] * n for n in (1, 2, 70)]))
        equal([v.index(1.0) for v in got], [1, 2, 6])


run(the_four_forms_of_input, base64_and_dimensions, other_poolings, a_default_prompt_comes_first,
    bits_do_not_depend_on_company_or_chunks, replicas_of_several_engines, encoders_read_whole_prompts,
    an_encoder_killed_in_the_middle, what_an_encoder_does_not_do, killed_in_the_middle,
    vectors_that_are_not_finite_fail_alone, errors_name_the_field, models_do_what_their_folders_say,
    reservations_hold_for_embeddings, without_maths)
