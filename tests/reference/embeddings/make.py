#!/usr/bin/env python3
"""Makes the tiny embedding model out of a generating one, and its vectors: numpy only.

    make.py [--out FOLDER]       writes FOLDER/qwen3 and FOLDER/vectors.json
    make.py --check              computes the vectors anew and compares

The weights are those of ../models/qwen3_headdim32 under the names that embedding models use on the hub (no "model." in front). Vectors
are oracle.py's final norm (float64, all positions at once), pooled here; they know nothing of chunks, caches and the C code.
"""
import argparse
import json
import os
import shutil
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(HERE, "../models")
sys.path.insert(0, MODELS)
import oracle  # noqa: E402

SOURCE, END = os.path.join(MODELS, "qwen3_headdim32"), 2
POOL = {"lasttoken": lambda x: x[-1], "mean": lambda x: x.mean(0), "cls": lambda x: x[0]}


def rename_tensors(source, target):
    with open(source, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        head, data = json.loads(f.read(size)), f.read()
    head = {name[6:] if name.startswith("model.") else name: where for name, where in head.items()}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def make_model(folder):
    """Last token, normalised; the tokenizer puts the end token behind every text."""
    os.makedirs(folder, exist_ok=True)
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copyfile(os.path.join(SOURCE, name), os.path.join(folder, name))
    with open(os.path.join(SOURCE, "tokenizer.json")) as f:
        tokenizer = json.load(f)
    end = {"SpecialToken": {"id": f"<{END}>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, end, {"Sequence": {"id": "B", "type_id": 1}}, end],
        "special_tokens": {f"<{END}>": {"id": f"<{END}>", "ids": [END], "tokens": [f"<{END}>"]}}}
    with open(os.path.join(folder, "tokenizer.json"), "w") as f:
        json.dump(tokenizer, f, separators=(",", ":"))
    rename_tensors(os.path.join(SOURCE, "model.safetensors"), os.path.join(folder, "model.safetensors"))
    write_json(os.path.join(folder, "modules.json"), [
        {"idx": i, "name": str(i), "path": path, "type": "sentence_transformers.models." + kind}
        for i, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")))])
    write_json(os.path.join(folder, "1_Pooling/config.json"), {
        "word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False, "pooling_mode_lasttoken": True, "include_prompt": True})
    write_json(os.path.join(folder, "config_sentence_transformers.json"), {
        "prompts": {"query": "<7><8><9>", "document": ""}, "default_prompt_name": None, "similarity_fn_name": "cosine"})


def texts():
    with open(os.path.join(SOURCE, "reference.json")) as f:
        prompts = [p["ids"] for p in json.load(f)["prompts"]]
    long = (prompts[3] * 4)[:300]
    return prompts + [long, prompts[1] + prompts[1]]


def vectors():
    model = oracle.Model(SOURCE)
    out = []
    for ids in texts():
        rows = model.hidden(ids + [END])[0]
        out.append({"ids": ids, **{name: [float(f"{v:.9g}") for v in pool(rows)] for name, pool in POOL.items()}})
    return out


def check(path):
    with open(path) as f:
        old = json.load(f)
    worst = max(abs(a - b) for x, y in zip(old["texts"], vectors()) for name in POOL for a, b in zip(x[name], y[name]))
    print(f"largest difference {worst:.2e}")
    return worst < 1e-8


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("--out", default=HERE)
    options.add_argument("--check", action="store_true")
    options = options.parse_args()
    if options.check:
        sys.exit(0 if check(os.path.join(options.out, "vectors.json")) else 1)
    make_model(os.path.join(options.out, "qwen3"))
    with open(os.path.join(options.out, "vectors.json"), "w") as out:
        json.dump({"computed": "float64 by ../models/oracle.py", "end": END, "tolerance": 2e-4, "texts": vectors()}, out)
        out.write("\n")
