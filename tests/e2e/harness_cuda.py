"""What jobs over GPUs must do, whatever the GPU: for t_cuda.py, over the emulation, and for tests/gpu/t_gpu.py."""
from harness import *

CHATS = [c for c in expected_chats() if c["min_gap"] >= 0.1 and len(c["ids"]) < 30][:6]
LIMITS = ("--compute", "f32", "--max-model-len", "512", "--max-num-seqs", "8", "--max-num-batched-tokens", "256")
CUDA = ("--engine", "cuda", *LIMITS)
SEEDED = {"prompt": "Once upon a time", "max_tokens": 60, "seed": 7, "temperature": 0.9, "top_p": 0.95, "top_k": 40,
          "presence_penalty": 0.5, "ignore_eos": True, "logprobs": 3}


def ask(job, chat):
    """The reference's greedy tokens."""
    body = {"messages": chat["messages"], "temperature": 0, "max_completion_tokens": len(chat["ids"]) + 8, "return_token_ids": True}
    answer = job.post("/v1/chat/completions", body)
    equal(answer.status, 200, f"{answer}")
    equal(answer.json["choices"][0]["token_ids"], chat["ids"], chat["messages"][-1]["content"][:60])


def draws_of_a_cpu(program):
    def completion(*options, program):
        with Job(*options, program=program, ranks=1) as job:
            answer = job.post("/v1/completions", SEEDED)
            equal(answer.status, 200, f"{answer}")
            return answer.json["choices"][0]
    cpu, cuda = completion(*LIMITS, program=PROGRAM), completion(*CUDA, program=program)
    equal(cuda["text"], cpu["text"])
    for got, wanted in zip(cuda["logprobs"]["top_logprobs"], cpu["logprobs"]["top_logprobs"]):
        equal(list(got), list(wanted), "the best tokens")
        check(all(abs(got[t] - wanted[t]) < 1e-3 for t in got), f"{got} {wanted}")


def other_numbers(program):
    for compute in ("auto", "f16"):
        with Job("--engine", "cuda", "--compute", compute, *LIMITS[2:], program=program, ranks=1) as job:
            check(f"{'bf16' if compute == 'auto' else compute} on cuda" in job.log(), job.log())
            answer = job.chat("What is 17 + 25?")
            check("42" in answer["choices"][0]["message"]["content"], answer)


def killed_in_a_stream(program, after):
    """Text and log of a job whose engine is killed behind so many chunks: the text of one that is not."""
    with Job(*CUDA, program=program, ranks=1) as job:
        wanted = job.post("/v1/completions", SEEDED).json["choices"][0]["text"]
        old, text = job.engines()[0], ""
        stream = job.stream("/v1/completions", SEEDED)
        for n, event in enumerate(stream):
            check("error" not in event, event)
            text += event["choices"][0]["text"] if event["choices"] else ""
            if n == after:
                old.kill()
        check(stream.done and not old.alive(), "the stream was shorter than expected")
        equal(text, wanted, f"text after a kill behind {after} chunks")
        equal(job.post("/v1/completions", SEEDED).json["choices"][0]["text"], wanted, "with the new engine")
