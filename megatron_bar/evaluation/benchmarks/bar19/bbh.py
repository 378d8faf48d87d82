"""BIG-Bench Hard (arXiv 2210.09261): 27 tasks, each with a pattern of its answers; the mean of all items.

oe-eval's five rules and its last one: the first that finds the task's pattern decides, by its last place.
"""

import re
import string
from collections import deque
from collections.abc import Iterator

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19.texts import table_of
from megatron_bar.evaluation.benchmarks.benchmark import (
    Decoding,
    Grade,
    JudgeModel,
    PublishedBenchmark,
    once,
)

TASKS = table_of("bbh.json")
RULES = (
    (re.compile("so the answer is ", re.IGNORECASE), False),
    (re.compile("answer is ", re.IGNORECASE), False),
    (re.compile("answer:", re.IGNORECASE), True),
    (re.compile(r"answer\b", re.IGNORECASE), True),
)
"""What stands before an answer, and whether other text of its line may stand between."""
PUNCTUATED = ("dyck_languages", "multistep_arithmetic_two")
"""Tasks whose answers differ in punctuation; oe-eval drops the sign of a number."""


def task(row: dict) -> dict:
    if (found := TASKS.get(row["task"])) is None:
        raise BarError(f"task: expected one of {', '.join(TASKS)}, found {row['task']!r:.100}")
    return found


def behind(before: re.Pattern, gap: bool, pattern: re.Pattern, text: str) -> Iterator[re.Match]:
    """Yields what matches ``pattern`` behind ``before`` in one line; no place is read twice."""
    place, end = 0, -1
    while start := before.search(text, place):
        if start.end() > end:
            end = text.find("\n", start.end())
            end = len(text) if end < 0 else end
        match = (pattern.search if gap else pattern.match)(text, start.end(), end)
        place = match.end() if match else end if gap else start.end()
        if match:
            yield match


def extract(text: str, pattern: str) -> str | None:
    """Returns the answer that a text gives, None if there is none."""
    exact, loose = re.compile(pattern), re.compile(pattern, re.IGNORECASE)
    rules = (behind(before, gap, loose, text) for before, gap in RULES)
    for found in (*rules, exact.finditer(text), loose.finditer(text)):
        if last := deque(found, maxlen=1):
            return last[0][0].strip()
    return None


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    found = extract(answers[0], task(row)["answer"])
    dropped = "" if row["task"] in PUNCTUATED else string.punctuation
    forms = [text.lower().translate(str.maketrans("", "", dropped)) for text in (found or "", row["target"])]
    right = forms[0] == forms[1] != ""
    return Grade(score=float(right), detail={"answer": found and found[:200]})


BENCHMARK = PublishedBenchmark(
    name="bbh",
    category="reasoning",
    rows=6_511,
    columns=("task", "input", "target"),
    ask=once(lambda row: f"{task(row)['description']}Q: {row['input']}\nA: Let's think step by step."),
    grade=grade,
    decoding=Decoding(temperature=0.7, top_p=1.0),
    differs="the sign of a number counts",
)
