#!/usr/bin/env python3
"""/v1/rerank and /v1/score: the reference's scores of pairs, in order, whatever dies meanwhile; errors name their field."""
import functools
import math

from harness import *

FOLDER = os.path.join(TOP, "tests/reference/embeddings")
OPTIONS = ("--compute", "f32", "--max-num-batched-tokens", "320", "--max-num-seqs", "8")
with open(os.path.join(FOLDER, "encoders.json")) as f:
    ENCODERS = json.load(f)["models"]
MODELS = ("bert_scorer", "xlmr_scorer")
DOCUMENTS = ["The server is in the kitchen.", "water", "a", "Two workers wait for the queue.", "b " * 100, "a"]


def wanted(model, pair):
    return 1 / (1 + math.exp(-pair["logit"])) if ENCODERS[model]["sigmoid"] else pair["logit"]


def pairs(model):
    return ENCODERS[model]["pairs"]


def job_of(model, *options, ranks=1, **more):
    return Job(*OPTIONS, *options, ranks=ranks, model=os.path.join(FOLDER, model), **more)


def ask(job, path, body):
    answer = job.post(path, body)
    equal(answer.status, 200, f"{answer}")
    return answer.json


def rerank(job, query, documents, **more):
    return ask(job, "/v1/rerank", {"query": query, "documents": documents, **more})


def scores(job, first, second):
    data = ask(job, "/v1/score", {"text_1": first, "text_2": second})["data"]
    equal([d["index"] for d in data], list(range(len(data))))
    equal({d["object"] for d in data}, {"score"})
    return [d["score"] for d in data]


def near(got, want, what):
    check(abs(got - want) <= 1e-5, f"{what}: {got}, wanted {want}")


# ---- values ----------------------------------------------------------------------------------------------------------
def the_reference_s_scores():
    for model in MODELS:
        with job_of(model) as job:
            until(lambda: "/v1/rerank -H" in job.output(), 5 * SLOW, "the example when it is ready")
            for i, p in enumerate(pairs(model)):
                answer = rerank(job, p["query"], [p["document"]])
                check(answer["id"].startswith("rerank-") and answer["model"] == model, f"{answer}")
                equal(answer["usage"], {"prompt_tokens": len(p["ids"]), "total_tokens": len(p["ids"])})
                equal([(r["index"], r["document"]) for r in answer["results"]], [(0, {"text": p["document"]})])
                near(answer["results"][0]["relevance_score"], wanted(model, p), f"{model}, pair {i}")
            got = scores(job, [p["query"] for p in pairs(model)], [p["document"] for p in pairs(model)])
            for i, p in enumerate(pairs(model)):
                near(got[i], wanted(model, p), f"{model}, score {i}")
            equal(scores(job, "a", "b"), [got[1]], "two texts")
            equal(scores(job, ["a"], ["b", "b"]), [got[1]] * 2, "one with each")


def the_best_come_first():
    for model in MODELS:
        with job_of(model) as job:
            query = "Where is the server?"
            each = scores(job, query, DOCUMENTS)
            order = sorted(range(len(each)), key=lambda i: (-each[i], i))
            check(order.index(2) + 1 == order.index(5), "equal ones in their order")
            for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
                results = ask(job, path, {"model": model, "query": query, "documents": DOCUMENTS})["results"]
                equal([r["index"] for r in results], order)
                equal([r["relevance_score"] for r in results], [each[i] for i in order], "bits in company")
                equal([r["document"]["text"] for r in results], [DOCUMENTS[i] for i in order])
            for n, count in ((0, 6), (1, 1), (4, 4), (99, 6)):
                equal([r["index"] for r in rerank(job, query, DOCUMENTS, top_n=n)["results"]], order[:count])
            short = rerank(job, query, [{"text": d, "other": 1} for d in DOCUMENTS], return_documents=False)["results"]
            equal([sorted(r) for r in short], [["index", "relevance_score"]] * 6)
            equal([r["index"] for r in short], order, "documents as objects")
            many = rerank(job, query, DOCUMENTS * 30)["results"]
            equal(many, sorted(many, key=lambda r: (-r["relevance_score"], r["index"])), "many")
            equal({r["relevance_score"] for r in many}, set(each))


def replicas_of_several_engines():
    for model in MODELS:
        for options in (("-tp", "2"), ("-pp", "2")):
            with job_of(model, *options, ranks=2) as job:
                for i, p in enumerate(pairs(model)):
                    near(scores(job, p["query"], p["document"])[0], wanted(model, p), f"{model}, pair {i} with {options}")


def long_documents():
    model = "bert_scorer"
    long = "the server reads the prompt " * 80
    with job_of(model) as job:
        refused(job, {"query": "a", "documents": ["b", long]}, "input_tokens", "320")
        refused(job, {"query": "a " * 450000, "documents": ["b"] * 2048}, "input_tokens", "320")  # not once for each of them
        refused(job, {"query": "a " * 450000, "documents": ["b"] * 2048, "truncate_prompt_tokens": -1}, "documents", "first text")
        answer = rerank(job, "a", [long, "b"], truncate_prompt_tokens=-1)
        equal(answer["usage"]["prompt_tokens"], 320 + len(pairs(model)[1]["ids"]))
        equal([r["document"]["text"] for r in answer["results"] if r["index"] == 0], [long], "documents come back whole")
        short = {"text_1": "a", "text_2": "the server reads the"}
        whole = ask(job, "/v1/score", short)
        cut = ask(job, "/v1/score", {**short, "text_2": long, "truncate_prompt_tokens": whole["usage"]["prompt_tokens"]})
        equal((cut["data"], cut["usage"]), (whole["data"], whole["usage"]), "the second text's end is cut")
        refused(job, {"query": long, "documents": ["b"], "truncate_prompt_tokens": -1}, "documents", "first text")


