"""Section tokenize: megabytes a second that one thread encodes, beside HF tokenizers on the same texts in turn, with the same ids.

Vocabularies of a real size are not in the repository: they are trained, once, on the sources of Python's library (which is on
every machine that runs this), in the shapes of tests/reference/tokenizers, and kept in the build folder. Without the Python
package `tokenizers` the small reference vocabularies are measured, and nothing is beside them."""
import glob
import json
import os
import subprocess
import sys
import sysconfig
import time

from job import TOP, Failed, helper

SHAPES = ("gpt2", "llama3", "o200k", "deepseek", "qwen", "llama2", "mistral", "gemma", "unigram", "wordpiece")
REFERENCE = os.path.join(TOP, "tests/reference/tokenizers")
TOKENS, TRAIN_BYTES, TEXT_BYTES, LONGEST = 16000, 4_000_000, 2_000_000, 20_000


def texts():
    out, size = [], 0
    for path in sorted(glob.glob(os.path.join(sysconfig.get_path("stdlib"), "**/*.py"), recursive=True)):
        try:
            with open(path, encoding="utf-8") as f:
                text = f.read()[:LONGEST]
        except (OSError, UnicodeDecodeError):
            continue
        if len(text) > 200 and "\0" not in text:
            out.append(text)
            size += len(text)
        if size > TRAIN_BYTES:
            break
    return out


def train(shape, corpus, folder):
    """The reference's steps around a model that is trained anew."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    with open(os.path.join(REFERENCE, shape, "tokenizer.json"), encoding="utf-8") as f:
        file = json.load(f)
    like = Tokenizer.from_file(os.path.join(REFERENCE, shape, "tokenizer.json"))
    special = [a["content"] for a in file["added_tokens"] if a["special"]]
    kind, byte_level = file["model"]["type"], "ByteLevel" in json.dumps(file["pre_tokenizer"])
    if kind == "BPE" and byte_level:
        new, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(
            vocab_size=TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    elif kind == "BPE":
        new = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        special = ["<unk>"] + [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=TOKENS, special_tokens=special, max_token_length=16, show_progress=False)
    elif kind == "Unigram":
        new, corpus = Tokenizer(models.Unigram()), corpus[:60]
        trainer = trainers.UnigramTrainer(vocab_size=TOKENS // 2, special_tokens=special, unk_token="<unk>",
                                          show_progress=False)
    else:
        new = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(vocab_size=TOKENS, special_tokens=special, show_progress=False)
    if kind != "BPE" or byte_level:
        if like.normalizer:
            new.normalizer = like.normalizer
        new.pre_tokenizer = like.pre_tokenizer
    else:  # no word of its own is longer than a blank-separated one, as SentencePiece trains
        new.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    new.train_from_iterator(corpus, trainer)
    made = json.loads(new.to_str())
    made.update({k: file[k] for k in ("normalizer", "pre_tokenizer", "decoder")})
    if kind == "BPE" and not byte_level:
        made["added_tokens"] = []
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(made, f, ensure_ascii=False)


def ours(folder, path):
    done = subprocess.run([helper("tokenize"), folder, path, "0.4"], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise Failed(f"tokenize {folder}: {done.stderr}")
    rows = [line.split() for line in done.stdout.split("\n") if line]
    return min(float(r[1]) for r in rows), (int(rows[0][2]), int(rows[0][3]))


def theirs(tokenizer, corpus):
    start = time.perf_counter()
    encodings = tokenizer.encode_batch_fast(corpus, add_special_tokens=False)
    seconds = time.perf_counter() - start
    total = n = 0
    for e in encodings:
        n += len(e.ids)
        for i in e.ids:
            total = (total * 31 + i) & 0xFFFFFFFF
    return seconds, (total, n)


def measure(b):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    try:
        from tokenizers import Tokenizer
    except ImportError:
        Tokenizer = None
        print("  pip install tokenizers: to have it beside", file=sys.stderr)
    corpus = texts()
    cache = os.path.join(TOP, os.environ.get("BUILD", "build"), "bench-tokenizers")
    os.makedirs(cache, exist_ok=True)
    measured, size = [], 0
    for text in corpus[::2]:
        measured.append(text)
        size += len(text.encode()) + 1
        if size > TEXT_BYTES:
            break
    path = os.path.join(cache, "texts")
    with open(path, "w", encoding="utf-8", newline="") as f:
        f.write("".join(t + "\0" for t in measured))
    megabytes = size / 1e6
    for shape in SHAPES[1:6:4] + SHAPES[8:] if b.o.quick else SHAPES:
        folder = os.path.join(cache, shape) if Tokenizer else os.path.join(REFERENCE, shape)
        if Tokenizer and not os.path.exists(os.path.join(folder, "tokenizer.json")):
            train(shape, corpus, folder)
        peer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json")) if Tokenizer else None
        speeds, ratios, other = [], [], []
        for _ in range(b.repeat(5, 3)):
            seconds, ids = ours(folder, path)
            speeds.append(megabytes / seconds)
            if not peer:
                continue
            they, same = theirs(peer, measured)
            if same != ids:
                raise Failed(f"{shape}: HF tokenizers gives other ids")
            other.append(megabytes / they)
            ratios.append(they / seconds)
        setting = {"bytes": size, "tokens": peer.get_vocab_size() if peer else None, "threads": 1}
        b.add("Tokenizer", f"{shape}: encode", "MB/s", speeds, better="more", setting=setting,
              peer={"name": "HF tokenizers", "value": round(sorted(other)[len(other) // 2], 2)} if other else None)
        if ratios:
            b.add("Tokenizer", f"{shape}: times as fast as HF tokenizers", "x", ratios, better="more", limit=(">=", 5),
                  setting=setting)
