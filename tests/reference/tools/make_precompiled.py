#!/usr/bin/env python3
"""Writes the tokenizer set with a precompiled character map: make_precompiled.py TOKENIZERS_FOLDER

The vocabulary is the unigram set's; in front of it stand the character map and the pre-tokenizers that XLM-R's files have. The map is
compiled by SentencePiece from rules made here, in the manner of its nmt_nfkc: controls vanish or become spaces, and some thousand
characters and pairs get their NFKC form. Then complete_tokenizers.py. Repeatable: nothing is trained but a model that is thrown away.
"""
import base64
import json
import os
import sys
import tempfile
import unicodedata

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_tokenizers import NAMES, TEXTS, special_texts  # noqa: E402
from tokref import write_set  # noqa: E402

GONE = [*range(0x1, 0x9), 0xb, *range(0xe, 0x20), 0x7f, 0x8f, 0x9f, 0xad]
SPACE = [0x9, 0xa, 0xc, 0xd, 0x85, 0xa0, 0x1680, *range(0x200b, 0x2010), 0x2028, 0x2029, 0x3000, 0xfeff, 0xfffd]
BLOCKS = [(0xa0, 0x250), (0x1e00, 0x1f00), (0x2000, 0x2070), (0x2070, 0x20a0), (0x2100, 0x218a), (0x2460, 0x2500), (0x3000, 0x3100),
          (0x3300, 0x3400), (0xf900, 0xf910), (0xfb00, 0xfb07), (0xff00, 0xfff0), (0x1d400, 0x1d440)]
MARKS = [0x300, 0x301, 0x302, 0x303, 0x307, 0x308, 0x30a, 0x30c, 0x323, 0x327]
MORE = {"\u1112\u1161": "\ud558", "\u1100\u1173": "\uadf8", "\r\n": " ", "\u0915\u093c": "\u0958"}


def rules():
    out = {chr(c): "" for c in GONE}
    out.update({chr(c): " " for c in SPACE})
    for low, high in BLOCKS:
        for c in range(low, high):
            form = unicodedata.normalize("NFKC", chr(c))
            if form != chr(c) and chr(c) not in out:
                out[chr(c)] = form
    for base in "ABCDEGHIJKLNOPRSTUWYZabcdeghijklnoprstuwyz":
        for mark in MARKS:
            form = unicodedata.normalize("NFC", base + chr(mark))
            if len(form) == 1:
                out[base + chr(mark)] = form
    return {**out, **MORE}


def character_map():
    with tempfile.TemporaryDirectory() as folder:
        table, corpus, model = (os.path.join(folder, name) for name in ("rules.tsv", "corpus.txt", "model"))
        with open(table, "w") as f:
            for key, value in sorted(rules().items()):
                f.write(" ".join(f"{ord(c):X}" for c in key) + "\t" + " ".join(f"{ord(c):X}" for c in value) + "\n")
        with open(corpus, "w") as f:
            f.write("a few words\nand a few more\n" * 20)
        sentencepiece.SentencePieceTrainer.train(
            input=corpus, model_prefix=model, vocab_size=25, hard_vocab_limit=False, normalization_rule_tsv=table, minloglevel=2)
        proto = sentencepiece_model_pb2.ModelProto()
        with open(model + ".model", "rb") as f:
            proto.ParseFromString(f.read())
        return proto.normalizer_spec.precompiled_charsmap


if __name__ == "__main__":
    root = sys.argv[1]
    with open(os.path.join(root, "unigram/tokenizer.json")) as f:
        file = json.load(f)
    file["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(character_map()).decode()},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]}
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, file["pre_tokenizer"]]}
    config = {"tokenizer_class": "XLMRobertaTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": 4096,
              "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    more = [("map", t) for t in ("e\u0301 o\u0323\u0302 A\u030a\u0301", "x\r\ny\r\r\nz", "\r", "\u0915\u093c\u093f \u0915\u093f",
                                 "\u1112\u1161\u11ab \u1100\u1173\u11af", "\ufb01\ufb02\ufb03", "\u212b\u00c5A\u030a", "a\u200bb\u200dc", "\u3300\u33ff",
                                 "\u0600a \u06001", "\U0001d400\U0001d43f\u0301", "a\u0327\u0301", "\u0301\u0301e\u0301\u0301\u0301", "\ufeff\ufeffa",
                                 "\x00e\u0301\x00", "\U0001f469\u200d\U0001f4bb\u200b", "n\u0303\u200b", "\u2460\u20dd", "\t\u0301\n\u0301")]
    write_set(root, "precompiled", Tokenizer.from_str(json.dumps(file)), "other",
              TEXTS + more + special_texts(NAMES["unigram"]["special"], []), "XLM-R: SentencePiece's character map, Unigram", config, 20261,
              "A grapheme cluster of less than 6 bytes becomes as a whole what the shortest key of the map that it begins with says.")
