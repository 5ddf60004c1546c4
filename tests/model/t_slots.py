"""The model of the slots, checked by SPIN: within these bounds every property holds, and each guard is needed.

A bound is that of slots.pml: requests an ingress (REQS), tries again (RETRIES), faults (FAULTS). SOAK=1 (`make soak`): a fault
among more requests, three flights; and two faults, a fault with three flights, by bitstate search, which may miss states and
ends after SEARCH_MINUTES each."""
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../e2e"))
from harness import check, run  # noqa: E402

SOAK = os.environ.get("SOAK") == "1"
CC = os.environ.get("CC", "gcc").split()[0]
LIMIT_S, SEARCH_MINUTES = 280, 4
WORKERS = min(2, os.cpu_count() or 1)

FAULT = "FAULTS=1 REQS=1 ONE_LEAVES"
REUSE = "FAULTS=0 REQS=2 RETRIES=0"
ONE_INGRESS = "FAULTS=0 REQS=1 ONE_INGRESS"  # two flights of the same owner
# The guard that is taken away, the bounds, and the property that must break: the text of the assertion.
OWNER, TWICE, EPOCH = r"owner\[.*==0|owner\[.*==\(r\+1\)", r"ran\[r\]", r"w>>6\)==epoch"
BOOK, DRAINED, RELEASED = r"window\[s\]>>4|at\[s\]==0", r"draining|drained|>>4\)&3\)==0", r"owner\[slot\[_pid\]\]==\(|window\[slot"
FOUND_FREE, ROW = r"owner\[0\]!=", r"w&15"
MUTATIONS = [
    ("PLAIN_STORE", "reserve stores where it must compare", REUSE + " NO_DRAIN", OWNER),
    ("NO_EPOCH_CHECK", "the epoch is not compared", FAULT, EPOCH),
    ("NO_SEQ_CHECK", "the seq is not compared", REUSE, OWNER),
    ("NO_SEQ_RISE", "the seq does not rise", REUSE, OWNER),
    ("SEQ_MAX=1", "the seq comes back while a message is under way", "FAULTS=1 REQS=2 RETRIES=0", OWNER + "|" + TWICE),
    ("NO_STARTED_CHECK", "what runs is run again", FAULT, TWICE),
    ("REFUSES_DUPLICATES", "a dispatch delivered twice is refused, not ignored", FAULT, TWICE + "|" + FOUND_FREE),
    ("NO_RELEASE_CHECK", "release frees whatever is there", REUSE, RELEASED),
    ("RELEASES_BY_OWNER", "release frees whatever its ingress has there", ONE_INGRESS, RELEASED),
    ("FLAG_LATE", "the dispatched flag is set after the message", REUSE, RELEASED + "|" + BOOK),
    ("NO_REAP", "no lease ends", FAULT, BOOK),
    ("REAPS_RUNNING", "the lease of what runs ends too", REUSE, OWNER + "|" + FOUND_FREE + "|" + BOOK),
    ("CLOSES_BY_STORE", "a free word is closed by a store", REUSE, OWNER),
    ("DRAIN_FORGETS_RESERVED", "a drain looks at running slots only", REUSE, DRAINED),
    ("NO_REFUSAL", "a stale dispatch gets no answer", REUSE, BOOK),
    ("NO_SENDER_CHECK", "an end is taken from any leader", FAULT, FOUND_FREE),
    ("KEEPS_EPOCH", "a rebuilt window keeps its epoch", FAULT, OWNER + "|" + TWICE + "|" + RELEASED),
    ("FORGETS_RUNNING", "a rebuilt window lacks what runs", FAULT, OWNER + "|" + BOOK + "|" + FOUND_FREE),
    ("KEEPS_TOKENS", "the leader's own tokens keep the old epoch", FAULT, FOUND_FREE + "|" + BOOK),
    ("NO_GENERATION_CHECK", "a result of an old engine counts", FAULT, ROW),
    ("NO_ROW_CHECK", "a result of an earlier request in the row counts", REUSE, ROW),
    ("ENGINE_FORGETS", "a restarted engine does not resume", FAULT, BOOK),
]


