#!/usr/bin/env python3
"""An engine dies in the middle: the answer is the one that it would have been."""
from harness import *

PROMPT = "Repeat after me: " + " ".join(f"word{i % 10}" for i in range(90))
GREEDY = {"prompt": PROMPT, "temperature": 0, "ignore_eos": True, "max_tokens": 300}
SEEDED = dict(GREEDY, temperature=1.0, seed=11, presence_penalty=0.5)
OPTIONS = ("--compute", "f32", "--max-num-batched-tokens", "64", "--max-num-seqs", "16")


def text_of(answer, body=GREEDY):
    equal(answer.status, 200, f"{answer}")
    equal(answer.json["usage"]["completion_tokens"], body["max_tokens"])
    return answer.json["choices"][0]["text"]


def wait_new_engines(job, old):
    def all_new():
        now = job.engines()
        return len(now) == len(old) and not {p.pid for p in now.values()} & {p.pid for p in old.values()}
    until(all_new, 10 * SLOW, "engines are started again")
    until(job.healthy, 10 * SLOW, "/health is 200 again")


def killed_in_decode(job, body, wanted, after_tokens):
    """The stream is read up to some tokens, then every engine dies."""
    old, text, killed = job.engines(), "", False
    stream = job.stream("/v1/completions", body)
    for n, event in enumerate(stream):
        check("error" not in event, event)
        text += event["choices"][0]["text"] if event["choices"] else ""
        if n >= after_tokens and not killed:
            killed = True
            for p in old.values():
                p.kill()
    check(killed and stream.done, "the stream was shorter than expected")
    equal(text, wanted, f"text after a kill behind {after_tokens} chunks")
    wait_new_engines(job, old)


def killed_in_prefill(job, body, wanted, delay):
    old = job.engines()
    results = together(2, lambda i: job.post("/v1/completions", body) if i == 0 else
                       (time.sleep(delay), [p.kill() for p in old.values()]))
    equal(text_of(results[0], body), wanted, f"text after a kill {delay * 1000:.0f} ms behind the request")
    wait_new_engines(job, old)


def decode(body):
    with Job(*OPTIONS, ranks=1) as job:
        wanted = text_of(job.post("/v1/completions", body), body)
        equal(text_of(job.post("/v1/completions", body), body), wanted, "two runs without a crash")
        for after in (0, 5, 60):
            killed_in_decode(job, body, wanted, after)


def prefill(body):
    """Slow steps, and a prompt that is computed each time, so that there is time to hit each part of it."""
    body = dict(body, max_tokens=20)
    with Job(*OPTIONS, "--no-enable-prefix-caching", ranks=1, env={"MPISERVE_FAULT": "slow-step:20"}) as job:
        wanted = text_of(job.post("/v1/completions", body), body)
        started = time.monotonic()
        equal(job.post("/v1/completions", dict(body, max_tokens=1)).status, 200)
        whole = time.monotonic() - started
        for part in (0.1, 0.5, 0.9):
            killed_in_prefill(job, body, wanted, whole * part)


def greedy_in_decode():
    decode(GREEDY)


def seeded_in_decode():
    decode(SEEDED)


def greedy_in_prefill():
    prefill(GREEDY)


def seeded_in_prefill():
    prefill(SEEDED)


def token_of(job, text):
    return job.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json["tokens"][0]


def a_request_that_kills_engines_fails_alone():
    with Job(*OPTIONS, ranks=1) as job:
        bad = token_of(job, "~")
        wanted = text_of(job.post("/v1/completions", GREEDY))
    with Job(*OPTIONS, ranks=1, env={"MPISERVE_FAULT": f"crash-token:{bad}"}) as job:
        def work(i):
            if i == 0:
                return text_of(job.post("/v1/completions", GREEDY))
            time.sleep(0.05)
            return job.post("/v1/completions", {"prompt": [5, bad, 6], "max_tokens": 5, "ignore_eos": True})
        text, answer = together(2, work)
        equal(text, wanted, "the other request")
        equal(answer.status, 500, f"{answer}")
        check(answer.json["error"]["message"], answer)
        equal(text_of(job.post("/v1/completions", GREEDY)), wanted, "the next request")