# ---- deaths ----------------------------------------------------------------------------------------------------------
def killed_in_the_middle():
    for model in MODELS:
        given = DOCUMENTS * 6
        with job_of(model, env={"MPISERVE_FAULT": "slow-step:30"}) as job:
            want = rerank(job, "water", given)["results"]
            for delay in (0.05, 0.2):
                old = job.engines()
                results = together(2, lambda i: (rerank(job, "water", given), time.monotonic()) if i == 0 else
                                   (time.sleep(delay), [p.kill() for p in old.values()], time.monotonic()))
                equal(results[0][0]["results"], want, f"killed after {delay} s")
                check(results[1][2] < results[0][1], "the kill came before the answer")
                until(job.healthy, 10 * SLOW, "/health is 200 again")


# ---- errors ----------------------------------------------------------------------------------------------------------
refused = functools.partial(refused_field, path="/v1/rerank")


def errors_name_the_field():
    score = "/v1/score"
    with job_of("bert_scorer") as job:
        refused(job, {"documents": ["a"]}, "query", "required")
        refused(job, {"query": "a"}, "documents", "required")
        refused(job, {"query": ["a"], "documents": ["b"]}, "query", "array")
        refused(job, {"query": "", "documents": ["b"]}, "query", "empty")
        refused(job, {"query": "a", "documents": "b"}, "documents", "array")
        refused(job, {"query": "a", "documents": []}, "documents", "empty")
        refused(job, {"query": "a", "documents": ["b", 7]}, "documents[1]", "integer")
        refused(job, {"query": "a", "documents": ["b", {"title": "c"}]}, "documents[1]", "text")
        refused(job, {"query": "a", "documents": ["b", ""]}, "documents[1]", "empty")
        refused(job, {"query": "a", "documents": ["b"] * 2049}, "documents", "2048")
        refused(job, {"query": "a", "documents": ["b"], "top_n": -1}, "top_n")
        refused(job, {"query": "a", "documents": ["b"], "model": "other"}, "model", "other", status=404)
        refused(job, {"text_2": "b"}, "text_1", "required", path=score)
        refused(job, {"text_1": "b"}, "text_2", "required", path=score)
        refused(job, {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_1", "2", "3", path=score)
        refused(job, {"text_1": ["a", "b"], "text_2": "c"}, "text_1", "2", path=score)
        refused(job, {"text_1": [], "text_2": "c"}, "text_1", "empty", path=score)
        refused(job, {"text_1": ["a", {"text": "b"}], "text_2": ["c", "d"]}, "text_1[1]", "object", path=score)
        refused(job, {"input": "a"}, "model", "/v1/rerank", path="/v1/embeddings")
        refused(job, {"prompt": "a"}, "model", "/v1/score", path="/v1/completions")
        check(rerank(job, "a", ["b"])["results"], "the next one is served")
    with Job("--max-num-seqs", "8", ranks=1) as job:
        refused(job, {"query": "a", "documents": ["b"]}, "model", "/v1/chat/completions")


def reservations_hold_for_one_pair():
    with job_of("bert_scorer") as job:
        held = job.post("/v1/reservations", {}).json["id"]
        equal(job.post("/v1/rerank", {"query": "a", "documents": ["b", "c"]}, headers={"X-Reservation": held}).status, 400)
        equal(job.post("/v1/rerank", {"query": "a", "documents": ["b"]}, headers={"X-Reservation": held}).status, 200)
        equal(job.post("/v1/rerank", {"query": "a", "documents": ["b"]}, headers={"X-Reservation": held}).status, 409)


def with_post_processor(model, folder, post):
    shutil.copytree(os.path.join(FOLDER, model), folder)
    path = os.path.join(folder, "tokenizer.json")
    with open(path) as f:
        file = json.load(f)
    file["post_processor"] = post
    with open(path, "w") as f:
        json.dump(file, f)
    return folder


def types_are_for_models_that_have_them():
    def item(kind, name, type_id):
        return {kind: {"id": name, "type_id": type_id}}
    single = [item("SpecialToken", "<s>", 0), item("Sequence", "A", 0), item("SpecialToken", "</s>", 0)]
    post = {"type": "TemplateProcessing", "single": single,
            "pair": single + [item("SpecialToken", "</s>", 0), item("Sequence", "B", 1), item("SpecialToken", "</s>", 1)],
            "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in (("<s>", 0), ("</s>", 2))}}
    with tempfile.TemporaryDirectory() as top:
        with Job(*OPTIONS, ranks=1, model=with_post_processor("xlmr_scorer", os.path.join(top, "model"), post)) as job:
            for i, p in enumerate(pairs("xlmr_scorer")):
                near(scores(job, p["query"], p["document"])[0], wanted("xlmr_scorer", p), f"pair {i}")


def a_tokenizer_without_pairs_is_refused():
    with tempfile.TemporaryDirectory() as top:
        folder = with_post_processor("bert_scorer", os.path.join(top, "model"), None)
        done = subprocess.run([PROGRAM, "up", "-n", "1", folder, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=60 * SLOW)
        check(done.returncode not in (0, None), "it ends with an error")
        check("post_processor" in done.stdout + done.stderr and "pairs" in done.stdout + done.stderr, done.stdout + done.stderr)


def without_maths():
    with job_of("bert_scorer", "--engine", "null") as job:
        equal([r["index"] for r in rerank(job, "a", ["b", "c"])["results"]], [0, 1])


run(the_reference_s_scores, the_best_come_first, replicas_of_several_engines, long_documents, killed_in_the_middle, errors_name_the_field,
    reservations_hold_for_one_pair, types_are_for_models_that_have_them, a_tokenizer_without_pairs_is_refused, without_maths)
