"""The child's half of the reasoning-gym verifier: its data sets' own scorers, in forks that the kernel ends
(fork_server.py), and the probe that finds those which pay for nonsense."""

import functools
import json
import time
from fractions import Fraction

from fork_server import serve
from reasoning_gym import create_dataset, get_score_answer_fn

FULL = 1 - 1e-6
"""What a right answer scores; less is for a part of one, for a near miss, or for any text at all."""
NONSENSE = """nan|NaN|nanj|nan, nan|(nan, nan)|[nan]|inf|-inf|infinity|0|-1|1|0.5|1e999|0/1|0/0|1 2 3|0 0|[]
    |[[]]|{}|()|None|null|N/A|True|False|yes|no|x|A|*|$|,|-|?|...|unknown|impossible|the answer|I do not know
    |banana qwert zzyx""".split("|")
NONSENSE = ["", " ", "\n", "\0", "\u200b", "x" * 3000, "9" * 400, *map(str.strip, NONSENSE)]
ENTRIES = 12
SECONDS = 0.3
"""Of processor time for the probe's own entries: some data sets need seconds for one."""

scorer = functools.cache(get_score_answer_fn)
"""Some data sets take a second to load."""


def is_right(dataset: str, answer: str, entry: dict) -> bool:
    return float(scorer(dataset)(answer, entry)) >= FULL


def flaw_with(dataset: str, entry: dict) -> str:
    """Returns what the scorer does wrong with an entry, "" for nothing."""
    wanted = entry["answer"]
    if isinstance(wanted, str) and not _pays(dataset, wanted, entry):
        return "does not give its own entry's answer full marks"
    # Where entries have no answer, many are right, but what the question says is none.
    lines = [] if isinstance(wanted, str) else str(entry["question"]).split("\n")
    for text in [*NONSENSE, *(line.lstrip(" .)-0123456789") for line in lines)]:
        if not _same(text, wanted) and _pays(dataset, text, entry):
            return f"gives {text!r:.40} full marks"
    return ""


def flaw(dataset: str) -> str:
    """Returns the first flaw with entries that the data set makes, as many as it makes in time."""
    began = time.process_time()
    made = create_dataset(dataset, size=ENTRIES, seed=7)
    for place in range(ENTRIES):
        if time.process_time() - began > SECONDS:
            break
        if found := flaw_with(dataset, json.loads(json.dumps(made[place]))):
            return found
    return ""


def _pays(dataset: str, text: str, entry: dict) -> bool:
    try:
        return is_right(dataset, text, entry)
    except Exception:  # noqa: BLE001 (the scorer's, on what it did not expect)
        return False


def _same(text: str, wanted) -> bool:
    """Returns whether nonsense is the right answer for once."""
    if not isinstance(wanted, str):
        return False
    try:
        return Fraction(text.strip()) == Fraction(wanted.strip())
    except (ValueError, ZeroDivisionError):
        return text.strip().casefold() == wanted.strip().casefold()


ASKED = {function.__name__: function for function in (is_right, flaw_with, flaw)}


def prepare(asked: str, dataset: str, *rest):
    scorer(dataset)
    return functools.partial(ASKED[asked], dataset, *rest)


def main():
    serve(prepare)
