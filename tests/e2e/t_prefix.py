#!/usr/bin/env python3
"""The prefix cache: what begins with the same tokens is not computed again, and the answers are those without it."""
from harness import *

PROMPT = "Repeat after me: " + " ".join(f"word{i % 10}" for i in range(90))
GREEDY = {"prompt": PROMPT, "temperature": 0, "ignore_eos": True, "max_tokens": 60, "logprobs": 2}
SEEDED = dict(GREEDY, temperature=1.0, seed=11, presence_penalty=0.5)
OPTIONS = ("--compute", "f32", "--max-num-batched-tokens", "64", "--max-num-seqs", "16")
OFF = "--no-enable-prefix-caching"


def ask(job, body):
    """What the client sees, and how many tokens of the prompt were cached."""
    answer = job.post("/v1/completions", body)
    equal(answer.status, 200, f"{answer}")
    usage = answer.json["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return [{k: c[k] for k in ("text", "logprobs", "finish_reason")} for c in answer.json["choices"]], cached, usage


def shared_tokens(usage):
    """All full blocks but for the last token."""
    return (usage["prompt_tokens"] - 1) // 16 * 16


def counted(job, queries, hits):
    """Leaders report a few times a second."""
    def there():
        return (job.metric("vllm:prefix_cache_queries_total"), job.metric("vllm:prefix_cache_hits_total")) == (queries, hits)
    until(there, 10 * SLOW, f"{queries} tokens looked up, {hits} found")


def without(*bodies):
    with Job(*OPTIONS, OFF, ranks=1) as job:
        answers = [ask(job, b) for b in bodies + bodies[:1]]
        equal([cached for _, cached, _ in answers], [0] * len(answers), "tokens cached without a cache")
        counted(job, 0, 0)
        return [choices for choices, _, _ in answers[:len(bodies)]]


def equal_prompts_hit_and_answer_the_same():
    wanted = without(GREEDY, SEEDED)
    with Job(*OPTIONS, ranks=1) as job:
        first, cached, usage = ask(job, GREEDY)
        equal((first, cached), (wanted[0], 0), "the first")
        for body, want in ((GREEDY, wanted[0]), (SEEDED, wanted[1])):
            equal(ask(job, body), (want, shared_tokens(usage), usage | {
                "prompt_tokens_details": {"cached_tokens": shared_tokens(usage)}}), "one more")
        counted(job, 3 * usage["prompt_tokens"], 2 * shared_tokens(usage))
        equal(job.metric("vllm:prompt_tokens_cached_total"), 2 * shared_tokens(usage))
        # a conversation goes on: its answer is in the cache, too
        ids = job.post("/tokenize", {"prompt": PROMPT}).json["tokens"]
        answer = job.post("/v1/completions", dict(GREEDY, return_token_ids=True, logprobs=None)).json["choices"][0]
        longer = ids + answer["token_ids"] + ids[-3:]
        _, cached, _ = ask(job, dict(GREEDY, prompt=longer, max_tokens=2))
        equal(cached, (len(longer) - 4) // 16 * 16, "tokens cached of prompt and answer")


def samples_share_their_prompt():
    body = dict(SEEDED, n=3)
    wanted, = without(body)
    with Job(*OPTIONS, ranks=1) as job:
        got, cached, usage = ask(job, body)
        equal((got, cached), (wanted, 0))
        counted(job, 3 * usage["prompt_tokens"], 2 * shared_tokens(usage))


def wait_new_engine(job, old):
    def there():
        now = job.engines().get(0)
        return now and now.pid != old.pid
    until(there, 10 * SLOW, "a new engine")
    until(job.healthy, 10 * SLOW, "/health is 200 again")


def kill_in_stream(job, body, after):
    """The text of a stream; the engine dies behind so many events."""
    text, old = "", job.engines()[0]
    stream = job.stream("/v1/completions", body)
    for n, event in enumerate(stream):
        check("error" not in event, event)
        text += event["choices"][0]["text"] if event["choices"] else ""
        if n == after:
            old.kill()
    check(stream.done, "the stream has an end")
    wait_new_engine(job, old)
    return text


def a_crash_changes_nothing():
    """Between two requests, and in the middle of one that began behind cached blocks."""
    (wanted,), = without(SEEDED)
    with Job(*OPTIONS, ranks=1) as job:
        _, _, usage = ask(job, SEEDED)
        old = job.engines()[0]
        old.kill()
        wait_new_engine(job, old)
        equal(ask(job, SEEDED), ([wanted], 0, usage), "after the crash nothing is cached")
        again, cached, _ = ask(job, SEEDED)
        equal((again, cached), ([wanted], shared_tokens(usage)), "and then it is")
        for after in (0, 7, 30):
            equal(kill_in_stream(job, SEEDED, after), wanted["text"], f"killed behind {after} events")


def a_crash_in_a_step_changes_nothing():
    (wanted,), = without(GREEDY)
    with Job(*OPTIONS, ranks=1, env={"MPISERVE_FAULT": "crash-step:90"}) as job:
        old = job.engines()[0]
        for _ in range(3):
            equal(ask(job, GREEDY)[0], [wanted])
        check(not old.alive(), "the engine died in between")


def many_in_a_small_cache():
    """Sequences with common beginnings preempt each other, and blocks leave the cache all the time."""
    bodies = [dict(SEEDED if i % 2 else GREEDY, prompt=PROMPT[:len(PROMPT) - 40 * (i % 4)] + f" {i // 4}", seed=i)
              for i in range(12)]
    wanted = without(*bodies)
    small = ("--max-model-len", "256", "--kv-cache-memory-bytes", str(18 * 16 * 5120))  # one whole sequence, not two
    with Job(*OPTIONS, *small, ranks=1, env={"MPISERVE_FAULT": "slow-step:1"}) as job:
        for n in range(1, 11):
            equal(together(len(bodies), lambda i: ask(job, bodies[i])[0]), wanted, "all at once")
            tokens = n * len(bodies) * GREEDY["max_tokens"]
            until(lambda: job.metric("vllm:generation_tokens_total") == tokens, 10 * SLOW, f"{tokens} tokens are reported")
            if job.metric("vllm:num_preemptions_total") > 0 and job.metric("vllm:prefix_cache_hits_total") > 0:
                return
        raise AssertionError("ten times nobody was preempted")


run(equal_prompts_hit_and_answer_the_same, samples_share_their_prompt, a_crash_changes_nothing,
    a_crash_in_a_step_changes_nothing, many_in_a_small_cache)
