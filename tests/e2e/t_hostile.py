#!/usr/bin/env python3
"""Hostile HTTP as one table: every row is refused with a 4xx or loses its connection, within a bound, and the next good request is
served. What looks hostile and is allowed says so with its status. Rank 0 has the same descriptors and memory afterwards."""
import gzip
import re
import select
import socket
import struct

from harness import *

HEADER_S, BODY_S, IDLE_S = 1, 2, 3  # the limits of the job under test
BOUND_S = 4 * SLOW  # nothing takes longer, but what is slow on purpose
GOOD = b'{"prompt": "x", "max_tokens": 1}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def post(body, extra=b""):
    return POST + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


def field(text):
    return post(b'{"prompt": "x", "max_tokens": 1, ' + text + b"}")


def get(head=b"", path=b"/health", version=b"HTTP/1.1"):
    return b"GET " + path + b" " + version + b"\r\nHost: x\r\n" + head + b"\r\n"


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


# ---- the rows: name, bytes, what may come back. A status, several, or GONE: the connection ends without an answer -----------
GONE = None
REFUSED = {400, GONE}
BAD, LARGE, LONG, FIELDS = {400}, {413}, {414, 431}, {431}
VERSION = {400, 505}  # 505 is what the standard asks for

ROWS = [
    # where a body ends
    ("two lengths", POST + b"Content-Length: 32\r\nContent-Length: 32\r\n\r\n" + GOOD, BAD),
    ("two lengths that differ", POST + b"Content-Length: 32\r\nContent-Length: 5\r\n\r\n" + GOOD, BAD),
    ("length and chunked", POST + b"Content-Length: 32\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(GOOD), BAD),
    ("chunked and length", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", BAD),
    ("a list of lengths", POST + b"Content-Length: 32, 32\r\n\r\n" + GOOD, BAD),
    ("length with a sign", POST + b"Content-Length: +32\r\n\r\n" + GOOD, BAD),
    ("negative length", POST + b"Content-Length: -1\r\n\r\n" + GOOD, BAD),
    ("hexadecimal length", POST + b"Content-Length: 0x20\r\n\r\n" + GOOD, BAD),
    ("empty length", POST + b"Content-Length:\r\n\r\n" + GOOD, BAD),
    ("length with a blank inside", POST + b"Content-Length: 3 2\r\n\r\n" + GOOD, BAD),
    ("huge length", POST + b"Content-Length: 99999999999999\r\n\r\n", LARGE),
    ("overflowing length", POST + b"Content-Length: 99999999999999999999999999\r\n\r\n", LARGE),
    ("length 2^64 - 1", POST + b"Content-Length: 18446744073709551615\r\n\r\n", LARGE),
    ("blank before the colon of the length", POST + b"Content-Length : 32\r\n\r\n" + GOOD, BAD),
    ("coding gzip", POST + b"Transfer-Encoding: gzip\r\n\r\n" + GOOD, BAD),
    ("coding chunked twice in one", POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", BAD),
    ("coding chunked in two", POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    ("coding identity", POST + b"Transfer-Encoding: identity\r\n\r\n" + GOOD, BAD),
    ("coding xchunked", POST + b"Transfer-Encoding: xchunked\r\n\r\n" + GOOD, BAD),
    ("coding behind a control character", POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", BAD),
    ("chunks in HTTP/1.0", CHUNKED.replace(b"1.1", b"1.0") + chunk(GOOD) + b"0\r\n\r\n", BAD),
    ("chunk size garbage", CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n", BAD),
    ("chunk size negative", CHUNKED + b"-5\r\nabcde\r\n0\r\n\r\n", BAD),
    ("chunk size 0x5", CHUNKED + b"0x5\r\nabcde\r\n0\r\n\r\n", BAD),
    ("chunk size empty", CHUNKED + b"\r\nabcde\r\n0\r\n\r\n", BAD),
    ("chunk size overflows", CHUNKED + b"ffffffffffffffffff\r\nabc", LARGE),
    ("chunk longer than its size", CHUNKED + b"3\r\nabcdefgh\r\n0\r\n\r\n", BAD),
    ("chunk without its line end", CHUNKED + b"20\r\n" + GOOD + b"0\r\n\r\n", BAD),
    ("chunk extension", CHUNKED + b'20;a="b"\r\n' + GOOD + b"\r\n0;c\r\n\r\n", {200}),
    ("a chunk extension of 200,000 bytes", CHUNKED + b"1;" + b"a" * 200000 + b"\r\n{\r\n0\r\n\r\n", {400, 408, 413}),  # 408:
     # the HTTP library never gets further with a chunk line that is longer than the memory of a connection
    ("trailer", CHUNKED + chunk(GOOD) + b"0\r\nX-A: b\r\n\r\n", {200}),
    ("trailer without a colon", CHUNKED + chunk(GOOD) + b"0\r\nnothing\r\n\r\n", BAD),
    ("trailers without end", CHUNKED + chunk(GOOD) + b"0\r\n" + b"X-A: b\r\n" * 20000, {413, 431}),
    ("chunks beyond the largest body", CHUNKED + chunk(b"x" * 4000) * 30 + b"0\r\n\r\n", LARGE),
    ("body beyond the largest", post(b'{"prompt": "' + b"x" * 100000 + b'"}'), LARGE),
    ("request in a request", post(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"), BAD),
    ("GET with a body", b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde", {200}),
    ("HEAD with a body", b"HEAD /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde", {200}),
    ("OPTIONS with a body", b"OPTIONS /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde", {204}),
    # methods and versions
    ("CONNECT", b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", {404, 405}),
    ("TRACE", b"TRACE /health HTTP/1.1\r\nHost: x\r\n\r\n", {405}),
    ("an unknown method", b"BREW /health HTTP/1.1\r\nHost: x\r\n\r\n", {405}),
    ("small letters", b"get /health HTTP/1.1\r\nHost: x\r\n\r\n", {405}),
    ("a method of 5,000 letters", b"G" * 5000 + b" /health HTTP/1.1\r\nHost: x\r\n\r\n", {405}),
    ("method with strange characters", b"GE\x01T /health HTTP/1.1\r\nHost: x\r\n\r\n", {400, 405}),
    ("HTTP/0.9", b"GET /health\r\n\r\n", VERSION),
    ("HTTP/1.0", b"GET /health HTTP/1.0\r\n\r\n", {200}),
    ("HTTP/1.7", get(version=b"HTTP/1.7"), {200, 505}),
    ("HTTP/2.0 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", VERSION),
    ("HTTP/3.7", get(version=b"HTTP/3.7"), VERSION),
    ("http in small letters", get(version=b"http/1.1"), BAD),
    ("HTTP/11", get(version=b"HTTP/11"), BAD),
    ("no version, but headers", b"GET /health\r\nHost: x\r\n\r\n", VERSION),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2, REFUSED),
    ("zeros", b"\0" * 500 + b"\r\n\r\n", REFUSED | {408}),
    ("all bytes", bytes(range(256)) + b"\r\n\r\n", REFUSED),
    ("empty lines first", b"\r\n\r\n" + get(), {200}),
    # targets
    ("absolute target", get(path=b"http://example.com/health"), {200, 404}),
    ("target *", get(path=b"*"), {404}),
    ("blank in the target", get(path=b"/hea lth"), REFUSED),
    ("long target", get(path=b"/" + b"a" * 9000), LONG),
    ("very long target", get(path=b"/" + b"a" * 200000), LONG),
    ("endless first line", b"GET /" + b"a" * 200000, LONG),
    ("1,000 arguments", get(path=b"/health?" + b"a=b&" * 1000), LONG),
    ("%00 in the path", get(path=b"/health%00x"), {404}),
    ("%zz in the path", get(path=b"/health%zz"), {404}),
    ("% at the end", get(path=b"/health%"), {404}),
    ("path upwards", get(path=b"/../../etc/passwd"), {404}),
    ("path upwards, encoded", get(path=b"/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd"), {404}),
    ("path upwards, encoded twice", get(path=b"/%252e%252e%252fetc/passwd"), {404}),
    ("invalid UTF-8 in the path, encoded", get(path=b"/v1/models/%ff%fe"), {404}),
    ("invalid UTF-8 in the path", get(path=b"/v1/models/\xff\xfe"), {400, 404}),
    ("NUL in the path", get(path=b"/health\0x"), {200, 400, 404}),  # the library cuts it there
    # headers
    ("no Host", b"GET /health HTTP/1.1\r\n\r\n", BAD),
    ("two Hosts", get(b"Host: y\r\n"), BAD),
    ("60 headers", get(b"X-A: b\r\n" * 60), FIELDS),
    ("5,000 headers", get(b"X-A: b\r\n" * 5000), FIELDS),
    ("a header of 10,000 bytes", get(b"X-A: " + b"a" * 10000 + b"\r\n"), FIELDS),
    ("a header of 200,000 bytes", get(b"X-A: " + b"a" * 200000 + b"\r\n"), FIELDS),
    ("a header name of 10,000 bytes", get(b"X" * 10000 + b": a\r\n"), FIELDS),
    ("an endless header", get()[:-2] + b"X-A: " + b"a" * 200000, FIELDS),
    ("cookies", get(b"Cookie: " + b"a=b; " * 500 + b"\r\n"), FIELDS | {200, GONE}),
    ("NUL in a header's value", get(b"X-A: a\0b\r\n"), {200, 400}),  # the library cuts the value there
    ("NUL in a header's name", get(b"X\0A: b\r\n"), BAD),
    ("control character in a value", get(b"X-A: a\x01b\r\n"), BAD),
    ("bare CR in a value", get(b"X-A: a\rb\r\n"), BAD),
    ("bare LF as line ends", get().replace(b"\r\n", b"\n"), {200, 400}),
    ("no colon", get(b"nothing\r\n"), BAD),
    ("blank before the colon", get(b"X-A : b\r\n"), BAD),
    ("tab before the colon", get(b"X-A\t: b\r\n"), BAD),
    ("a name that is empty", get(b": b\r\n"), {200, 400}),  # it ends the headers
    ("a name with brackets", get(b"X(A): b\r\n"), BAD),
    ("invalid UTF-8 in a name", get(b"X-\xff: b\r\n"), BAD),
    ("a folded line", get(b"X-A: b\r\n c\r\n"), {200, 400}),
    ("a folded first line", b"GET /health HTTP/1.1\r\n Host: x\r\n\r\n", BAD),
    ("a folded length", POST + b"Content-Length:\r\n 32\r\n\r\n" + GOOD, {200, 400}),
    ("upgrade to websocket", get(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                                 b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), {200}),
    ("upgrade to h2c", get(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"), {200}),
    ("expects something else", post(GOOD, b"Expect: 200-ok\r\n"), {200, 417}),
    ("expects with a body too large", POST + b"Expect: 100-continue\r\nContent-Length: 9000000\r\n\r\n", LARGE),
    ("expects, at a page that is not there", b"POST /v1/no HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
     b"Content-Length: 9000000\r\n\r\n", {404}),
    ("range", get(b"Range: bytes=0-5,1-2,9-\r\n"), {200}),
    ("a body in gzip", post(gzip.compress(GOOD), b"Content-Encoding: gzip\r\nContent-Type: application/json\r\n"), {400, 415}),
    ("another media type", post(GOOD, b"Content-Type: text/plain\r\n"), {400, 415}),
    ("a form", post(b"a=b", b"Content-Type: application/x-www-form-urlencoded\r\n"), {400, 415}),
    ("a bad request id", get(b"X-Request-Id: a\x01b\r\n"), BAD),
    # bodies
    ("empty body", post(b""), BAD),
    ("no body", POST + b"\r\n", BAD),
    ("invalid UTF-8", post(b'{"prompt": "\xff\xfe", "max_tokens": 1}'), BAD),
    ("UTF-8 cut short", post(b'{"prompt": "\xe2\x82", "max_tokens": 1}'), BAD),
    ("UTF-16", post(GOOD.decode().encode("utf-16")), BAD),
    ("byte order mark", post(b"\xef\xbb\xbf" + GOOD), BAD),
    ("arrays in arrays", post(b'{"prompt":' + b"[" * 5000 + b"]" * 5000 + b"}"), BAD),
    ("objects in objects", post(b'{"a":' * 5000 + b"1" + b"}" * 5000), BAD),
    ("brackets that never close", post(b"[" * 30000), BAD),
    ("NaN", field(b'"temperature": NaN'), BAD),
    ("Infinity", field(b'"temperature": -Infinity'), BAD),
    ("1e400", field(b'"temperature": 1e400'), BAD),
    ("-0", field(b'"temperature": -0'), {200}),
    ("-0.0", field(b'"top_p": -0.0'), {200, 400}),
    ("1e-400", field(b'"temperature": 1e-400'), {200, 400}),
    ("a huge integer", field(b'"seed": 99999999999999999999'), BAD),
    ("an integer of 30,000 digits", field(b'"seed": ' + b"9" * 30000), BAD),
    ("max_tokens 10^18", post(b'{"prompt": "x", "max_tokens": 1000000000000000000}'), BAD),
    ("max_tokens below 0", post(b'{"prompt": "x", "max_tokens": -1}'), BAD),
    ("n 10^9", field(b'"n": 1000000000'), BAD),
    ("logprobs 10^9", field(b'"logprobs": 1000000000'), BAD),
    ("logit_bias of a token that is none", field(b'"logit_bias": {"99999999999999999999": 1}'), BAD),
    ("min_tokens 2^63", field(b'"min_tokens": 9223372036854775808'), BAD),
    ("1,000 stop strings", field(b'"stop": [' + b'"a",' * 999 + b'"a"]'), BAD),
    ("NUL byte in JSON", post(b'{"prompt": "a\0b", "max_tokens": 1}'), BAD),
    ("NUL byte behind JSON", post(GOOD + b"\0"), BAD),
    ("NUL written as \\u0000", post(b'{"prompt": "a\\u0000b", "max_tokens": 1}'), {200}),
    ("half a surrogate pair", post(b'{"prompt": "\\ud800", "max_tokens": 1}'), BAD),
    ("surrogates in the wrong order", post(b'{"prompt": "\\udc00\\ud800", "max_tokens": 1}'), BAD),
    ("an escape that is none", post(b'{"prompt": "\\x41", "max_tokens": 1}'), BAD),
    ("a string without end", post(b'{"prompt": "x'), BAD),
    ("twice a key", post(b'{"prompt": "x", "prompt": "y", "max_tokens": 1}'), BAD),
    ("text behind JSON", post(GOOD + b" x"), BAD),
    ("two documents", post(GOOD + GOOD), BAD),
    ("an array", post(b"[]"), BAD),
    ("a number", post(b"5"), BAD),
    ("a comment", post(b"/* */" + GOOD), BAD),
    ("single quotes", post(b"{'prompt': 'x'}"), BAD),
    ("5,000 keys", field(b",".join(b'"k%d": 1' % i for i in range(5000))), {200, 400}),
    ("10,000 prompts", post(b'{"prompt": [' + b'"a",' * 9999 + b'"a"], "max_tokens": 1}'), BAD),
    ("token ids that are none", post(b'{"prompt": [1, -1, 99999999], "max_tokens": 1}'), BAD),
    ("a prompt that is an object", post(b'{"prompt": {"a": 1}, "max_tokens": 1}'), BAD),
]

# name, requests on one connection, their answers; behind the last one the connection ends if the last is CLOSED
CLOSED = "closed"
PIPELINES = [
    ("good, bad, good", [post(GOOD), post(b"{"), post(GOOD)], [200, 400, 200]),
    ("20 good ones", [get()] * 20, [200] * 20),
    ("not found, good", [get(path=b"/no"), get()], [404, 200]),
    ("unclear length, then a hidden one", [POST + b"Content-Length: 5\r\nContent-Length: 0\r\n\r\n", get()], [400, CLOSED]),
    ("bad header, then a hidden one", [get(b"X-A : b\r\n"), get()], [400, CLOSED]),
    ("two Hosts, then a hidden one", [get(b"Host: y\r\n"), get()], [400, CLOSED]),
    ("bad chunk, then a hidden one", [CHUNKED + b"zz\r\n", get()], [400, CLOSED]),
    ("good, then garbage", [get(), b"\x01\x02\x03\r\n\r\n"], [200, CLOSED]),
    ("Connection: close, then more", [get(b"Connection: close\r\n"), get()], [200, CLOSED]),
]

# name, bytes, seconds between single bytes (None: nothing more comes), what may come back, seconds until then
PACE = 0.05
TIMED = [
    ("nothing at all", b"", None, {GONE}, IDLE_S),
    ("half a request line", b"GET /hea", None, {408}, HEADER_S),
    ("half of the headers", b"GET /health HTTP/1.1\r\nHost: x\r\nX-A", None, {408}, HEADER_S),
    ("slow request line", b"GET /" + b"a" * 5000, PACE, {408}, HEADER_S),
    ("slow headers", (b"GET /health HTTP/1.1\r\nHost: x\r\n", b"X-A: b\r\n" * 1000), PACE, {408}, HEADER_S),
    ("slow empty lines", (b"", b"\r\n" * 5000), PACE, {408}, HEADER_S),
    ("no body", POST + b"Content-Length: 32\r\n\r\n", None, {408}, BODY_S),
    ("half of a body", post(GOOD)[:-10], None, {408}, BODY_S),
    ("slow body", (POST + b"Content-Length: 30000\r\n\r\n", b" " * 30000), PACE, {408}, BODY_S),
    ("slow chunks", (CHUNKED, b"1\r\n \r\n" * 5000), PACE, {408}, BODY_S),
    ("slow chunk extension", (CHUNKED, b"1;" + b"a" * 5000), PACE, {408}, BODY_S),
    ("a chunk of 2^63 - 1 bytes", CHUNKED + b"7fffffffffffffff\r\nabc", None, {408}, BODY_S),
    ("no last chunk", CHUNKED + chunk(GOOD), None, {408}, BODY_S),
    ("no end of the trailers", CHUNKED + chunk(GOOD) + b"0\r\nX-A: b\r\n", None, {408}, BODY_S),
    ("asks to continue and does not", POST + b"Expect: 100-continue\r\nContent-Length: 32\r\n\r\n", None, {408}, BODY_S),
    ("slow body of a page that is not there", (b"POST /v1/no HTTP/1.1\r\nHost: x\r\nContent-Length: 30000\r\n\r\n", b" " * 30000),
     PACE, {404, 408}, BODY_S),
]

LEAVES = [  # what was sent when the client leaves
    ("at once", b""), ("in the request line", b"GET /he"), ("in the headers", b"GET /health HTTP/1.1\r\nHos"),
    ("behind the headers", POST + b"Content-Length: 32\r\n\r\n"), ("in the body", post(GOOD)[:-5]), ("in a chunk", CHUNKED + b"20\r\n{"),
    ("behind the last byte", post(GOOD)), ("in a stream", post(b'{"prompt": "x", "stream": true, "max_tokens": 200}')),
]


# ---- a raw client --------------------------------------------------------------------------------------------------------
def open_socket(job):
    s = socket.create_connection(("127.0.0.1", job.endpoint["port"]), timeout=BOUND_S)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


class Answers:
    """The answers of a connection one after the other: status, or GONE at its end."""

    def __init__(self, s):
        self.s, self.data = s, b""

    def more(self):
        try:
            part = self.s.recv(65536)
        except ConnectionResetError:
            part = b""
        self.data += part
        return bool(part)

    def next(self, head_only=False):
        while b"\r\n\r\n" not in self.data:
            if not self.more():
                check(not self.data.strip(), f"half an answer: {self.data[:200]!r}")
                return GONE
        head, self.data = self.data.split(b"\r\n\r\n", 1)
        status = int(re.match(rb"HTTP/1\.[01] (\d+) ", head).group(1))
        if status == 100:
            return self.next()
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        wanted = int(length.group(1)) if length and not head_only else 0
        while len(self.data) < wanted and self.more():
            pass
        body, self.data = self.data[:wanted], self.data[wanted:]
        if wanted and status >= 400 and b"json" in head.lower():
            equal(json.loads(body)["error"]["code"] in (status, "model_not_found"), True, f"error object {body!r}")
        return status


def send(s, data):
    """False: the server has closed before it read all. It may have answered first."""
    try:
        s.sendall(data)
        return True
    except (ConnectionResetError, BrokenPipeError):
        return False


def serves(job, name):
    answer = job.post("/v1/completions", GOOD, timeout=BOUND_S)
    equal(answer.status, 200, f"the good request after `{name}`: {answer}")


def play_row(job, name, data, wanted):
    started = time.monotonic()
    with open_socket(job) as s:
        send(s, data)
        try:
            got = Answers(s).next(data.startswith(b"HEAD"))
        except socket.timeout:
            got = "a silence"
    check(got in wanted, f"`{name}`: got {got}, wanted {wanted}")
    check(time.monotonic() - started < BOUND_S, f"`{name}` took too long")
    serves(job, name)


def play_pipeline(job, name, requests, wanted):
    with open_socket(job) as s:
        send(s, b"".join(requests))
        answers = Answers(s)
        equal([CLOSED if w == CLOSED and got is GONE else got for w, got in ((w, answers.next()) for w in wanted)], wanted, name)
    serves(job, name)


def play_timed(job, name, data, pace, wanted, limit):
    first, slow = data if isinstance(data, tuple) else (data, b"") if pace is None else (b"", data)
    started = time.monotonic()
    with open_socket(job) as s:
        send(s, first)
        for i in range(len(slow)):
            if select.select([s], [], [], pace)[0] or not send(s, slow[i:i + 1]):
                break
        s.settimeout(max(0.1, limit + BOUND_S - (time.monotonic() - started)))
        try:
            got = Answers(s).next()
        except socket.timeout:
            got = "a silence"
    took = time.monotonic() - started
    check(got in wanted, f"`{name}`: got {got} after {took:.1f} s, wanted {wanted}")
    check(limit * 0.9 <= took <= limit + BOUND_S, f"`{name}`: ended after {took:.1f} s, the limit is {limit} s")


def leave(job, name, data, reset):
    with open_socket(job) as s:
        send(s, data)
        if reset:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    serves(job, name)


# ---- cases ---------------------------------------------------------------------------------------------------------------
def limited():
    return Job("--api-key", "none", "--header-timeout", str(HEADER_S), "--body-timeout", str(BODY_S), "--keep-alive-timeout",
               str(IDLE_S), "--max-header-bytes", "8K", "--max-header-count", "50", "--max-request-bytes", "64K", ranks=1)


def holdings(process):
    """Descriptors, and memory in MiB."""
    with open(f"/proc/{process.pid}/statm") as f:
        pages = int(f.read().split()[1])
    return len(os.listdir(f"/proc/{process.pid}/fd")), pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def play_all(job):
    problems = []

    def note(play, *args):
        try:
            play(job, *args)
        except Exception as e:
            problems.append(f"{type(e).__name__}: {e}")

    for row in ROWS:
        note(play_row, *row)
    for row in PIPELINES:
        note(play_pipeline, *row)
    for name, data in LEAVES:
        for reset in (False, True):
            note(leave, "leaves " + name, data, reset)
    together(len(TIMED), lambda i: note(play_timed, *TIMED[i]))
    serves(job, "the slow ones")
    check(not problems, "\n".join(problems))


def every_hostile_request_is_refused_and_the_next_is_served():
    with limited() as job:
        head = job.agents()[0]
        serves(job, "nothing")
        time.sleep(0.5)
        descriptors = holdings(head)[0]
        play_all(job)
        until(lambda: holdings(head)[0] == descriptors, IDLE_S + BOUND_S, "all connections are closed again")
        memory = holdings(head)[1]
        play_all(job)
        until(lambda: holdings(head)[0] == descriptors, IDLE_S + BOUND_S, "all connections are closed again")
        if SLOW == 1:  # sanitizers keep freed memory for a while
            check(holdings(head)[1] < memory + 4, f"rank 0 grew from {memory:.1f} to {holdings(head)[1]:.1f} MiB")
        check(head.alive(), "rank 0 lives")
        equal(job.metric("vllm:num_requests_running"), 0)


def a_client_has_so_many_connections():
    with Job("--api-key", "none", "--max-connections-per-client", "5", ranks=1) as job:
        held = [open_socket(job) for _ in range(5)]
        for s in held:
            send(s, get())
            equal(Answers(s).next(), 200)
        answer = job.get("/health", key=False)
        equal((answer.status, answer.json["error"]["code"], answer.headers["Connection"]), (429, 429, "close"))
        check(int(answer.headers["Retry-After"]) >= 1, "Retry-After")
        with open_socket(job) as s:  # one more that does not ask
            equal(Answers(s).next(), GONE)
        held.pop().close()
        until(lambda: job.get("/health", key=False).status == 200, 2 * SLOW, "one has left, one may come")
        for s in held:
            send(s, get())
            equal(Answers(s).next(), 200, "those that were there stay")
            s.close()


def idle_connections_make_room():
    with Job("--api-key", "none", "--max-connections", "16", ranks=1) as job:
        held = [open_socket(job) for _ in range(20)]
        for s in held[:16]:
            send(s, get())
        started = time.monotonic()
        serves(job, "20 idle connections, of 16")
        check(time.monotonic() - started < BOUND_S, "idle ones make room")
        for s in held:
            s.close()


def a_request_that_gets_no_further_costs_no_cpu():
    """The HTTP library calls such a connection ready all the time. Of one core that is 100 %."""
    with limited() as job, open_socket(job) as s:
        head = job.agents()[0]
        send(s, CHUNKED + b"1;" + b"a" * 200000)
        time.sleep(0.2)
        before, began = head.cpu_seconds(), time.monotonic()
        equal(Answers(s).next(), 408)
        used = (head.cpu_seconds() - before) / (time.monotonic() - began)
        check(used < 0.5, f"rank 0 used {100 * used:.0f} % of a core")


def sockets_of_epolls(process):
    """The numbers of client sockets that each epoll set of a process has, by what the kernel says of its descriptors."""
    folder, counts = f"/proc/{process.pid}", []
    clients = {fd for fd in os.listdir(f"{folder}/fd") if os.readlink(f"{folder}/fd/{fd}").startswith("socket:")}
    for fd in os.listdir(f"{folder}/fd"):
        if os.readlink(f"{folder}/fd/{fd}") == "anon_inode:[eventpoll]":
            with open(f"{folder}/fdinfo/{fd}") as f:
                counts.append(len(clients & set(re.findall(r"^tfd: +(\d+)", f.read(), re.M))))
    return sorted(counts)


def connections_are_spread_evenly():
    with Job("--api-key", "none", "--http-threads", "4", ranks=1) as job:
        head = job.agents()[0]
        held = [open_socket(job) for _ in range(24)]  # in a burst
        until(lambda: sockets_of_epolls(head)[-4:] == [6] * 4, 2 * SLOW, "24 connections are 6 for each of 4 threads")
        for s in held:
            s.close()


run(every_hostile_request_is_refused_and_the_next_is_served, a_client_has_so_many_connections, idle_connections_make_room,
    a_request_that_gets_no_further_costs_no_cpu, connections_are_spread_evenly)
