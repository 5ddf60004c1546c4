#!/usr/bin/env python3
"""The ingress over HTTP: order and bytes of streams, errors, hostile requests, clients that leave, draining.

Drives tests/e2e/fake_server (the real ingress with a pretended agent that repeats the prompt's tokens)."""
import concurrent.futures
import http.client
import json
import os
import re
import select
import socket
import subprocess
import sys
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
BUILD = os.environ.get("BUILD", "build")
PROGRAM = os.path.join(ROOT, BUILD, "tests/e2e/fake_server")
MODEL = os.path.join(ROOT, "jobs/demo-model")
TEXT = "Hello world, how are you?"
KEY = "sk-0123456789abcdef"
# Seeds that the fake agent knows; see enum manner there.
FAILS, RETRY_FIRST, RETRY_LATER, SLOW, TWICE, GAP, BUNDLES, FULL, HANGS, FEW, SHORT = range(9001, 9012)


class Server:
    def __init__(self, *options, ready=True, key=None, step_us=None, model=MODEL):
        env = dict(os.environ)
        for name in list(env):
            if name.startswith("MPISERVE_"):
                del env[name]
        if key:
            env["MPISERVE_API_KEY"] = key
            options = (*options, "--host", "127.0.0.1", model)
        else:
            options = (*options, "--api-key", "none", model)
        if step_us:
            env["FAKE_STEP_US"] = str(step_us)
        self.process = subprocess.Popen([PROGRAM, "--port", "0", *options], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=env)
        line = self.process.stdout.readline()
        self.port = int(line.split()[1])
        if ready:
            self.tell("ready")

    def tell(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip() if command != "quit" else ""

    def connect(self, timeout=20):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method, path, body=None, headers=None, connection=None):
        """(status, headers, body as JSON or text)"""
        c = connection or self.connect()
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        c.request(method, path, body=body, headers=headers)
        r = c.getresponse()
        data = r.read().decode()
        if connection is None:
            c.close()
        is_json = (r.getheader("Content-Type") or "").startswith("application/json") and data
        return r.status, r.headers, json.loads(data) if is_json else data

    def complete(self, **fields):
        fields.setdefault("prompt", TEXT)
        fields.setdefault("max_tokens", 64)
        status, _, body = self.ask("POST", "/v1/completions", fields)
        assert status == 200, (status, body)
        return body

    def chat(self, text, **fields):
        status, _, body = self.ask("POST", "/v1/chat/completions",
                                   {"messages": [{"role": "user", "content": text}], **fields})
        assert status == 200, (status, body)
        return body

    def events(self, path, body):
        """Payloads of a stream; the last one is '[DONE]'."""
        status, headers, data = self.ask("POST", path, {**body, "stream": True})
        assert status == 200, (status, data)
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8", headers
        assert headers["Cache-Control"] == "no-cache"
        return parse_events(data)

    def raw(self, data, timeout=10):
        """What comes back for these bytes, until the server closes or 0.5 s of silence after a whole answer."""
        s = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        s.sendall(data)
        answer = b""
        try:
            while True:
                if answer and not select.select([s], [], [], 0.5)[0]:
                    break
                part = s.recv(65536)
                if not part:
                    break
                answer += part
        except (ConnectionResetError, socket.timeout):
            pass
        s.close()
        return answer

    def state(self):
        return self.ask("GET", "/v1/topology")[2]

    def until(self, predicate, seconds=5.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if predicate():
                return True
            time.sleep(0.01)
        return False

    def alive(self):
        return self.complete(max_tokens=2)["usage"]["completion_tokens"] == 2

    def close(self):
        """The exit status; a sanitizer's complaint is one too."""
        self.tell("quit")
        self.process.stdin.close()
        try:
            return self.process.wait(20)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()


def parse_events(data):
    assert data.endswith("\n\n"), data[-50:]
    out = []
    for event in data[:-2].split("\n\n"):
        if event.startswith(":"):
            continue
        assert event.startswith("data: ") and "\n" not in event, event
        payload = event[6:]
        out.append(payload if payload == "[DONE]" else json.loads(payload))
    return out


def post(body, path="/v1/completions", extra=""):
    body = body if isinstance(body, bytes) else body.encode()
    return (f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"{extra}\r\n").encode() + body


def status_of(answer):
    found = re.match(rb"HTTP/1\.1 (\d+)", answer)
    return int(found.group(1)) if found else None


TESTS = []


def test(f):
    TESTS.append(f)
    return f


# ---- answers ---------------------------------------------------------------------------------------------------
@test
def models_and_pages(s):
    status, headers, body = s.ask("GET", "/v1/models", headers={"X-Request-Id": "abc-1"})
    assert status == 200 and headers["x-request-id"] == "abc-1"
    assert [m["id"] for m in body["data"]] == ["org/demo", "alias"] and body["data"][0]["max_model_len"] == 1024
    for name in ("org/demo", "org%2Fdemo", "alias"):
        status, _, body = s.ask("GET", "/v1/models/" + name)
        assert status == 200 and body["id"] == name.replace("%2F", "/"), body
    status, _, body = s.ask("GET", "/v1/models/none")
    assert status == 404 and body["error"]["code"] == "model_not_found" and body["error"]["param"] == "model"
    for page in ("/health", "/v1/health", "/ping", "/livez", "/healthz", "/live", "/readyz", "/ready"):
        assert s.ask("GET", page)[0] == 200, page
    assert s.ask("POST", "/ping")[0] == 200
    assert re.fullmatch(r"\d+\.\d+\.\d+", s.ask("GET", "/version")[2]["version"])
    assert s.ask("GET", "/load")[2] == {"server_load": 0}
    assert len(s.ask("GET", "/version")[1]["x-request-id"]) == 32


@test
def methods(s):
    status, headers, body = s.ask("GET", "/v1/completions")
    assert status == 405 and headers["Allow"] == "POST, OPTIONS" and body["error"]["param"] is None, body
    status, headers, _ = s.ask("DELETE", "/v1/models")
    assert status == 405 and headers["Allow"] == "GET, HEAD, OPTIONS"
    status, headers, body = s.ask("OPTIONS", "/v1/chat/completions")
    assert status == 204 and headers["Allow"] == "POST, OPTIONS" and body == ""
    status, headers, body = s.ask("HEAD", "/v1/models")
    assert status == 200 and body == "" and int(headers["Content-Length"]) > 100
    assert s.ask("GET", "/nothing")[0] == 404
    assert s.ask("GET", "/v1/models%00x")[0] == 404
    assert s.ask("POST", "/v1/nothing", {"a": 1})[2]["error"]["type"] == "Not Found"


@test
def completion_shapes(s):
    body = s.complete()
    assert body["object"] == "text_completion" and body["model"] == "org/demo" and body["id"].startswith("cmpl-")
    choice, = body["choices"]
    assert choice == {"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    assert body["usage"] == {"prompt_tokens": 8, "completion_tokens": 9, "total_tokens": 17,
                             "prompt_tokens_details": {"cached_tokens": 4}}
    assert body["system_fingerprint"] == "fake-1"
    ids = s.ask("POST", "/tokenize", {"prompt": TEXT})[2]["tokens"]
    for prompt, texts in ((ids, [TEXT]), ([TEXT, "Red"], [TEXT, "Red"]), ([ids, ids[:2]], [TEXT, "Hello wor"])):
        body = s.complete(prompt=prompt)
        assert [c["text"] for c in body["choices"]] == texts, body
        assert [c["index"] for c in body["choices"]] == list(range(len(texts)))
    assert s.complete()["choices"][0]["text"] == s.complete(max_tokens=None, prompt=TEXT)["choices"][0]["text"]
    assert s.complete(max_tokens=3)["choices"][0]["finish_reason"] == "length"


@test
def n_choices(s):
    body = s.complete(n=4, prompt=[TEXT, "one two three"])
    assert len(body["choices"]) == 8 and body["choices"][0]["text"] == TEXT
    assert body["choices"][1]["text"] == " world, how are you?Hello"
    assert body["usage"]["completion_tokens"] == sum((9 if i < 4 else 0) for i in range(8)) + \
        4 * (s.ask("POST", "/tokenize", {"prompt": "one two three"})[2]["count"] + 1)
    assert len(s.complete(n=128, max_tokens=1)["choices"]) == 128
    assert s.complete(best_of=2, n=2)["choices"][1]["index"] == 1
    assert len(s.complete(prompt=["x"] * 1024, max_tokens=1)["choices"]) == 1024


@test
def chat_shapes(s):
    body = s.chat("What is MPI?", max_completion_tokens=50)
    assert body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-")
    message = body["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "user\nWhat is MPI?", "refusal": None}, message
    assert body["choices"][0]["finish_reason"] == "stop" and body["usage"]["prompt_tokens"] == 12
    assert s.chat("What is MPI?", max_tokens=9, max_completion_tokens=2)["usage"]["completion_tokens"] == 2
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": " MPI?"}]
    body = s.chat(parts)
    assert body["choices"][0]["message"]["content"] == "user\nWhat is\n MPI?"
    # what a user writes never becomes a control token
    ids = s.ask("POST", "/tokenize", {"messages": [{"role": "user", "content": "<|im_end|>"}]})[2]["tokens"]
    assert ids.count(2) == 1 and ids.count(1) == 2, ids
    raw = s.ask("POST", "/tokenize", {"prompt": "<|im_end|>"})[2]["tokens"]
    assert raw == [2]
    assert s.ask("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]},
                 {"X-Request-Id": "my-id"})[2]["id"] == "chatcmpl-my-id"


@test
def continue_final(s):
    messages = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one two "}]
    a = s.ask("POST", "/tokenize", {"messages": messages, "continue_final_message": True, "return_token_strs": True})[2]
    assert "".join(a["token_strs"]).endswith("<|im_start|>assistant\none two "), a
    status, _, body = s.ask("POST", "/v1/chat/completions", {"messages": messages, "continue_final_message": True,
                                                             "add_generation_prompt": True})
    assert status == 400 and body["error"]["param"] == "continue_final_message"


@test
def streams_equal_whole_answers(s):
    text = "naïve Grüße — 数学 🙂 end"
    for n in (1, 3):
        for extra in ({}, {"logprobs": 2}, {"stop": ["Gr", "end"]}, {"stop": "数", "include_stop_str_in_output": True},
                      {"echo": True}, {"seed": BUNDLES}, {"seed": TWICE}, {"stream_interval": 4}, {"min_tokens": 40},
                      {"stop_token_ids": [33], "return_token_ids": True}):
            fields = {"prompt": text, "max_tokens": 60, "n": n, **extra}
            whole = s.complete(**fields)
            *events, done = s.events("/v1/completions", {**fields, "stream_options": {"include_usage": True}})
            usage = events.pop()
            assert done == "[DONE]" and usage["choices"] == [] and usage["usage"] == whole["usage"], (usage, whole)
            for choice in whole["choices"]:
                mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
                assert "".join(c["text"] for c in mine) == choice["text"], (extra, mine)
                assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
                assert mine[-1]["stop_reason"] == choice["stop_reason"]
                assert all(not c["text"] or "�" not in c["text"] for c in mine) or extra.get("n") != 1
                if "logprobs" in extra:
                    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                        assert sum((c["logprobs"][key] for c in mine if c["logprobs"]), []) == choice["logprobs"][key]
                if "return_token_ids" in extra:
                    assert sum((c.get("token_ids", []) for c in mine), []) == choice["token_ids"]
                    assert mine[0]["prompt_token_ids"] == choice["prompt_token_ids"]
            assert len({e["id"] for e in events}) == 1 and len({e["created"] for e in events}) == 1


@test
def chat_stream_order(s):
    fields = {"messages": [{"role": "user", "content": "What is MPI?"}], "n": 2, "logprobs": True, "top_logprobs": 1}
    *events, done = s.events("/v1/chat/completions", fields)
    assert done == "[DONE]" and all("usage" not in e for e in events)
    for index in (0, 1):
        mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""} and mine[0]["finish_reason"] is None
        assert all(list(c["delta"]) == ["content"] for c in mine[1:-1])
        assert mine[-1]["delta"] == {} and mine[-1]["finish_reason"] == "stop"
        assert all(c["finish_reason"] is None for c in mine[:-1])
        whole = s.chat("What is MPI?", n=2, logprobs=True, top_logprobs=1)["choices"][index]
        assert "".join(c["delta"].get("content", "") for c in mine) == whole["message"]["content"]
        assert sum((c["logprobs"]["content"] for c in mine if c["logprobs"]), []) == whole["logprobs"]["content"]
    first = whole["logprobs"]["content"][0]
    assert first["bytes"] == list(first["token"].encode()) and len(first["top_logprobs"]) == 1
    *events, done = s.events("/v1/chat/completions", {
        "messages": fields["messages"], "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
    counts = [e["usage"]["completion_tokens"] for e in events if e["choices"] and "usage" in e]
    assert counts == sorted(counts) and counts[-1] == events[-1]["usage"]["completion_tokens"] == 8, counts


@test
def stop_strings(s):
    for stop, text, reason in ((["wor"], "Hello ", "wor"), (["ld, how", "zzz"], "Hello wor", "ld, how"),
                               (["are you", "how are"], "Hello world, ", "how are"), ("?", TEXT[:-1], "?")):
        choice = s.complete(stop=stop)["choices"][0]
        assert (choice["text"], choice["stop_reason"], choice["finish_reason"]) == (text, reason, "stop"), choice
    choice = s.complete(stop=["how"], include_stop_str_in_output=True)["choices"][0]
    assert choice["text"] == "Hello world, how", choice
    before = s.state()["cancels"]
    s.complete(prompt=[TEXT, TEXT], n=2, stop=["how"], seed=SLOW)
    assert s.state()["cancels"] == before + 2 and s.until(lambda: s.state()["running"] == 0)
    choice = s.complete(stop=["wor"], min_tokens=4)["choices"][0]
    assert choice["text"] == TEXT, choice
    ids = s.ask("POST", "/tokenize", {"prompt": TEXT})[2]["tokens"]
    choice = s.complete(stop_token_ids=[ids[3]])["choices"][0]
    assert choice["text"] == "Hello world" and choice["stop_reason"] == ids[3], choice
    choice = s.complete(stop_token_ids=[ids[3]], include_stop_str_in_output=True)["choices"][0]
    assert choice["text"] == "Hello world,", choice


@test
def special_tokens_and_eos(s):
    assert s.complete(ignore_eos=True, max_tokens=11)["choices"][0]["text"] == TEXT
    choice = s.complete(ignore_eos=True, max_tokens=11, skip_special_tokens=False)["choices"][0]
    assert choice["text"] == TEXT + "<|im_end|>" * 3 and choice["finish_reason"] == "length", choice
    assert s.complete(min_tokens=12, max_tokens=20)["usage"]["completion_tokens"] == 13


@test
def echo_and_truncation(s):
    assert s.complete(echo=True)["choices"][0]["text"] == TEXT + TEXT
    body = s.complete(echo=True, max_tokens=0)
    assert body["choices"][0]["text"] == TEXT and body["usage"]["completion_tokens"] == 0
    assert body["choices"][0]["finish_reason"] == "length"
    *events, done = s.events("/v1/completions", {"prompt": TEXT, "echo": True, "max_tokens": 0})
    assert "".join(e["choices"][0]["text"] for e in events) == TEXT and done == "[DONE]"
    ids = s.ask("POST", "/tokenize", {"prompt": "数学"})[2]["tokens"]
    assert s.complete(prompt=ids, echo=True)["choices"][0]["text"] == "数学数学"
    assert s.complete(truncate_prompt_tokens=2)["choices"][0]["text"] == " you?"
    assert s.complete(truncate_prompt_tokens=2, truncation_side="right")["choices"][0]["text"] == "Hello wor"
    assert s.complete(prompt=[5] * 2000, truncate_prompt_tokens=-1, max_tokens=4)["usage"] ["prompt_tokens"] == 1023


@test
def token_pages(s):
    a = s.ask("POST", "/tokenize", {"prompt": TEXT, "return_token_strs": True})[2]
    assert a["count"] == len(a["tokens"]) == 8 and "".join(a["token_strs"]) == TEXT and a["max_model_len"] == 1024
    b = s.ask("POST", "/detokenize", {"tokens": a["tokens"]})[2]
    assert b == {"prompt": TEXT, "content": TEXT}
    pieces = s.ask("POST", "/tokenize", {"content": TEXT, "with_pieces": True})[2]["tokens"]
    assert [p["id"] for p in pieces] == a["tokens"] and pieces[0]["piece"] == "Hello"
    status, _, body = s.ask("POST", "/detokenize", {"tokens": [1, 99999]})
    assert status == 400 and body["error"]["param"] == "tokens[1]", body
    assert s.ask("POST", "/tokenize", {"prompt": 3})[2]["error"]["param"] == "prompt"


@test
def metrics_page(s):
    s.complete()
    status, headers, text = s.ask("GET", "/metrics")
    assert status == 200 and headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    for reason in ("stop", "length", "abort", "error"):
        assert f'vllm:request_success_total{{model_name="org/demo",engine="0",finished_reason="{reason}"}} ' in text
    assert re.search(r'http_requests_total\{handler="/v1/completions",method="POST",status="2xx"\} [1-9]', text)
    assert re.search(r"vllm:time_to_first_token_seconds_count\{[^}]*\} [1-9]", text) and "fake_agent 1" in text
    assert 'handler="/metrics"' not in text
    line = re.compile(r"(# (HELP|TYPE) .*|[a-zA-Z_:][a-zA-Z0-9_:]*(\{.*\})? [-+0-9.eE]+)$")
    assert all(line.match(row) for row in text.splitlines())
    types = [row for row in text.splitlines() if row.startswith("# TYPE")]
    assert len(types) == len(set(types))


# ---- errors ----------------------------------------------------------------------------------------------------
@test
def errors_name_the_field(s):
    chat = {"messages": [{"role": "user", "content": "x"}]}
    for path, body, param, status in (
            ("/v1/completions", {}, "prompt", 400), ("/v1/completions", {"prompt": None}, "prompt", 400),
            ("/v1/completions", {"prompt": ""}, "prompt", 400), ("/v1/completions", {"prompt": [1, "a"]}, "prompt[1]", 400),
            ("/v1/completions", {"prompt": ["a", [1]]}, "prompt[1]", 400),
            ("/v1/completions", {"prompt": [[1], []]}, "prompt[1]", 400),
            ("/v1/completions", {"prompt": [99999]}, "prompt[0]", 400),
            ("/v1/completions", {"prompt": ["x"] * 1025}, "prompt", 400),
            ("/v1/completions", {"prompt": "x", "temperature": 2.1}, "temperature", 400),
            ("/v1/completions", {"prompt": "x", "model": "gpt-4"}, "model", 404),
            ("/v1/completions", {"prompt": "x", "max_tokens": 0}, "max_tokens", 400),
            ("/v1/completions", {"prompt": "x", "max_tokens": 5000}, "max_tokens", 400),
            ("/v1/chat/completions", {"messages": []}, "messages", 400),
            ("/v1/chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", 400),
            ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content", 400),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0]", 400),
            ("/v1/chat/completions", {**chat, "tools": [{"type": "function"}]}, "tools", 400),
            ("/v1/chat/completions", {**chat, "response_format": {"type": "json_object"}}, "response_format", 400),
            ("/v1/chat/completions", {**chat, "chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs", 400)):
        got, headers, answer = s.ask("POST", path, body)
        error = answer["error"]
        assert got == status and error["param"] == param, (body, answer)
        assert set(error) >= {"message", "type", "param", "code"} and headers["x-request-id"]
    assert s.ask("POST", "/v1/chat/completions", {**chat, "tools": [{"type": "function"}], "tool_choice": "none",
                                                  "unknown": 1, "user": "me", "seed": None, "stop": None})[0] == 200


@test
def context_overflow(s):
    status, _, body = s.ask("POST", "/v1/completions", {"prompt": [5] * 1025})
    assert status == 400 and body == {"error": {
        "message": "This model's maximum context length is 1024 tokens. However, your prompt contains 1025 input tokens, "
                   "which exceeds the available context size (1024 tokens). The prompt is too long; please shorten it.",
        "type": "invalid_request_error", "param": "input_tokens", "code": "context_length_exceeded",
        "n_prompt_tokens": 1025, "n_ctx": 1024}}, body
    assert s.ask("POST", "/v1/completions", {"prompt": [5] * 1024})[0] == 400
    body = s.complete(prompt=[5] * 1020, max_tokens=500)
    assert body["usage"]["completion_tokens"] == 4 and body["choices"][0]["finish_reason"] == "length"


@test
def agent_errors(s):
    for seed, status, retry in ((FAILS, 500, "false"), (RETRY_FIRST, 503, None), (RETRY_LATER, 503, None),
                                (GAP, 500, "false"), (SHORT, 500, "false")):
        got, headers, body = s.ask("POST", "/v1/completions", {"prompt": TEXT, "seed": seed, "n": 2, "max_tokens": 50})
        assert got == status and body["error"]["code"] == status and headers["x-should-retry"] == retry, (seed, body)
        if status == 503:
            assert int(headers["Retry-After"]) >= 1
    status, _, body = s.ask("POST", "/v1/completions", {"prompt": TEXT, "seed": FAILS}, {"X-Request-Id": "poison"})
    assert "cmpl-poison" in body["error"]["message"] and "fell over" in body["error"]["message"]
    status, headers, body = s.ask("POST", "/v1/completions", {"prompt": TEXT, "seed": FULL})
    assert status == 503 and headers["Retry-After"] == "7" and body["error"]["type"] == "ServiceUnavailableError"
    # before the first byte: a status; after it: in band
    assert s.ask("POST", "/v1/completions", {"prompt": TEXT, "seed": RETRY_FIRST, "stream": True})[0] == 503
    *events, error, done = s.events("/v1/completions", {"prompt": TEXT, "seed": FAILS})
    assert done == "[DONE]" and error["error"]["code"] == 500 and "".join(
        e["choices"][0]["text"] for e in events) == "Hello world", events
    # more prompts than the agent takes at a time: they take turns
    assert [c["text"] for c in s.complete(prompt=["Red", "Blue", "Green", "Grey"], seed=FEW)["choices"]] == [
        "Red", "Blue", "Green", "Grey"]
    assert s.alive()


# ---- connections -----------------------------------------------------------------------------------------------
@test
def keep_alive_and_pipelining(s):
    c = s.connect()
    for _ in range(5):
        assert s.ask("POST", "/v1/completions", {"prompt": TEXT, "max_tokens": 3}, connection=c)[0] == 200
        assert s.ask("POST", "/v1/completions", {"prompt": 5}, connection=c)[0] == 400
        assert s.ask("GET", "/v1/nothing", connection=c)[0] == 404
    c.close()
    one = post(json.dumps({"prompt": TEXT, "max_tokens": 2, "seed": 1}))
    answer = s.raw(one + one + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200") == 3 and answer.count(b'"Hello wor"') == 2, answer


@test
def expect_continue(s):
    body = json.dumps({"prompt": TEXT, "max_tokens": 2})
    sock = socket.create_connection(("127.0.0.1", s.port), timeout=10)
    sock.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
                 .encode())
    assert sock.recv(100).startswith(b"HTTP/1.1 100")
    sock.sendall(body.encode())
    assert b"HTTP/1.1 200" in sock.recv(4000)
    sock.close()
    # an upload that would be refused is not asked for
    answer = s.raw(b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9000000\r\n\r\n")
    assert status_of(answer) == 404, answer


@test
def many_at_once(s):
    def one(i):
        text = f"request {i} says {i * i}"
        if i % 2:
            *events, done = s.events("/v1/completions", {"prompt": text, "max_tokens": 60})
            return done == "[DONE]" and "".join(e["choices"][0]["text"] for e in events) == text
        return s.complete(prompt=text)["choices"][0]["text"] == text
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        assert all(pool.map(one, range(400)))
    assert s.state()["running"] == 0


@test
def clients_that_leave(s):
    for stream, seed in ((True, SLOW), (False, HANGS), (True, HANGS)):
        before = s.state()
        body = json.dumps({"prompt": TEXT * 10, "max_tokens": 500, "seed": seed, "stream": stream, "n": 2})
        sock = socket.create_connection(("127.0.0.1", s.port), timeout=10)
        sock.sendall(post(body))
        assert s.until(lambda: s.state()["running"] == 1)
        if seed == SLOW:
            data = b""
            while b"data: " not in data:
                data += sock.recv(1000)
        time.sleep(0.05)
        left = time.monotonic()
        sock.close()
        assert s.until(lambda: s.state()["running"] == 0, 3), (stream, seed)
        took = time.monotonic() - left
        assert took < 1.0, took
        assert s.state()["cancels"] == before["cancels"] + 1
    assert s.until(lambda: s.tell("well") == "done well, idle", 2)


def without_frames(body):
    """A chunked body's bytes; frames end anywhere, also within a word."""
    out = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        out, body = out + rest[:int(size, 16)], rest[int(size, 16) + 2:]
    return out


@test
def slow_reader(s):
    body = json.dumps({"prompt": [40] * 500, "max_tokens": 500, "n": 16, "stream": True, "ignore_eos": True})
    sock = socket.create_connection(("127.0.0.1", s.port), timeout=30)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.sendall(post(body, extra="Connection: close\r\n"))
    assert s.until(lambda: s.state()["running"] == 0, 20)
    time.sleep(0.2)
    assert s.alive()
    data = b""
    while True:
        part = sock.recv(1 << 16)
        if not part:
            break
        data += part
    sock.close()
    assert data.endswith(b"\r\n0\r\n\r\n"), data[-300:]
    events = without_frames(data.partition(b"\r\n\r\n")[2])
    assert events.count(b'"finish_reason":"length"') == 16 and events.endswith(b"data: [DONE]\n\n"), data[-300:]


@test
def hostile_requests(s):
    good = '{"prompt": "x", "max_tokens": 1}'
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    deep = '{"prompt":' + "[" * 5000 + "]" * 5000 + "}"
    for name, data, want in (
            ("two lengths", (head + "Content-Length: 32\r\nContent-Length: 32\r\n\r\n" + good).encode(), {400}),
            ("two other lengths", (head + "Content-Length: 32\r\nContent-Length: 5\r\n\r\n" + good).encode(), {400}),
            ("length and chunked", (head + "Content-Length: 32\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").encode(),
             {400}),
            ("length with sign", (head + "Content-Length: +32\r\n\r\n" + good).encode(), {400}),
            ("negative length", (head + "Content-Length: -1\r\n\r\n" + good).encode(), {400}),
            ("coding list", (head + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n").encode(), {400}),
            ("bad chunk", (head + "Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n").encode(), {400}),
            ("huge chunk", (head + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc").encode(),
             {413}),
            ("huge length", (head + "Content-Length: 99999999999999\r\n\r\n").encode(), {413}),
            ("overflowing length", (head + "Content-Length: 99999999999999999999999999\r\n\r\n").encode(), {413}),
            ("huge header", (head + "X-A: " + "a" * 70000 + "\r\n\r\n").encode(), {431, None}),
            ("many headers", (head + "X-A: b\r\n" * 5000 + "\r\n").encode(), {431, None}),
            ("long target", b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {414, 431, None}),
            ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00" + os.urandom(200), {400, None}),
            ("old version", b"GET /health HTTP/3.7\r\n\r\n", {505}),
            ("no host", b"GET /health HTTP/1.1\r\n\r\n", {400}),
            ("invalid UTF-8", post(b'{"prompt": "\xff\xfe", "max_tokens": 1}'), {400}),
            ("deep nesting", post(deep), {400}),
            ("NaN", post('{"prompt": "x", "temperature": NaN}'), {400}),
            ("1e400", post('{"prompt": "x", "temperature": 1e400}'), {400}),
            ("huge integer", post('{"prompt": "x", "seed": 99999999999999999999}'), {400}),
            ("trailing text", post(good + " x"), {400}),
            ("twice a key", post('{"prompt": "x", "prompt": "y"}'), {400}),
            ("empty body", post(""), {400}),
            ("an array", post("[]"), {400}),
            ("wrong media type", post(good).replace(b"application/json", b"text/plain"), {400}),
            ("header with NUL", b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: a\0b\r\n\r\n", {200, 400}),
            ("bad request id", b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\x01b\r\n\r\n", {200, 400})):
        answer = s.raw(data)
        assert status_of(answer) in want, (name, answer[:300])
        assert s.alive(), name
    assert s.complete(prompt="a\0b")["choices"][0]["text"] == "a\0b"
    too_long = "x" * 40000
    with_limit = s.ask("POST", "/v1/completions", {"prompt": too_long})
    assert with_limit[0] == 400 and with_limit[2]["error"]["code"] == "context_length_exceeded"


@test
def body_limit(_):
    s = Server("--max-request-bytes", "20000")
    try:
        big = json.dumps({"prompt": "x" * 30000}).encode()
        status, headers, body = s.ask("POST", "/v1/completions", big)
        assert status == 413 and body["error"]["type"] == "RequestTooLargeError" and headers["Connection"] == "close"
        chunked = (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" +
                   b"%x\r\n" % len(big) + big + b"\r\n0\r\n\r\n")
        assert status_of(s.raw(chunked)) == 413
        assert s.alive()
    finally:
        assert s.close() == 0


# ---- life ------------------------------------------------------------------------------------------------------
@test
def keys(_):
    s = Server(key=KEY)
    try:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": KEY + "x"}, {"Authorization": KEY},
                        {"Authorization": "Bearer "}, {"x-api-key": ""}):
            for path in ("/v1/models", "/v1/nothing", "/v1/topology"):
                status, out, body = s.ask("GET", path, headers=headers)
                assert status == 401 and out["WWW-Authenticate"] == "Bearer", (headers, body)
                assert body["error"]["type"] == "invalid_request_error" and body["error"]["code"] == "invalid_api_key"
        status, _, _ = s.ask("POST", "/v1/completions", {"prompt": "x"})
        assert status == 401
        for headers in ({"Authorization": "Bearer " + KEY}, {"authorization": "bearer " + KEY}, {"X-API-Key": KEY}):
            assert s.ask("GET", "/v1/models", headers=headers)[0] == 200, headers
        for path in ("/health", "/ping", "/livez", "/readyz", "/load", "/metrics", "/version"):
            assert s.ask("GET", path)[0] == 200, path
        assert s.ask("OPTIONS", "/v1/models")[0] == 204
    finally:
        assert s.close() == 0


@test
def loading_then_draining(_):
    s = Server(ready=False)
    try:
        status, headers, body = s.ask("GET", "/health")
        assert status == 503 and int(headers["Retry-After"]) >= 1 and body["error"]["code"] == 503
        assert s.ask("GET", "/livez")[0] == 200 and s.ask("GET", "/v1/models")[0] == 200
        assert s.ask("POST", "/v1/completions", {"prompt": "x"})[0] == 503
        s.tell("ready")
        assert s.ask("GET", "/health")[0] == 200 and s.alive()
        s.tell("ill")
        assert s.ask("GET", "/health")[2]["error"]["message"] == "The fake agent is ill."
        s.tell("well")
        assert s.until(lambda: s.state()["running"] == 0)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(s.events, "/v1/completions", {"prompt": TEXT, "seed": SLOW, "max_tokens": 50})
            assert s.until(lambda: s.state()["running"] == 1)
            assert s.tell("drain") == "done drain, busy"
            status, headers, body = s.ask("POST", "/v1/completions", {"prompt": "x"})
            assert status == 503 and headers["Connection"] == "close" and int(headers["Retry-After"]) >= 1
            assert body["error"]["message"] == "This node is being drained."
            assert s.ask("GET", "/health")[0] == 503 and s.ask("GET", "/livez")[0] == 200
            *events, done = running.result(10)
            assert done == "[DONE]" and "".join(e["choices"][0]["text"] for e in events) == TEXT
        assert s.until(lambda: s.tell("well") == "done well, idle")
    finally:
        assert s.close() == 0


@test
def abort(_):
    s = Server()
    try:
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            fields = {"prompt": TEXT, "seed": HANGS}
            stream = pool.submit(s.events, "/v1/completions", {"prompt": TEXT, "seed": SLOW, "max_tokens": 50})
            whole = pool.submit(s.ask, "POST", "/v1/completions", fields)
            silent = pool.submit(s.ask, "POST", "/v1/completions", {**fields, "stream": True})
            assert s.until(lambda: s.state()["running"] == 3)
            time.sleep(0.25)
            s.tell("abort")
            *events, error, done = stream.result(5)
            assert events and error["error"]["message"] == "The fake job is ending." and done == "[DONE]", error
            for waiting in (whole, silent):
                status, headers, body = waiting.result(5)
                assert status == 503 and headers["Retry-After"] and "ending" in body["error"]["message"]
    finally:
        assert s.close() == 0


@test
def stopping_with_calls_open(_):
    s = Server()
    body = json.dumps({"prompt": TEXT, "seed": HANGS, "stream": True})
    socks = []
    for _ in range(20):
        sock = socket.create_connection(("127.0.0.1", s.port), timeout=10)
        sock.sendall(post(body))
        socks.append(sock)
    assert s.until(lambda: s.state()["running"] == 20)
    assert s.close() == 0
    for sock in socks:
        sock.close()


@test
def stopping_while_reservations_are_asked_for(_):
    for end in ("abort", "quit"):
        s = Server()
        asking = b"POST /v1/reservations HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        socks = [socket.create_connection(("127.0.0.1", s.port), timeout=10) for _ in range(20)]
        for sock in socks:
            sock.sendall(asking)
        for sock in socks[:5]:
            sock.close()  # nobody is told
        assert s.ask("GET", "/v1/reservations/" + 32 * "0")[0] == 404  # the others go on
        assert s.until(lambda: "busy" in s.tell("ready"))
        if end == "abort":
            s.tell("abort")
            for sock in socks[5:]:
                answer = sock.recv(65536)
                assert answer.startswith(b"HTTP/1.1 503 ") and b"The fake job is ending." in answer, answer
        assert s.close() == 0
        for sock in socks:
            sock.close()


@test
def pings_and_deadlines(_):
    s = Server("--sse-keep-alive-interval", "0.2", "--request-timeout", "1.5")
    try:
        sock = socket.create_connection(("127.0.0.1", s.port), timeout=10)
        sock.sendall(post(json.dumps({"prompt": TEXT, "seed": HANGS, "stream": True}), extra="Connection: close\r\n"))
        data = b""
        while True:
            part = sock.recv(4096)
            if not part:
                break
            data += part
        sock.close()
        assert data.count(b": keep-alive\n\n") >= 3 and b'"code":408' in data and b"data: [DONE]" in data, data
        status, headers, body = s.ask("POST", "/v1/completions", {"prompt": TEXT, "seed": HANGS})
        assert status == 408 and body["error"]["type"] == "TimeoutError" and headers["x-should-retry"] == "false"
        assert s.until(lambda: s.state()["running"] == 0)
    finally:
        assert s.close() == 0


@test
def port_in_use(s):
    done = subprocess.run([PROGRAM, "--port", str(s.port), "--api-key", "none", MODEL], capture_output=True, text=True,
                          timeout=20)
    assert done.returncode == 1 and f"127.0.0.1 port {s.port}" in done.stderr and "--port" in done.stderr, done.stderr
    done = subprocess.run([PROGRAM, "--port", "0", "--host", "no.such.host.invalid", MODEL], capture_output=True,
                          text=True, timeout=60, env={**os.environ, "MPISERVE_API_KEY": KEY})
    assert done.returncode == 1 and "--host" in done.stderr, done.stderr


def main():
    wanted = sys.argv[1:]
    tests = [t for t in TESTS if not wanted or t.__name__ in wanted]
    print(f"1..{len(tests) + 1}", flush=True)
    server = Server("--served-model-name", "org/demo", "alias")
    failed = 0
    for i, t in enumerate(tests, 1):
        try:
            t(server)
            print(f"ok {i} - {t.__name__}", flush=True)
        except Exception as e:  # a test says anything that went wrong
            failed += 1
            where = e.__traceback__
            while where.tb_next:
                where = where.tb_next
            print(f"not ok {i} - {t.__name__}\n# line {where.tb_lineno}: {type(e).__name__}: {e}", flush=True)
    status = server.close()
    failed += status != 0
    print(f"{'ok' if status == 0 else 'not ok'} {len(tests) + 1} - the server ends with 0", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
