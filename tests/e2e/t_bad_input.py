#!/usr/bin/env python3
"""Bad models, bad options, bad requests: one clear error each, and the next request is served."""
import re
import socket
import struct

from harness import *

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
GOOD = {"messages": [{"role": "user", "content": "What is MPI?"}], "max_completion_tokens": 3}


# ---- models ----------------------------------------------------------------------------------------------------------
def edit_json(name, change):
    def edit(folder):
        path = os.path.join(folder, name)
        with open(path) as f:
            value = json.load(f)
        change(value)
        with open(path, "w") as f:
            json.dump(value, f)
    return edit


def remove(name):
    return lambda folder: os.remove(os.path.join(folder, name))


def write(name, data):
    def edit(folder):
        with open(os.path.join(folder, name), "wb") as f:
            f.write(data)
    return edit


def safetensors(change):
    """change(header, data) -> (header bytes, data)."""
    def edit(folder):
        path = os.path.join(folder, "model.safetensors")
        with open(path, "rb") as f:
            raw = f.read()
        size = struct.unpack("<Q", raw[:8])[0]
        header, data = change(json.loads(raw[8 : 8 + size]), raw[8 + size :])
        header = header if isinstance(header, bytes) else json.dumps(header).encode()
        with open(path, "wb") as f:
            f.write(struct.pack("<Q", len(header)) + header + data)
    return edit


def first_tensor(header):
    return [k for k in header if k != "__metadata__"][0]


def lie(**fields):
    def change(header, data):
        header[first_tensor(header)].update(fields)
        return header, data
    return safetensors(change)


def drop_tensor(header, data):
    del header[first_tensor(header)]
    return header, data


# what is done to a copy of the demo model, and a word that the error must hold
BAD_MODELS = [
    ("no config", remove("config.json"), "config.json"),
    ("empty config", write("config.json", b""), "config.json"),
    ("config is no object", write("config.json", b"[1]"), "config.json"),
    ("unknown architecture", edit_json("config.json", lambda c: c.update(architectures=["MagicForCausalLM"])), "MagicForCausalLM"),
    ("hidden size of 0", edit_json("config.json", lambda c: c.update(hidden_size=0)), "hidden_size"),
    ("hidden size is text", edit_json("config.json", lambda c: c.update(hidden_size="256")), "hidden_size"),
    ("sizes that do not match the tensors", edit_json("config.json", lambda c: c.update(intermediate_size=641)), "intermediate|config.json asks for"),
    ("no layers", edit_json("config.json", lambda c: c.pop("num_hidden_layers")), "num_hidden_layers"),
    ("no tokenizer", remove("tokenizer.json"), "tokenizer.json"),
    ("broken tokenizer", write("tokenizer.json", b'{"model": {"type": "BPE"'), "tokenizer.json"),
    ("no weights", remove("model.safetensors"), "safetensors"),
    ("empty weights", write("model.safetensors", b""), "safetensors"),
    ("weights cut in the header", lambda f: os.truncate(os.path.join(f, "model.safetensors"), 100), "safetensors"),
    ("weights cut in the data", lambda f: os.truncate(os.path.join(f, "model.safetensors"), 4000000), "safetensors"),
    ("header length is a lie", write("model.safetensors", struct.pack("<Q", 1 << 60) + b"{}"), "safetensors"),
    ("header is no JSON", safetensors(lambda h, d: (b"{" * 64, d)), "safetensors"),
    ("offsets beyond the file", lie(data_offsets=[0, 1 << 40]), "safetensors"),
    ("negative offsets", lie(data_offsets=[-8, 0]), "safetensors"),
    ("shape and bytes differ", lie(shape=[3, 5]), "safetensors"),
    ("a huge shape", lie(shape=[1 << 62, 1 << 62]), "safetensors"),
    ("an unknown type", lie(dtype="F3"), "F3"),
    ("a tensor is missing", safetensors(drop_tensor), "tensor|safetensors"),
]


def bad_models_are_named():
    """Four at a time: most of it is waiting for mpirun to end."""
    together(4, lambda i: bad_models(BAD_MODELS[i::4]))