def a_request_with_non_finite_logits_fails_alone():
    with Job(*OPTIONS, ranks=1) as job:
        bad = token_of(job, "~")
        wanted = text_of(job.post("/v1/completions", GREEDY))
    with Job(*OPTIONS, ranks=1, env={"MPISERVE_FAULT": f"nan-token:{bad}"}) as job:
        old = job.engines()
        equal(job.post("/v1/completions", {"prompt": [5, bad], "max_tokens": 5}).status, 500)
        equal(text_of(job.post("/v1/completions", GREEDY)), wanted)
        check(old[0].alive(), "the engine lives on")


def eight_at_once_on_two_replicas():
    bodies = [dict(SEEDED, seed=100 + i) if i % 2 else dict(GREEDY, prompt=f"{i} {PROMPT}") for i in range(8)]
    with Job(*OPTIONS, ranks=2) as job:
        wanted = [text_of(job.post("/v1/completions", b)) for b in bodies]
        old = job.engines()

        def work(i):
            if i == 8:
                time.sleep(0.15)
                return [p.kill() for p in old.values()]
            return text_of(job.post("/v1/completions", bodies[i]))
        equal(together(9, work)[:8], wanted, "texts")
        wait_new_engines(job, old)


def one_engine_of_two_dies_and_the_other_serves():
    with Job(*OPTIONS, ranks=2) as job:
        old = job.engines()
        old[1].kill()
        for _ in range(10):
            text_of(job.post("/v1/completions", GREEDY))
        until(lambda: job.engines().get(1) and job.engines()[1].pid != old[1].pid, 10 * SLOW, "engine 1 is back")
        check(old[0].alive(), "engine 0 was not touched")


def the_choices_of_a_request_have_seeds_of_their_own():
    """Choice i draws with seed + i, whatever else there is: alone, beside others, through a crash."""
    body = dict(SEEDED, logprobs=2, logit_bias={"5": 1.5}, repetition_penalty=1.1, max_tokens=120)

    def parts(choice):
        return choice["text"], choice["logprobs"], choice["finish_reason"]
    with Job(*OPTIONS, ranks=1) as job:
        alone = [parts(job.post("/v1/completions", dict(body, seed=11 + i)).json["choices"][0]) for i in range(3)]
        check(len({text for text, _, _ in alone}) == 3, alone)
        for delay in (None, 0.1, 0.3):
            old = job.engines()

            def work(i):
                if i == 0:
                    return job.post("/v1/completions", dict(body, n=3))
                time.sleep(delay)
                return [p.kill() for p in old.values()]
            answer = together(1 if delay is None else 2, work)[0]
            equal([parts(c) for c in answer.json["choices"]], alone, f"n = 3, killed after {delay} s")
            if delay:
                wait_new_engines(job, old)


def a_hanging_engine_is_replaced():
    with Job(*OPTIONS, "--step-timeout", "1", ranks=1) as job:
        wanted, old = text_of(job.post("/v1/completions", GREEDY)), job.engines()[0]
        old.kill(signal.SIGSTOP)
        equal(text_of(job.post("/v1/completions", GREEDY)), wanted)
        check(not old.alive(), "the hanging engine was killed")


run(greedy_in_decode, seeded_in_decode, greedy_in_prefill, seeded_in_prefill, eight_at_once_on_two_replicas,
    one_engine_of_two_dies_and_the_other_serves, the_choices_of_a_request_have_seeds_of_their_own,
    a_hanging_engine_is_replaced,
    a_request_that_kills_engines_fails_alone, a_request_with_non_finite_logits_fails_alone)
