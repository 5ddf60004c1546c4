#!/usr/bin/env python3
"""Server-sent events: order and shape of the chunks, and the same text as without streaming."""
from harness import *

QUESTIONS = ["What is MPI?", "Repeat: na\u00efve caf\u00e9 \U0001f600 \u4f60\u597d", "Spell the word planet.",
             "Tell me a story."]


def chat_body(text, **fields):
    messages = [{"role": "user", "content": text}]
    return dict({"messages": messages, "temperature": 0, "max_completion_tokens": 200}, **fields)


def collect(stream):
    """choice -> {text, roles, finishes}, and the usage objects."""
    choices, usages, ids = {}, [], set()
    for event in stream:
        check("error" not in event, event)
        ids.add((event["id"], event["created"], event["model"], event["object"]))
        if event.get("usage"):
            usages.append((event["usage"], event["choices"]))
        for c in event["choices"]:
            seen = choices.setdefault(c["index"], {"text": "", "roles": [], "finish": []})
            check(not seen["finish"], "a chunk behind the finish chunk")
            delta = c.get("delta", {"content": c.get("text")})
            if "role" in delta:
                check(not seen["text"], "the role comes first")
                seen["roles"].append(delta["role"])
            seen["text"] += delta.get("content") or ""
            if c["finish_reason"] is not None:
                seen["finish"].append((c["finish_reason"], c.get("stop_reason")))
    check(stream.done, "[DONE] is missing")
    equal(len(ids), 1, f"id, created, model, object are the same in all chunks: {ids}")
    return choices, usages, ids.pop()


def chat_streams_equal_unary_answers():
    for text in QUESTIONS:
        plain = JOB.post("/v1/chat/completions", chat_body(text)).json
        stream = JOB.stream("/v1/chat/completions", chat_body(text, stream_options={"include_usage": True}))
        choices, usages, head = collect(stream)
        equal(list(choices), [0])
        equal(choices[0]["text"], content(plain), text)
        equal(choices[0]["roles"], ["assistant"])
        equal(choices[0]["finish"], [(plain["choices"][0]["finish_reason"], plain["choices"][0]["stop_reason"])])
        equal(len(usages), 1, "one usage chunk")
        equal(usages[0][1], [], "choices of the usage chunk")
        equal(usages[0][0]["completion_tokens"], plain["usage"]["completion_tokens"])
        equal(head[3], "chat.completion.chunk")


def completion_streams_equal_unary_answers():
    body = {"prompt": "What is", "temperature": 0, "max_tokens": 40}
    plain = JOB.post("/v1/completions", body).json
    choices, usages, head = collect(JOB.stream("/v1/completions", body))
    equal(choices[0]["text"], plain["choices"][0]["text"])
    equal(head[3], "text_completion")
    equal(usages, [], "usage only when asked for")


def several_choices():
    body = chat_body("Tell me a story.", n=4, temperature=1.0, seed=7, max_completion_tokens=60)
    plain = JOB.post("/v1/chat/completions", body).json
    choices, _, _ = collect(JOB.stream("/v1/chat/completions", body))
    for c in plain["choices"]:
        equal(choices[c["index"]]["text"], c["message"]["content"], f"choice {c['index']}")
        equal(len(choices[c["index"]]["finish"]), 1)
    check(len({c["message"]["content"] for c in plain["choices"]}) > 1, "choices of a warm sampler differ")


def headers():
    stream = JOB.stream("/v1/chat/completions", chat_body("What is MPI?"), headers={"X-Request-Id": "abc-1"})
    equal(stream.headers["Cache-Control"], "no-cache")
    equal(stream.headers["X-Request-Id"], "abc-1")
    _, _, head = collect(stream)
    equal(head[0], "chatcmpl-abc-1")


def stop_strings_never_appear():
    plain = content(JOB.post("/v1/chat/completions", chat_body("What is MPI?")).json)
    stop = plain[20:26]
    body = chat_body("What is MPI?", stop=[stop])
    answer = JOB.post("/v1/chat/completions", body).json
    equal(content(answer), plain[: plain.index(stop)])
    equal(answer["choices"][0]["stop_reason"], stop)
    choices, _, _ = collect(JOB.stream("/v1/chat/completions", body))
    equal(choices[0]["text"], content(answer))
    equal(choices[0]["finish"], [("stop", stop)])


def same_seed_same_text():
    body = chat_body("Tell me a story.", temperature=1.0, seed=42, max_completion_tokens=80)
    texts = {collect(JOB.stream("/v1/chat/completions", body))[0][0]["text"] for _ in range(4)}
    equal(len(texts), 1, "texts of one seed")


def errors_before_the_first_byte_are_plain_answers():
    answer = JOB.post("/v1/chat/completions", chat_body("x", stream=True, temperature=9))
    equal(answer.status, 400)
    equal(answer.json["error"]["param"], "temperature")


with Job("--compute", "f32", ranks=2) as JOB:
    run(chat_streams_equal_unary_answers, completion_streams_equal_unary_answers, several_choices, headers,
        stop_strings_never_appear, same_seed_same_text, errors_before_the_first_byte_are_plain_answers)
