#!/usr/bin/env python3
"""Makes the folders of quantised weights out of their neighbours: numpy only.

    quantise.py [--out FOLDER] [NAME ...]

What is stored is packed here from the formats' descriptions in ../models.md (section 9); the expected numbers are those of oracle.py
(float64) with the weights that the codes stand for. The library's kernels for these formats were not run.
"""
import argparse
import json
import os
import shutil
import struct
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import oracle  # noqa: E402

STEPS, TYPES = 24, {"f4": "F32", "f2": "F16", "i4": "I32", "u1": "U8"}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
E4M3 = oracle.f8_e4m3(np.arange(256))


class Bf16(np.ndarray):
    """float64 numbers that are written as BF16."""


class F8(np.ndarray):
    """u8 codes that are written as F8_E4M3."""


def tensor_bytes(x):
    if isinstance(x, Bf16):
        return "BF16", (np.asarray(x, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    if isinstance(x, F8):
        return "F8_E4M3", np.asarray(x).tobytes()
    return TYPES[x.dtype.str[1:]], x.tobytes()


def write_safetensors(path, tensors):
    head, data = {}, b""
    order = sorted(tensors, key=lambda n: (tensor_bytes(tensors[n])[0] not in ("F32", "I32"), n))
    for name in order:
        kind, raw = tensor_bytes(tensors[name])
        head[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


# ---- codes: each returns the tensors to store and the weights that they stand for
def in_groups(w, g):
    """16 codes from the smallest to the largest of each group of inputs -> codes, zeros, scales (f16 values)"""
    x = w.reshape(w.shape[0], -1, g)
    lo, hi = np.minimum(x.min(-1), 0), np.maximum(x.max(-1), 0)
    scale = ((hi - lo) / 15).astype(np.float16).astype(np.float64)
    zero = np.clip(np.rint(-lo / scale), 1, 15)
    code = np.clip(np.rint(x / scale[..., None]) + zero[..., None], 0, 15)
    return code.reshape(w.shape).astype(np.int64), zero.astype(np.int64), scale


def value(code, zero, scale, g):
    return (code - np.repeat(zero, g, 1)) * np.repeat(scale, g, 1)


def words(x, order, bits=4):
    """[rows, n] codes -> [rows, n / each] words, each = 32 / bits; code each c + j is number order[j] of a word, from below"""
    each = 32 // bits
    out = np.zeros((x.shape[0], x.shape[1] // each), np.uint32)
    for j in range(each):
        out |= (x[:, j::each].astype(np.uint32) & 2 ** bits - 1) << np.uint32(bits * order[j])
    return out.view(np.int32).astype("<i4")


def awq(name, w, g=32):
    code, zero, scale = in_groups(w, g)
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    return {name + ".qweight": words(code.T, order), name + ".qzeros": words(zero.T, order),
            name + ".scales": scale.T.astype("<f2")}, value(code, zero, scale, g)


def gptq(name, w, g=16, less=1):
    code, zero, scale = in_groups(w, g)
    plain = list(range(8))
    return {name + ".qweight": np.ascontiguousarray(words(code, plain).T), name + ".qzeros": words((zero - less).T, plain),
            name + ".scales": scale.T.astype("<f2"), name + ".g_idx": (np.arange(w.shape[1]) // g).astype("<i4")}, \
        value(code, zero, scale, g)


def gptq_v2(name, w):
    """One group, and zeros as they are."""
    return gptq(name, w, w.shape[1], 0)


def gptq_act(name, w, g=16, bits=4, less=1):
    """desc_act: group i has the inputs order[g i : g (i + 1)], of any columns"""
    order = np.random.default_rng(list(name.encode())).permutation(w.shape[1])
    index = np.empty(w.shape[1], np.int64)
    index[order] = np.arange(w.shape[1]) // g
    groups = w.shape[1] // g
    code, back, top = np.zeros(w.shape, np.int64), np.zeros(w.shape), 2 ** bits - 1
    zeros, scales = np.zeros((w.shape[0], groups), np.int64), np.zeros((w.shape[0], groups))
    for i in range(groups):
        x = w[:, index == i]
        lo, hi = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
        scales[:, i] = ((hi - lo) / top).astype(np.float16)
        zeros[:, i] = np.clip(np.rint(-lo / scales[:, i]), 1, top)
        q = np.clip(np.rint(x / scales[:, i, None]) + zeros[:, i, None], 0, top)
        code[:, index == i] = q
        back[:, index == i] = (q - zeros[:, i, None]) * scales[:, i, None]
    plain = list(range(32 // bits))
    return {name + ".qweight": np.ascontiguousarray(words(code, plain, bits).T),
            name + ".qzeros": words((zeros - less).T, plain, bits), name + ".scales": scales.T.astype("<f2"),
            name + ".g_idx": index.astype("<i4")}, back


def gptq_act8(name, w):
    """Eight bits, and zeros as they are."""
    return gptq_act(name, w, 32, 8, 0)


def fp8(name, w, block=128):
    scale = np.zeros([-(-n // block) for n in w.shape])
    code, back = np.zeros(w.shape, np.uint8), np.zeros(w.shape)
    table = np.where(np.isnan(E4M3), np.inf, E4M3)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = np.s_[i * block:(i + 1) * block, j * block:(j + 1) * block]
            scale[i, j] = np.float32(np.abs(w[at]).max() / 448)
            code[at] = np.abs(w[at][..., None] / scale[i, j] - table).argmin(-1)
            back[at] = E4M3[code[at]] * scale[i, j]
    return {name + ".weight": code.view(F8), name + ".weight_scale_inv": scale.astype("<f4")}, back


def mxfp4(rng, experts, rows, cols, size):
    """Random codes and scales -> blocks, scales, weights [experts, rows, cols] of about that size"""
    code = rng.integers(0, 16, (experts, rows, cols))
    scale = rng.integers(-1, 2, (experts, rows, cols // 32)) + int(np.rint(np.log2(size / 3)))
    pair = code.reshape(experts, rows, cols // 32, 16, 2)
    return (pair[..., 0] | pair[..., 1] << 4).astype("u1"), (scale + 127).astype("u1"), \
        E2M1[code] * np.repeat(2.0 ** scale, 32, 2)


# ---- folders
def wide(w):
    """As they were stored: BF16 where that loses nothing."""
    exact = (np.asarray(w, np.float32).view(np.uint32) & 0xffff == 0).all()
    return w.view(Bf16) if exact else w.astype("<f4")


def linears(w, spare):
    return [n[:-len(".weight")] for n in w if n.endswith("_proj.weight") or n.endswith("_mqa.weight") if not spare(n)]


def replaced(w, pack, spare=lambda n: False):
    """Weights for the oracle, and tensors to store."""
    stored = {n: wide(v) for n, v in w.items()}
    for name in linears(w, spare):
        del stored[name + ".weight"]
        tensors, w[name + ".weight"] = pack(name, w[name + ".weight"])
        stored.update(tensors)
    return stored


def make_mxfp4(w, config):
    rng = np.random.default_rng(5)
    e, h, f = config["num_local_experts"], config["hidden_size"], 32
    config["intermediate_size"] = f
    stored = {n: wide(v) for n, v in w.items() if ".experts." not in n}
    for i in range(config["num_hidden_layers"]):
        m = f"model.layers.{i}.mlp.experts."
        for name, rows, cols in (("gate_up_proj", 2 * f, h), ("down_proj", h, f)):
            stored[m + name + "_blocks"], stored[m + name + "_scales"], v = mxfp4(rng, e, rows, cols, 0.5)
            w[m + name] = v.transpose(0, 2, 1)
            bias = rng.standard_normal((e, rows)).astype(np.float32)
            bias = (bias.view(np.uint32) & 0xffff0000).view(np.float32).astype(np.float64) * 0.25
            stored[m + name + "_bias"], w[m + name + "_bias"] = bias.view(Bf16), bias
    return stored, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                                                       "model.embed_tokens", "lm_head"]}


FOLDERS = {
    "qwen3_awq": ("qwen3_headdim32", lambda w, c: (replaced(w, awq), {
        "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm", "modules_to_not_convert": None})),
    "llama_gptq": ("llama_v5style", lambda w, c: (replaced(w, gptq), {
        "quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False, "damp_percent": 0.01,
        "static_groups": False, "true_sequential": True, "checkpoint_format": "gptq", "lm_head": False})),
    "llama_gptq_v2": ("llama_v5style", lambda w, c: (replaced(w, gptq_v2), {
        "quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": False, "sym": True, "checkpoint_format": "gptq_v2"})),
    "llama_gptq_act": ("llama_v5style", lambda w, c: (replaced(w, gptq_act), {
        "quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True, "sym": False, "damp_percent": 0.01,
        "static_groups": False, "true_sequential": True, "checkpoint_format": "gptq", "lm_head": False})),
    "llama_gptq_act8": ("llama_v5style", lambda w, c: (replaced(w, gptq_act8), {
        "quant_method": "gptq", "bits": 8, "group_size": 32, "desc_act": True, "sym": False, "static_groups": True,
        "checkpoint_format": "gptq_v2"})),
    "deepseek_v3_fp8block": ("deepseek_v3", lambda w, c: (replaced(w, fp8), {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]})),
    "gpt_oss_mxfp4": ("gpt_oss", make_mxfp4),
}


def reference(model, prompts):
    """reference.json's prompts and reference.safetensors, as generate.py writes them."""
    out, tensors = [], {}
    for i, ids in enumerate(prompts):
        n, ids, logprobs, gaps, margins = len(ids), list(ids), [], [], []
        first = None
        for _ in range(STEPS):
            z, margin = model.forward(ids)
            first = z if first is None else first
            row, lp = z[-1], oracle.log_softmax(z[-1])
            best = np.argsort(-row, kind="stable")
            gaps.append(float(row[best[0]] - row[best[1]]))
            margins.append(margin)
            logprobs.append(round(float(lp[best[0]]), 6))
            ids.append(int(best[0]))
        print(f"    prompt {i}: gap {min(gaps):.3f}, routing margin {min(margins):.1e}")
        assert min(gaps) > 0.02 and min(margins) > 1e-4, "choose others"
        out.append({"ids": ids[:n], "greedy": {"ids": ids[n:], "logprobs": logprobs}})
        if i < 3:
            tensors[f"logits.{i}"] = first.astype("<f4")
        tensors[f"last_logits.{i}"] = first[-1].astype("<f4")
        if n > 1:
            lp = oracle.log_softmax(first)
            tensors[f"token_logprobs.{i}"] = lp[np.arange(n - 1), ids[1:n]].astype("<f4")
    return out, tensors


def stable_prompts(model, old):
    """The lengths of the neighbour's prompts, with ids whose continuation is far from ties."""
    vocab, found = model.c["vocab_size"], []
    for n in [len(p["ids"]) for p in old]:
        for seed in range(200):
            ids = [int(i) for i in np.random.default_rng([seed, n]).integers(3, vocab, n)]
            try:
                with open(os.devnull, "w") as quiet:
                    keep, sys.stdout = sys.stdout, quiet
                    try:
                        reference(model, [ids])
                    finally:
                        sys.stdout = keep
                found.append(ids)
                break
            except AssertionError:
                continue
        else:
            raise SystemExit(f"no stable prompt of {n} tokens")
    return found


def make(name, out):
    source, change = FOLDERS[name]
    folder, old = os.path.join(out, name), os.path.join(HERE, source)
    os.makedirs(folder, exist_ok=True)
    for other in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(os.path.join(old, other), os.path.join(folder, other))
    with open(os.path.join(old, "config.json")) as f:
        config = json.load(f)
    weights = oracle.load_weights(old)
    tensors, config["quantization_config"] = change(weights, config)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=1)
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors)
    model = oracle.Model(old)
    model.c, model.w = config, weights
    model.head = weights["model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"]
    print(name)
    with open(os.path.join(old, "reference.json")) as f:
        prompts = stable_prompts(model, json.load(f)["prompts"])
    prompts, numbers = reference(model, prompts)
    write_safetensors(os.path.join(folder, "reference.safetensors"), numbers)
    with open(os.path.join(folder, "reference.json"), "w") as f:
        json.dump({"name": name, "computed": "float64 by oracle.py", "steps": STEPS,
                   "tolerance": {"logit": 0.002, "logprob": 0.002}, "prompts": prompts}, f)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("--out", default=HERE)
    options.add_argument("names", nargs="*", default=list(FOLDERS))
    options = options.parse_args()
    for each in options.names:
        make(each, options.out)
