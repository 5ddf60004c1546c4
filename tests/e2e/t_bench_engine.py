#!/usr/bin/env python3
"""mpiserve bench engine: an engine alone, on this CPU and over the emulation of CUDA. No figure is judged but against others of its run."""
from harness import *

SIM = os.path.join(BUILD, "sim/mpiserve")
MIXTRAL, LLAMA = (os.path.join(TOP, "tests/reference/models", name) for name in ("mixtral", "llama_tied_llama3"))
ADAPTER = os.path.join(TOP, "tests/reference/adapters/llama_all")
FEW = ("--num-iters", "2", "--num-iters-warmup", "0")


def bench(*arguments, program=PROGRAM):
    """(exit code, stdout, stderr)"""
    done = subprocess.run([program, "bench", "engine", *arguments], capture_output=True, text=True, timeout=120 * SLOW)
    return done.returncode, done.stdout, done.stderr


def measured(*arguments, program=PROGRAM):
    code, out, err = bench(*FEW, "--json", *arguments, program=program)
    equal((code, err), (0, ""), f"{arguments}")
    return json.loads(out)


def near(got, wanted, what, share=1e-3):
    check(abs(got - wanted) <= share * abs(wanted), f"{what}: {got}, not {wanted}")


def adds_up(found):
    """Every case in itself, and shares of the limits."""
    for case in found["prefill"] + found["decode"]:
        seconds = sorted(case["runs"])
        equal(len(seconds), 2)
        near(case["seconds"], sum(seconds) / 2, "the median")
        near(case["tokens_per_s"], case["batch_size"] * case["tokens"] / case["seconds"], "tokens a second")
        near(case["of_memory"], case["bytes_per_s"] / found["limits"]["memory_bytes_per_s"], "of memory")
        near(case["of_products"], case["flops_per_s"] / found["limits"]["product_flops_per_s"], "of products")


def the_demo_model():
    found = measured("--input-len", "5,100", "--batch-size", "1,3", "--context-len", "50", "--output-len=4", "--compute", "f32")
    equal([found[k] for k in ("engine", "device", "compute", "load_format")], ["cpu", None, "f32", "auto"])
    equal([(c["batch_size"], c["context_len"], c["tokens"]) for c in found["prefill"]], [(1, 0, 5), (1, 0, 100)])
    equal([(c["batch_size"], c["context_len"], c["tokens"]) for c in found["decode"]], [(1, 48, 4), (3, 48, 4)], "whole blocks")
    adds_up(found)
    one, three = (c["bytes_per_s"] * c["seconds"] / 4 for c in found["decode"])
    config = json.load(open(os.path.join(TOP, "jobs/demo-model/config.json")))
    kv = 2 * 4 * config["num_key_value_heads"] * config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    near(three - one, 2 * kv * config["num_hidden_layers"] * (48 + 2.5), "K and V of two more sequences, in the middle of four steps")
    near(one, found["weights_bytes"] + kv * config["num_hidden_layers"] * 50.5, "weights once, and K and V", 0.01)


def what_fits_without_being_asked():
    found = measured()
    equal([c["tokens"] for c in found["prefill"]], [128, 512], "2048 are more than the demo model reads")
    equal([(c["batch_size"], c["context_len"], c["tokens"]) for c in found["decode"]], [(b, 512, 32) for b in (1, 8, 32)])


def only_a_config():
    """Random weights of experts: what a token meets, and what a batch reads."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(os.path.join(MIXTRAL, "config.json"), folder)
        found = measured(folder, "--load-format", "dummy", "--input-len", "64", "--batch-size", "1,2", "--output-len", "2",
                         "--context-len", "0", "--threads", "1", "--compute", "f32")
        equal((found["load_format"], found["threads"]), ("dummy", 1))
        adds_up(found)
        one, two = (c["flops_per_s"] * c["seconds"] for c in found["decode"])
        near(two, 2 * one, "twice the tokens, twice the products")
        one, two = (c["bytes_per_s"] * c["seconds"] / 2 for c in found["decode"])
        with open(os.path.join(folder, "config.json")) as f:
            c = json.load(f)
        hidden, head = c["hidden_size"], c["hidden_size"] // c["num_attention_heads"]
        expert, kv = 2 * 3 * hidden * c["intermediate_size"], 2 * 4 * c["num_key_value_heads"] * head
        met = [8 * (1 - (1 - 2 / 8) ** tokens) for tokens in (1, 2)]  # of 8 experts, by tokens that choose 2 each
        near(two - one, c["num_hidden_layers"] * ((met[1] - met[0]) * expert + 1.5 * kv), "further experts, and K and V")
        code, _, err = bench(folder)
        equal(code, 1)
        check("model.safetensors" in err, err)


def text_for_people():
    code, out, err = bench(*FEW, "--input-len", "16", "--batch-size", "2", "--context-len", "16", "--output-len", "2")
    equal((code, err), (0, ""))
    rows = [line.split()[:3] for line in out.splitlines() if line.split() and line.split()[0].isdigit()]
    equal(rows, [["1", "0", "16"], ["2", "16", "2"]])
    check("limits, measured: memory " in out, out)


def on_a_gpu():
    """The numbers of the emulation say nothing; that there are some does."""
    found = measured("--engine", "cuda", "--compute", "bf16", "--input-len", "20", "--batch-size", "1,2", "--context-len", "32",
                     "--output-len", "2", program=SIM)
    equal((found["engine"], found["isa"], found["device"]), ("cuda", "cuda", "cudasim"))
    adds_up(found)


def wrong_usage():
    for arguments, says in ((("--input-len", "0"), "--input-len: `0` is not a list of at most 16 whole numbers from 1 to"),
                            (("--input-len", "12,"), "--input-len: `12,` is not a list"), (("--batch-size", "1,x"), "--batch-size: `1,x` is not"),
                            (("--num-iters=1,2",), "--num-iters: `1,2` is not 1 whole number from 1 to 1000"), (("--batch-size",), "--batch-size: `` is not"),
                            (("--max-num-batched", "4"), "max-num-batched"), (("--compute", "f8"), "--compute")):
        code, out, err = bench(*arguments)
        equal((code, out), (2, ""), f"{arguments}")
        check(says in err, f"{says} in {err}")
    for arguments, says in ((("--input-len", "100000"), "--input-len: 100000 tokens are more than the model's "),
                            (("--context-len", "100000"), "--context-len: 100000 tokens and those of --output-len are more than the model's "),
                            (("--engine", "null"), "--engine: null computes nothing"),
                            ((LLAMA, "--lora-modules", f"a={ADAPTER}"), "--lora-modules: the model is measured without adapters"),
                            (("/nowhere",), "/nowhere"),
                            (("--batch-size", "4096", "--output-len", "1", "--kv-cache-dtype", "int9"), "int9")):
        code, out, err = bench(*arguments)
        check(code in (1, 2) and not out, f"{arguments}: {code} {out}")
        check(says in err, f"{says} in {err}")
    code, out, _ = bench("--help")
    check(code == 0 and "--context-len" in out, out)
    done = subprocess.run([PROGRAM, "bench", "motor"], capture_output=True, text=True, timeout=20 * SLOW)
    equal(done.returncode, 2)
    check("there are `mpiserve bench route` and `mpiserve bench engine`, not motor" in done.stderr, done.stderr)


run(the_demo_model, what_fits_without_being_asked, only_a_config, text_for_people, on_a_gpu, wrong_usage)
