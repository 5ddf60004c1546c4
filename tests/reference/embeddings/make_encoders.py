#!/usr/bin/env python3
"""Makes the tiny encoders and what they say of some texts, with torch, transformers and tokenizers (on a CPU, float64).

    make_encoders.py [--out FOLDER]      writes FOLDER/{bert,xlmr,bert_scorer,xlmr_scorer} and FOLDER/encoders.json

bert: mean, normalised. xlmr: first token, texts in lower case (its tokenizer would not do that), several positions of padding in front of
its table. bert_scorer: a file as old ones are ("bert." in front, gamma and beta, a list of position numbers, heads of other tasks).
xlmr_scorer: bf16, "roberta." in front, RobertaProcessing, no sigmoid. Weights are random, and large enough that attention and all
biases count. The tokenizers are those of ../tokenizers/wordpiece and precompiled.
"""
import argparse
import json
import os
import shutil

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (BertConfig, BertForSequenceClassification, BertModel, XLMRobertaConfig, XLMRobertaForSequenceClassification,
                          XLMRobertaModel)

HERE = os.path.dirname(os.path.abspath(__file__))
TOKENIZERS = os.path.join(HERE, "../tokenizers")
SIZES = {"vocab_size": 1200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "hidden_act": "gelu"}
LONG = "The server reads the prompt and writes the answer. "
TEXTS = ["a", "Hello world", "The queue is full, and the worker waits.", "\u03a3\u038a\u03a3\u03a5\u03a6\u039f\u03a3 \u03c3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2 \u0130I",
         "\ufb01le\u00a0na\u00efve cafe\u0301 \u2460\u2461", "\u6f22\u5b57\u304b\u306a and \u041f\u0440\u0438\u0432\u0435\u0442", LONG * 13]
PAIRS = [("Where is the server?", "The server is in the kitchen."), ("a", "b"), ("water", LONG * 11),
         ("How many workers wait for the queue?", "Two workers wait."), ("\ufb01re", "Stra\u00dfe na\u00efve")]


def random_weights(model, seed):
    draw = torch.Generator().manual_seed(seed)

    def normal(shape, middle, width):
        return middle + width * torch.randn(shape, generator=draw, dtype=torch.float32)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "LayerNorm.weight" in name:
                p.copy_(normal(p.shape, 1, 0.2))
            elif name.endswith("bias"):
                p.copy_(normal(p.shape, 0, 0.2))
            elif "embeddings" in name:
                p.copy_(normal(p.shape, 0, 0.7))
            else:
                p.copy_(normal(p.shape, 0, 1.6 / p.shape[1] ** 0.5))
    return model.eval()


def write_json(path, value, **how):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(value, f, **(how or {"indent": 1}))
        f.write("\n")


