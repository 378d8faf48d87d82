r"""MATH (Hendrycks et al. 2021, arXiv 2103.03874): problems of competitions, asked without examples.

Published is exact_match_flex: the last box, else what stands between the last two $, else the whole answer,
compared as minerva_math and as hendrycks_math do. The same places are looked at here, and compared by the
verifier of mathematics; without a box, a text with another mark ("The answer is 5") is read at that mark.

The truth is the last box of the solution. Boxes beside each other ("1" and "-2") are one list, of which the
published run asks the last alone; boxes with the same number or formula twice are that one.
"""

import re

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.benchmark import (
    Grade,
    JudgeModel,
    PublishedBenchmark,
    mean_by,
    once,
)
from megatron_bar.verifiers import check_task, extract, verify
from megatron_bar.verifiers.math import final_answer

BOX = re.compile(r"\\boxed\s*\{")
THOUSANDS = re.compile(r",\s*\\!\s*")
"""How a few solutions write the comma of thousands."""


def prompt(row: dict) -> str:
    return f"{row['problem'].strip()}\n\nPresent the answer in LaTex format: \\boxed{{Your answer}}"


def truth(row: dict) -> str:
    """Returns the final answer of a row's solution."""
    solution = THOUSANDS.sub("", row["solution"])
    return _boxed(solution, row) or final_answer(solution)


def right(row: dict, answer: str) -> bool:
    """Returns whether ``answer`` has the truth of ``row`` where published runs look for it."""
    wanted, answer = truth(row), THOUSANDS.sub("", answer)
    boxed = _boxed(answer, row)
    if boxed is not None:
        return _same(boxed, wanted, row)
    if _verified(answer, wanted, row):
        return True
    if extract.marked(answer) is not None:
        return False
    places = [place for place, character in enumerate(answer) if character == "$"]
    found = answer[places[-2] + 1 : places[-1]] if len(places) > 1 else answer
    return _same(found.strip(), wanted, row)


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    return Grade(score=float(right(row, answers[0])))


def _boxed(text: str, row: dict) -> str | None:
    """Returns what the last box holds, with those beside it; None without a box that is closed."""
    text = text[-extract.TAIL :].replace("\\fbox", "\\boxed")
    ends = [box.end() + len(extract.until_brace(text[box.end() :])) for box in BOX.finditer(text)]
    ends = [end for end in ends if text[end : end + 1] == "}"]
    if not ends:
        return None
    found = final_answer(text[: ends[-1] + 1])
    parts = found.split(", ")
    if len(ends) >= len(parts) > 1 and all(_same(part, parts[-1], row) for part in parts):
        return parts[-1]
    return found


def _same(text: str, wanted: str, row: dict) -> bool:
    return bool(text) and _verified(f"\\boxed{{{text}}}", wanted, row)


def _verified(answer: str, wanted: str, row: dict) -> bool:
    """Returns the verifier's word; what it cannot decide (a sum, say) must be given as it is written."""
    try:
        check_task("math", wanted, row["problem"])
    except BarError:
        return final_answer(answer) == wanted
    return verify("math", answer, wanted) == 1.0


BENCHMARK = PublishedBenchmark(
    name="math",
    category="math",
    rows=5000,
    columns=("problem", "type", "solution"),
    ask=once(prompt),
    grade=grade,
    combine=mean_by("type"),
    differs="compared by the verifier of mathematics instead of by minerva_math and hendrycks_math",
)
