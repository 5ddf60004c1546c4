#!/usr/bin/env python3
"""The 40 chats of the demo model: prompt ids, and the same greedy answers alone and 8 at a time."""
from harness import *

CHATS = expected_chats()
F32_MIN_GAP, DEFAULT_MIN_GAP = 0.1, 1.0  # below these gaps rounding may choose another token


def ask(job, chat):
    body = {"messages": chat["messages"], "temperature": 0, "max_completion_tokens": len(chat["ids"]) + 8,
            "return_token_ids": True}
    answer = job.post("/v1/chat/completions", body)
    equal(answer.status, 200, f"{answer}")
    return answer.json


def compare(chat, answer):
    where = chat["messages"][-1]["content"][:60]
    choice = answer["choices"][0]
    equal(choice["token_ids"], chat["ids"], f"token ids of: {where}")
    equal(choice["message"]["content"], chat["text"], f"text of: {where}")
    equal(choice["finish_reason"], "stop", f"finish reason of: {where}")
    equal(answer["prompt_token_ids"], chat["prompt_ids"], f"prompt ids of: {where}")
    equal((answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]),
          (len(chat["prompt_ids"]), len(chat["ids"])), f"usage of: {where}")


def judged(min_gap):
    return [c for c in CHATS if c["min_gap"] >= min_gap]


def prompt_ids_are_equal():
    for chat in CHATS:
        answer = JOB.post("/tokenize", {"messages": chat["messages"]})
        equal(answer.status, 200)
        equal(answer.json["tokens"], chat["prompt_ids"], chat["messages"][-1]["content"][:60])
        equal(answer.json["count"], len(chat["prompt_ids"]))


def one_at_a_time():
    equal(len(judged(F32_MIN_GAP)), 39)
    for chat in judged(F32_MIN_GAP):
        compare(chat, ask(JOB, chat))


def eight_at_a_time():
    chats = judged(F32_MIN_GAP)
    answers = together(8, lambda i: [(c, ask(JOB, c)) for c in chats[i::8]])
    for pairs in answers:
        for chat, answer in pairs:
            compare(chat, answer)


def all_in_one_batch_of_one_replica():
    with Job("--compute", "f32", ranks=1) as job:
        chats = judged(F32_MIN_GAP)
        for chat, answer in zip(chats, together(len(chats), lambda i: ask(job, chats[i]))):
            compare(chat, answer)


def default_compute():
    with Job(ranks=2) as job:
        equal(len(judged(DEFAULT_MIN_GAP)), 38)
        for chat in judged(DEFAULT_MIN_GAP):
            compare(chat, ask(job, chat))


def portable_kernels_give_the_same_ids():
    with Job("--compute", "f32", "--cpu-isa", "portable", ranks=1) as job:
        for chat in judged(F32_MIN_GAP)[:12]:
            compare(chat, ask(job, chat))


def models_and_versions_are_listed():
    models = JOB.get("/v1/models").json
    equal([m["id"] for m in models["data"]], ["demo-model"])
    equal(models["data"][0]["max_model_len"], 1024)
    equal(JOB.get("/v1/models/demo-model").json["id"], "demo-model")
    check("version" in JOB.get("/version", key=False).json, "/version")
    topology = JOB.get("/v1/topology").body
    check(b"node_rank" in topology and b"local_rank" in topology, topology)


with Job("--compute", "f32", ranks=2) as JOB:
    run(prompt_ids_are_equal, one_at_a_time, eight_at_a_time, all_in_one_batch_of_one_replica, default_compute,
        portable_kernels_give_the_same_ids, models_and_versions_are_listed)