def save(folder, model, rename=lambda name: name, more=(), dtype=torch.float32):
    os.makedirs(folder, exist_ok=True)
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    write_json(os.path.join(folder, "config.json"), config)
    tensors = {rename(name): t.detach().to(dtype).contiguous() for name, t in model.state_dict().items() if "_ids" not in name}
    save_file({**tensors, **dict(more)}, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


def tokenizer(folder, source, post=None):
    shutil.copyfile(os.path.join(TOKENIZERS, source, "tokenizer_config.json"), os.path.join(folder, "tokenizer_config.json"))
    with open(os.path.join(TOKENIZERS, source, "tokenizer.json")) as f:
        file = json.load(f)
    if post:
        file["post_processor"] = post
    write_json(os.path.join(folder, "tokenizer.json"), file, separators=(",", ":"), ensure_ascii=False)
    return Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


def sentence_transformers(folder, pooling, modules, bert):
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))[:modules]
    write_json(os.path.join(folder, "modules.json"), [
        {"idx": i, "name": str(i), "path": path, "type": "sentence_transformers.models." + kind}
        for i, (path, kind) in enumerate(kinds)])
    write_json(os.path.join(folder, "1_Pooling/config.json"), {
        "word_embedding_dimension": 32, "pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False})
    write_json(os.path.join(folder, "sentence_bert_config.json"), bert)


def numbers(tensor):
    return [float(f"{v:.9g}") for v in tensor.tolist()]


def vectors(model, tokens, change=lambda text: text):
    out, wide = [], model.double()
    for text in TEXTS:
        ids = tokens.encode(change(text)).ids
        assert len(ids) <= 320, len(ids)
        with torch.no_grad():
            rows = wide(input_ids=torch.tensor([ids])).last_hidden_state[0]
        out.append({"text": text, "ids": ids, "lasttoken": numbers(rows[-1]), "mean": numbers(rows.mean(0)), "cls": numbers(rows[0])})
    return out


def scores(model, tokens, types):
    out, wide = [], model.double()
    for query, document in PAIRS:
        e = tokens.encode(query, document)
        with torch.no_grad():
            more = {"token_type_ids": torch.tensor([e.type_ids])} if types else {}
            logit = wide(input_ids=torch.tensor([e.ids]), **more).logits
        assert logit.shape == (1, 1)
        out.append({"query": query, "document": document, "ids": e.ids, "second": e.type_ids.index(1) if types else 0,
                    "logit": float(f"{logit.item():.9g}")})
    return out


def bert(folder, seed):
    config = BertConfig(**SIZES, max_position_embeddings=320, type_vocab_size=2, pad_token_id=0)
    model = random_weights(BertModel(config), seed)
    save(folder, model)
    sentence_transformers(folder, "mean", 3, {"max_seq_length": 320, "do_lower_case": False})
    return {"texts": vectors(model, tokenizer(folder, "wordpiece"))}


def xlmr(folder, seed):
    config = XLMRobertaConfig(**SIZES, max_position_embeddings=322, type_vocab_size=1, layer_norm_eps=1e-5, bos_token_id=0, pad_token_id=1,
                              eos_token_id=2)
    model = random_weights(XLMRobertaModel(config), seed)
    save(folder, model)
    sentence_transformers(folder, "cls", 2, {"max_seq_length": 320, "do_lower_case": True})
    return {"texts": vectors(model, tokenizer(folder, "precompiled"), str.lower)}


def bert_scorer(folder, seed):
    config = BertConfig(**SIZES, max_position_embeddings=320, type_vocab_size=2, pad_token_id=0, num_labels=1)
    model = random_weights(BertForSequenceClassification(config), seed)

    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    save(folder, model, old, {"bert.embeddings.position_ids": torch.arange(320).unsqueeze(0), "cls.predictions.bias": torch.zeros(3)}.items())
    return {"pairs": scores(model, tokenizer(folder, "wordpiece"), True), "sigmoid": True}


def xlmr_scorer(folder, seed):
    config = XLMRobertaConfig(**SIZES, max_position_embeddings=322, type_vocab_size=1, layer_norm_eps=1e-5, bos_token_id=0, pad_token_id=1,
                              eos_token_id=2, num_labels=1, sbert_ce_default_activation_function="torch.nn.modules.linear.Identity")
    model = random_weights(XLMRobertaForSequenceClassification(config), seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16).float())
    save(folder, model, dtype=torch.bfloat16)
    post = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True, "add_prefix_space": True}
    return {"pairs": scores(model, tokenizer(folder, "precompiled", post), False), "sigmoid": False}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("--out", default=HERE)
    out = options.parse_args().out
    makers = (bert, xlmr, bert_scorer, xlmr_scorer)
    golden = {f.__name__: f(os.path.join(out, f.__name__), 7 + i) for i, f in enumerate(makers)}
    with open(os.path.join(out, "encoders.json"), "w") as f:
        json.dump({"computed": "float64 by transformers", "tolerance": 1e-4, "models": golden}, f)
        f.write("\n")
