#!/usr/bin/env python3
"""Adds to cases.json what make_tokenizers.py leaves out: complete_tokenizers.py TOKENIZERS_FOLDER

unigram, wordpiece: ids_split, pieces, id_cases, continuation_cases, by HF tokenizers from the files as they are (training
them again would give other ids). llama2, mistral, gemma: pieces_early for the cases marked hold_whole_byte_run: what a stream
emits that holds back no good character of a run of byte tokens; from the first bad byte on it waits for the end of the run.
"""
import json
import os
import random
import re
import sys

from tokenizers import Tokenizer

OTHER = ("unigram", "precompiled", "wordpiece")
BYTES = ("llama2", "mistral", "gemma")


def pieces(tokenizer, ids, before=()):
    """Every token's text leaves with it: these decoders look at single tokens."""
    def text(n):
        return tokenizer.decode(list(before) + ids[:n], skip_special_tokens=True)
    return [text(i + 1)[len(text(i)):] for i in range(len(ids))] + [""]


def complete_other(folder, cases):
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    whole = [c for c in cases["cases"] if "text" in c]
    tokenizer.encode_special_tokens = True
    for c in whole:
        split = tokenizer.encode(c["text"], add_special_tokens=False).ids
        if split != c["ids"]:
            c["ids_split"] = split
    tokenizer.encode_special_tokens = False
    for c in whole:
        c["pieces"] = pieces(tokenizer, c["ids"])
    draw = random.Random(5)
    cases["id_cases"] = []
    for _ in range(44):
        ids = [draw.randrange(cases["vocab_size"]) for _ in range(draw.randrange(1, 25))]
        cases["id_cases"].append({"ids": ids, "note": "random ids", "pieces": pieces(tokenizer, ids),
                                  "decode_skip": tokenizer.decode(ids, skip_special_tokens=True)})
    cases["continuation_cases"] = []
    for c in draw.sample([c for c in whole if len(c["ids"]) > 3], 40):
        cut = draw.randrange(1, len(c["ids"]))
        prompt, output = cases["specials_prefix"] + c["ids"][:cut], c["ids"][cut:]
        cases["continuation_cases"].append({
            "prompt_ids": prompt, "output_ids": output, "pieces": pieces(tokenizer, output, prompt),
            "output_text": "".join(pieces(tokenizer, output, prompt))})


def early(tokens, strip):
    """tokens: texts. A second implementation of the stream, for byte fallback."""
    out, held, bad = [], b"", False
    started = not strip
    def shown(text):
        nonlocal started
        if text and not started:
            text, started = text.removeprefix(" "), True
        return text
    for token in tokens:
        piece = ""
        byte = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
        if not byte:
            piece, held, bad = "\ufffd" * len(held) + token.replace("\u2581", " "), b"", False
        else:
            held += bytes([int(byte[1], 16)])
            try:
                if not bad:
                    piece, held = held.decode(), b""
            except UnicodeDecodeError as e:
                bad = e.reason != "unexpected end of data"
        out.append(shown(piece))
    return out + [shown("\ufffd" * len(held))]


def complete_bytes(folder, cases):
    with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
        file = json.load(f)
    text = {i: t for t, i in file["model"]["vocab"].items()}
    text.update({a["id"]: a["content"] for a in file["added_tokens"]})
    special = {a["id"] for a in file["added_tokens"] if a["special"]}
    strip = file["decoder"]["decoders"][-1]["type"] == "Strip"
    for c in cases["id_cases"]:
        tokens = [text[i] for i in c["ids"]]
        if c.get("hold_whole_byte_run") and not special & set(c["ids"]):
            c["pieces_early"] = early(tokens, strip)
        elif not special & set(c["ids"]):
            assert early(tokens, strip) == c["pieces"], c["ids"]


def write(f, cases):
    """A case a line, as make_tokenizers.py writes them."""
    def short(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    parts = []
    for key, value in cases.items():
        rows = isinstance(value, list) and value and isinstance(value[0], dict)
        parts.append(json.dumps(key) + ": " + ("[\n" + ",\n".join(map(short, value)) + "\n]" if rows
                                               else json.dumps(value, ensure_ascii=False)))
    f.write("{\n" + ",\n".join(parts) + "\n}\n")


for name in OTHER + BYTES:
    folder = os.path.join(sys.argv[1], name)
    path = os.path.join(folder, "cases.json")
    with open(path, encoding="utf-8") as f:
        cases = json.load(f)
    (complete_other if name in OTHER else complete_bytes)(folder, cases)
    with open(path, "w", encoding="utf-8") as f:
        write(f, cases)
    print(name, "completed")
