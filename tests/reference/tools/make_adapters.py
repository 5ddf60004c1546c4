#!/usr/bin/env python3
"""Make the adapters in ../adapters for checkpoints of ../models, and what peft computes with them (README.md there).

    make_adapters.py [NAME ...]     default: all

Needs torch, transformers 5, peft, safetensors, numpy. Seeded: a second run gives the same files as long as the library
versions are the same.
"""
import json
import os
import re
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS, ADAPTERS = os.path.join(HERE, "../models"), os.path.join(HERE, "../adapters")
sys.path.insert(0, MODELS)
from generate import STEPS, full, gaps, greedy, load, log_probs, seed_of  # noqa: E402

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SPECS = {
    "llama_attention": dict(base="llama_tied_llama3", r=8, lora_alpha=16, target_modules=ATTENTION),
    "llama_all": dict(base="llama_tied_llama3", r=5, lora_alpha=10, use_rslora=True, target_modules="all-linear",
                      rank_pattern={"up_proj": 3, "layers.1.self_attn.q_proj": 12}, alpha_pattern={"mlp.down_proj": 4}),
    "qwen3_mlp": dict(base="qwen3_headdim32", dtype="bf16", r=4, lora_alpha=8,
                      target_modules=["gate_proj", "up_proj", "down_proj", "q_proj", "v_proj"], layers_to_transform=[1]),
    "phi3_fused": dict(base="phi3_swa", r=6, lora_alpha=9, target_modules=r".*\.(qkv_proj|o_proj|gate_up_proj|down_proj)"),
    "deepseek_latent": dict(base="deepseek_v2", r=4, lora_alpha=4,
                            target_modules=["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"]),
    "gemma2_all": dict(base="gemma2", r=2, lora_alpha=4, target_modules="all-linear"),
    "mixtral_attention": dict(base="mixtral", dtype="bf16", r=16, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
}


@torch.no_grad()
def fill(model, name, salt, dtype):
    """Both factors random, so that every adapted layer matters."""
    g = torch.Generator().manual_seed(seed_of(name, salt))
    for n, p in model.named_parameters():
        if "lora_" not in n:
            continue
        v = torch.randn(p.shape, generator=g) * (0.5 / p.shape[1] ** 0.5)
        p.copy_(v.to(torch.bfloat16) if dtype == "bf16" else v)


def prompts_of(base):
    return [p["ids"] for p in json.load(open(os.path.join(MODELS, base, "reference.json")))["prompts"]]


def good(answers):
    """A clear winner at every step, no end of a text, not one token over and over."""
    return all(min(gaps(z)) > 0.02 and min(ids) > 2 and len(set(ids)) >= 4 for z, ids in answers)


def one(name, spec):
    spec = dict(spec)
    base, dtype = spec.pop("base"), spec.pop("dtype", "f32")
    config = LoraConfig(task_type="CAUSAL_LM", bias="none", **spec)
    model = get_peft_model(load(os.path.join(MODELS, base)), config).eval()
    prompts = prompts_of(base)
    for salt in range(200):
        fill(model, name, salt, dtype)
        answers = [greedy(model, ids) for ids in prompts]
        if good(answers):
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear answers")
    folder = os.path.join(ADAPTERS, name)
    os.makedirs(folder, exist_ok=True)
    model.save_pretrained(folder)
    path = os.path.join(folder, "adapter_config.json")
    saved = json.load(open(path))
    saved["base_model_name_or_path"] = base
    json.dump(saved, open(path, "w"), indent=1, sort_keys=True)
    if os.path.exists(os.path.join(folder, "README.md")):
        os.remove(os.path.join(folder, "README.md"))
    if dtype == "bf16":
        file = os.path.join(folder, "adapter_model.safetensors")
        save_file({k: v.to(torch.bfloat16) for k, v in load_file(file).items()}, file, {"format": "pt"})
    doc, tensors = [], {}
    for i, (ids, (zs, got)) in enumerate(zip(prompts, answers)):
        z, lp = full(model, ids), log_probs(zs)
        if len(ids) <= 33:
            tensors[f"logits.{i}"] = z.contiguous()
        tensors[f"last_logits.{i}"] = z[-1].clone().contiguous()
        if len(ids) > 1:
            q = log_probs(z)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
            tensors[f"token_logprobs.{i}"] = q.float().contiguous()
        doc.append(dict(ids=ids, greedy=dict(ids=got, logprobs=[round(float(lp[s, x]), 6) for s, x in enumerate(got)])))
    text = json.dumps(dict(name=name, base=base, stored=dtype, computed="float32", steps=STEPS, prompts=doc), indent=1)
    text = re.sub(r"\[[\d\s.,e+-]*\]", lambda m: re.sub(r"\s+", " ", m.group(0)).replace("[ ", "[").replace(" ]", "]"), text)
    with open(os.path.join(folder, "reference.json"), "w") as f:
        f.write(text + "\n")
    save_file(tensors, os.path.join(folder, "reference.safetensors"), {"format": "pt"})
    print(name, "salt", salt, "gap", min(min(gaps(z)) for z, _ in answers), flush=True)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or SPECS:
        one(chosen, SPECS[chosen])