def bad_models(some):
    for name, damage, says in some:
        folder = tempfile.mkdtemp(prefix="mpt-model-", dir="/tmp")
        try:
            for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                         "chat_template.jinja", "model.safetensors"):
                shutil.copy(os.path.join(DEMO, file), folder)
                os.chmod(os.path.join(folder, file), 0o644)
            damage(folder)
            fails_to_start(name, says, model=folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def fails_to_start(name, says, *options, **more):
    with Job(*options, ranks=2, wait=False, **more) as job:
        try:
            status = job.wait(10 * SLOW)
        except AssertionError as e:
            raise AssertionError(f"{name}: {e}") from None
        equal(status, 1, f"{name}: exit status\n{job.output()}")
        check(re.search(says, job.output()), f"{name}: `{says}` is not in\n{job.output()}")
        check("AddressSanitizer" not in job.output() and "BUG at" not in job.output(), f"{name}:\n{job.output()}")
        equal(job.leftovers(), [], name)


def bad_starts_are_explained():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        fails_to_start("port in use", f"{port}.*in use|in use.*{port}", "--port", str(port))
    fails_to_start("no such model", "/nonexistent/model", model="/nonexistent/model")
    fails_to_start("no such address", "203.0.113.9", "--host", "203.0.113.9")
    fails_to_start("unreadable key file", "/nonexistent/key", "--api-key-file", "/nonexistent/key")
    fails_to_start("more replicas than ranks", "data-parallel-size|replica", "-dp", "5")
    fails_to_start("too long for the model", "max-model-len|1024", "--max-model-len", "100000")


# ---- requests --------------------------------------------------------------------------------------------------------
def chat(**fields):
    return CHAT, json.dumps(dict(GOOD, **fields))


def completion(**fields):
    return COMPLETION, json.dumps(dict({"prompt": "x", "max_tokens": 2}, **fields))


NOT_JSON = ["", " ", "{", "[", "nul", '{"messages"', '{"messages":}', "{'messages':[]}", '{"a":1,}', '{"a":1}x', "\ufeff{}",
            '{"a":"\\x"}', '{"a":"\n"}', '{"a":01}', '{"a":+1}', '{"a":NaN}', '{"a":1e999}', "[" * 10000, '{"a":' * 500,
            '{"a":"\\ud800"}', "\x00", '{"a":1,"a":2}']
BAD_CHATS = [  # fields, the parameter that the error names
    ({"messages": None}, "messages"), ({"messages": []}, "messages"), ({"messages": "x"}, "messages"),
    ({"messages": [1]}, "messages"), ({"messages": [{}]}, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
    ({"temperature": -1}, "temperature"), ({"temperature": 3}, "temperature"), ({"temperature": "1"}, "temperature"),
    ({"top_p": 1.5}, "top_p"), ({"top_p": -1}, "top_p"), ({"top_k": -2}, "top_k"), ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"), ({"presence_penalty": 3}, "presence_penalty"), ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"), ({"seed": "x"}, "seed"), ({"n": 0}, "n"), ({"n": 1000}, "n"),
    ({"n": True}, "n"), ({"stop": ""}, "stop"), ({"stop": [1]}, "stop"), ({"stop": ["a"] * 40}, "stop"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"), ({"max_completion_tokens": -5}, "max_completion_tokens"),
    ({"max_completion_tokens": 99999}, "max_completion_tokens"), ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
    ({"logit_bias": {"x": 1}}, "logit_bias"), ({"logit_bias": {"999999": 1}}, "logit_bias"), ({"logit_bias": []}, "logit_bias"),
    ({"top_logprobs": 3}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
    ({"stream": "yes"}, "stream"), ({"stream_options": {}}, "stream_options"), ({"min_tokens": 50}, "min_tokens"),
    ({"stop_token_ids": [99999]}, "stop_token_ids"), ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"model": 5}, "model"), ({"ignore_eos": 1}, "ignore_eos"),
]
BAD_PROMPTS = [None, "", [], [[]], [1, "a"], ["a", 1], [-1], [999999], [1.5], {}, 5, True, ["a"] * 2000]


def is_error(answer, status, what):
    equal(answer.status, status, f"{what}: {answer}")
    error = answer.json["error"]
    check(error["message"] and len(error["message"]) <= 1024, f"{what}: message {error}")
    check(set(error) >= {"message", "type", "param", "code"}, f"{what}: keys {error}")
    return error


def still_served():
    equal(JOB.post(CHAT, GOOD).status, 200, "the next request")


def malformed_json():
    for text in NOT_JSON:
        for path in (CHAT, COMPLETION, "/tokenize"):
            headers = {"Content-Type": "application/json"}
            is_error(JOB.call("POST", path, text.encode("utf-8", "surrogatepass"), headers=headers), 400, f"{path} {text[:30]!r}")
    is_error(JOB.call("POST", CHAT, b'{"messages":"\xff"}', headers={"Content-Type": "application/json"}), 400, "bad UTF-8")
    still_served()


def wrong_values():
    for fields, param in BAD_CHATS:
        path, body = chat(**fields)
        error = is_error(JOB.call("POST", path, body), 400, f"{fields}")
        check(str(error["param"]).split(".")[0].split("[")[0] == param, f"{fields}: param is {error['param']}")
    for prompt in BAD_PROMPTS:
        path, body = completion(prompt=prompt)
        is_error(JOB.call("POST", path, body), 400, f"prompt {str(prompt)[:40]}")
    for value in ("1", "[]", '"x"', "null", "true"):
        is_error(JOB.call("POST", CHAT, value), 400, f"body {value}")
    still_served()


def unknown_fields_and_null_are_fine():
    path, body = chat(some_new_field={"a": 1}, user="me", temperature=None, stop=None, top_k=-1, logit_bias=None)
    equal(JOB.call("POST", path, body).status, 200)
    equal(JOB.call("POST", *completion(prompt=[[1, 2], [3]], best_of=None)).status, 200)


def too_long():
    error = is_error(JOB.post(COMPLETION, {"prompt": "a b " * 3000, "max_tokens": 1}), 400, "prompt beyond the context")
    equal(error["code"], "context_length_exceeded")
    check("This model's maximum context length is 1024 tokens" in error["message"], error)
    equal(error["n_ctx"], 1024)
    equal(JOB.post(COMPLETION, {"prompt": "a", "max_tokens": 1020, "temperature": 0}).status, 200, "clamped, no error")
    still_served()


def unknown_things():
    error = is_error(JOB.call("POST", *chat(model="no-such-model")), 404, "unknown model")
    equal(error["code"], "model_not_found")
    is_error(JOB.get("/v1/models/none"), 404, "unknown model")
    for path in ("/", "/v1", "/v1/nothing", "/v1/chat/completions/x", "/%00", "/../etc/passwd", "/v1/models/%2e%2e"):
        is_error(JOB.get(path), 404, path)
    for method, path in (("GET", CHAT), ("DELETE", CHAT), ("PUT", COMPLETION), ("POST", "/health"), ("PATCH", "/v1/models")):
        answer = JOB.call(method, path)
        is_error(answer, 405, f"{method} {path}")
        check(answer.headers["Allow"], "Allow")
    is_error(JOB.call("POST", CHAT, json.dumps(GOOD), headers={"Content-Type": "text/plain"}), 400, "media type")
    still_served()


def huge_bodies():
    with Job("--max-request-bytes", "64K", ranks=1) as job:
        try:
            answer = job.post(CHAT, {"messages": [{"role": "user", "content": "x" * 200000}]})
            is_error(answer, 413, "body")
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all of it was sent
        equal(job.post(CHAT, GOOD).status, 200)


def raw(data, wait=5):
    """Sends bytes as they are; returns what comes back until the server closes or falls silent."""
    with socket.create_connection(("127.0.0.1", JOB.endpoint["port"]), timeout=wait) as s:
        s.sendall(data)
        received = b""
        try:
            while True:
                block = s.recv(65536)
                if not block:
                    break
                received += block
        except (socket.timeout, ConnectionResetError):
            pass
        return received


def broken_http():
    key = f"Authorization: {JOB.key()['Authorization']}\r\n"
    post = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{key}"
    body = json.dumps(GOOD)
    for name, text in [
        ("garbage", "\x16\x03\x01 hello\r\n\r\n"),
        ("two lengths", post + "Content-Length: 5\r\nContent-Length: 6\r\nConnection: close\r\n\r\n" + body),
        ("length and chunks", post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n"),
        ("negative length", post + "Content-Length: -5\r\nConnection: close\r\n\r\n"),
        ("length is text", post + "Content-Length: many\r\nConnection: close\r\n\r\n"),
    ]:
        received = raw(text.encode("latin-1"), wait=3)
        check(not received or received.startswith(b"HTTP/1.1 4"), f"{name}: {received[:200]}")
    received = raw((f"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: {'a' * 100000}\r\nConnection: close\r\n\r\n").encode(), wait=3)
    check(not received or received.startswith(b"HTTP/1.1 4"), f"long header: {received[:200]}")
    raw((post + f"Content-Length: {len(body)}\r\n\r\n" + body[:10]).encode(), wait=0.3)  # and gone
    still_served()


def many_half_requests_do_not_block_others():
    sockets = [socket.create_connection(("127.0.0.1", JOB.endpoint["port"]), timeout=5) for _ in range(64)]
    for s in sockets:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Le")
    still_served()
    for s in sockets:
        s.close()
    still_served()


def command(*arguments):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=20)


def bad_options_are_named():
    for arguments, says in ((("up", "--prot", "1"), "--port"), (("up", "--port", "70000"), "0..65535"),
                            (("up", "--api-key", "sk-123456789"), "MPISERVE_API_KEY"), (("up", "-tp", "0"), "1..4096"),
                            (("up", "a", "b"), "one argument too many")):
        done = command(*arguments)
        equal(done.returncode, 2, f"{arguments}")
        check(says in done.stderr and "sk-1" not in done.stderr, done.stderr)
        equal(len(done.stderr.strip().splitlines()), 1, f"one line: {done.stderr}")
    equal(command("help").stdout, command("--help").stdout)
    check("mpiserve " in command("version").stdout, "version")


with Job(ranks=2) as JOB:
    run(bad_models_are_named, bad_starts_are_explained, bad_options_are_named, malformed_json, wrong_values,
        unknown_fields_and_null_are_fine, too_long, unknown_things, huge_bodies, broken_http,
        many_half_requests_do_not_block_others)
