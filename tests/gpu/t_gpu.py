#!/usr/bin/env python3
"""Jobs and `mpiserve bench engine` on a GPU of this machine. `make check-gpu` runs it; it needs a build with CUDA, which PROGRAM names."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../e2e"))
from harness_cuda import *  # noqa: E402


def found(*arguments):
    done = subprocess.run([PROGRAM, "devices", "--json", *arguments], capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout) if done.returncode == 0 else {"devices": [], "nccl": 0}


def free_bytes():
    return found(GPUS[0]["uuid"])["devices"][0]["free_bytes"]


def answers_are_the_references():
    with Job(*CUDA, program=PROGRAM, ranks=len(GPUS[:2])) as job:
        together(len(CHATS), lambda i: ask_chat(job, CHATS[i]))
        check(f"f32 on cuda, {GPUS[0]['uuid']}" in job.log(), job.log())


def numbers_and_draws():
    draws_of_a_cpu(PROGRAM)
    other_numbers(PROGRAM)


def vectors():
    vectors_and_scores(PROGRAM)


def adapters():
    base_and_adapters(PROGRAM)


def an_engine_that_is_killed():
    for after in (0, 80, 160):  # of 238 letters
        killed_in_a_stream(PROGRAM, after)


def groups_need(gpus):
    if len(GPUS) < gpus:
        raise Skip(f"fewer than {gpus} GPUs")
    if not NCCL:
        raise Skip("no NCCL")


def groups_of_two_gpus():
    groups_need(2)
    for tp, pp in ((2, 1), (1, 2)):
        answers_of_a_group(PROGRAM, tp, pp)
    base_and_adapters(PROGRAM, "-tp", "2", ranks=2)


def groups_of_four_gpus():
    groups_need(4)
    for tp, pp in ((4, 1), (2, 2)):
        answers_of_a_group(PROGRAM, tp, pp)


def an_engine_of_a_group_that_is_killed():
    groups_need(2)
    for options in (("-tp", "2"), ("-pp", "2")):
        killed_in_a_stream(PROGRAM, 80, *options, ranks=2)


def nothing_is_left_on_the_gpu():
    """Killed with all of its job: the driver gives back what it had. (Another program on this GPU makes this fail.)"""
    before = free_bytes()
    with Job(*CUDA, program=PROGRAM, ranks=1) as job:
        check(free_bytes() < before, "an engine uses the GPU")
        job.engines()[0].kill()
        until(job.healthy, START_LIMIT, "another engine serves")
        job.signal(signal.SIGTERM)
        equal(job.wait(), 0)
    until(lambda: before - free_bytes() < 64 << 20, 30, f"of {before} bytes that were free, {free_bytes()} are")


COMMON = {"vocab_size": 65536, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu"}
SHAPES = {  # some layers of models of these kinds, with random weights
    "8B dense": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288,
                 "num_hidden_layers": 12, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    "experts": {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
                "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
                "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True},
    "latents": {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944,
                "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 16, "kv_lora_rank": 512, "q_lora_rank": None,
                "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "moe_intermediate_size": 1408,
                "first_k_dense_replace": 1, "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2,
                "topk_method": "greedy", "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0,
                "scoring_func": "softmax"}}


def figures():
    """No figure is judged."""
    def bench(*arguments):
        done = subprocess.run([PROGRAM, "bench", "engine", *arguments, "--engine", "cuda"], capture_output=True, text=True, timeout=200)
        equal(done.returncode, 0, done.stderr)
        print("".join(f"# {line}\n" for line in done.stdout.splitlines()), end="")
    bench(DEMO)
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "config.json"), "w") as f:
                json.dump({**COMMON, **shape}, f)
            print(f"# {name}, {shape['num_hidden_layers']} layers")
            bench(folder, "--load-format", "dummy", "--max-num-batched-tokens", "2048")


FOUND = found()
GPUS, NCCL = FOUND["devices"], FOUND["nccl"]
if not GPUS:
    print("1..0 # SKIP no GPU")
    sys.exit(0)
run(answers_are_the_references, numbers_and_draws, vectors, adapters, an_engine_that_is_killed, groups_of_two_gpus, groups_of_four_gpus,
    an_engine_of_a_group_that_is_killed, nothing_is_left_on_the_gpu, figures)