class Verdict:
    def __init__(self, text):
        self.text = text
        self.error = (re.findall(r"^pan:\d*: *(.*) \(at depth", text, re.M) or [""])[0]

    def number(self, pattern):
        found = re.search(pattern, self.text, re.M)
        check(found, "pan says:\n" + self.text[-1500:])
        return float(found.group(1))

    def line(self):
        states, depth = self.number(r"^ *([0-9.e+]+) states, stored"), self.number(r"depth reached (\d+)")
        seconds, memory = self.number(r"elapsed time ([0-9.e+-]+)"), self.number(r"^ *([0-9.]+).total actual memory")
        return f"{states:.0f} states, depth {depth:.0f}, {seconds:.1f} s, {memory:.0f} MiB"


def pan(bounds, defines=(), build=("-DSAFETY", "-O2"), arguments=("-w25",)):
    """What the verifier says of the model with these macros."""
    with tempfile.TemporaryDirectory() as folder:
        macros = [f"-D{d}" for d in (*bounds.split(), *defines)]

        def tool(*command):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
            check(done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}")

        tool("spin", *macros, "-a", os.path.join(HERE, "slots.pml"))
        tool(CC, "-w", "-DMEMLIM=3500", *build, "-o", "pan", "pan.c")
        done = subprocess.run(["./pan", "-m10000", *arguments], cwd=folder, capture_output=True, text=True,
                              timeout=LIMIT_S)
        return Verdict(done.stdout + done.stderr)


def holds(bounds, **how):
    verdict = pan(bounds, **how)
    check(not verdict.error, f"{bounds}: {verdict.error}")
    check("errors: 0" in verdict.text and "not completed" not in verdict.text and "too small" not in verdict.text,
          f"{bounds}:\n{verdict.text[-1500:]}")
    print(f"# {bounds}: {verdict.line()}", flush=True)
    return verdict


def every_property_holds_whatever_fails():
    verdict = holds(FAULT)
    dead = [line for line in re.findall(r"^\t(\S+:\d+, state \d+, .*)", verdict.text, re.M) if '"-end-"' not in line]
    check(not dead, "steps of the model that nothing reaches: " + "; ".join(dead))


def every_property_holds_however_slots_are_used_again():
    holds(REUSE)
    holds(ONE_INGRESS)


def every_run_ends():
    """No label says progress, so any cycle in the graph of states would be one without."""
    holds("FAULTS=0 REQS=1", build=("-DNP", "-DNOFAIR", "-O2"), arguments=("-l", "-w23"))


def broken(mutation):
    name, what, bounds, property_text = mutation
    verdict = pan(bounds, [name], build=("-DSAFETY", "-O0"), arguments=("-w22",))
    good = re.search(property_text, verdict.error)
    return f"# {name} ({what}): {verdict.error or 'nothing broke'}", bool(good)


def each_guard_is_needed():
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(broken, MUTATIONS))
    for line, _ in results:
        print(line, flush=True)
    check(all(good for _, good in results), "these broke nothing, or something else: " +
          ", ".join(m[0] for m, (_, good) in zip(MUTATIONS, results) if not good))


def bitstate(bounds):
    verdict = pan(bounds, build=("-DSAFETY", "-DBITSTATE", "-O2"), arguments=("-w33", "-k3", f"-Q{SEARCH_MINUTES}"))
    check(not verdict.error and "errors: 0" in verdict.text, f"{bounds}: {verdict.error or verdict.text[-1500:]}")
    part = "ended by the time limit" if "Time limit" in verdict.text else "to its end"
    print(f"# {bounds}: {part}: {verdict.line()}", flush=True)


def two_faults():
    bitstate("FAULTS=2 REQS=1")


def a_fault_and_slots_used_again():
    holds("FAULTS=1 REQS=2 REQS_OF_LAST=1 RETRIES=0", arguments=("-w26",))


def every_run_with_a_fault_ends():
    holds("FAULTS=1 REQS=1 RETRIES=0", build=("-DNP", "-DNOFAIR", "-O2"), arguments=("-l", "-w25"))


def three_flights_of_two_ingresses():
    holds("FLIGHTS=3 FAULTS=0 REQS=1 RETRIES=0")


def three_flights_and_a_fault():
    bitstate("FLIGHTS=3 FAULTS=1 REQS=1 RETRIES=0")


for tool in ("spin", CC):
    if not shutil.which(tool):
        print(f"1..0 # SKIP {tool} is not installed")
        sys.exit(0)
if SOAK:
    run(every_run_with_a_fault_ends, a_fault_and_slots_used_again, three_flights_of_two_ingresses, two_faults,
        three_flights_and_a_fault)
run(every_property_holds_whatever_fails, every_property_holds_however_slots_are_used_again, every_run_ends, each_guard_is_needed)
