r"""MATH (Hendrycks et al. 2021, arXiv 2103.03874): problems of competitions, asked without examples.

An answer is right where the verifier of mathematics says so. Published is exact_match_flex: the last box, else
what stands between the last two $, else the whole answer, compared as minerva_math and as hendrycks_math do.
The same places are looked at here; a text with another mark ("The answer is 5") is read at that mark.

The truth is the last box of the solution; boxes beside each other ("1" and "-2") are one list, of which the
published run asks the last alone. Boxes that are the same number or formula twice are that one.
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

BOX = re.compile(r"\\(?:boxed|fbox)\b")
THOUSANDS = re.compile(r",\s*\\!\s*")
"""How a few solutions write the comma of thousands."""


def prompt(row: dict) -> str:
    return f"{row['problem'].strip()}\n\nPresent the answer in LaTex format: \\boxed{{Your answer}}"


def truth(row: dict) -> str:
    """Returns the final answer of a row's solution."""
    solution = THOUSANDS.sub("", row["solution"]).replace("\\fbox", "\\boxed")
    boxes = list(BOX.finditer(solution))
    if boxes and solution[boxes[-1].end() :].startswith("{"):
        start = boxes[-1].end() + 1
        solution = solution[: start + len(extract.until_brace(solution[start:])) + 1]
    answer = final_answer(solution)
    parts = answer.split(", ")
    if len(boxes) >= len(parts) > 1 and all(_same(part, parts[-1], row) for part in parts):
        return parts[-1]
    return answer


def right(row: dict, answer: str) -> bool:
    """Returns whether ``answer`` ends in the truth of ``row``, or has it where published runs look for it."""
    wanted = truth(row)
    if _verified(answer, wanted, row):
        return True
    if extract.marked(answer) is not None:
        return False
    places = [place for place, character in enumerate(answer) if character == "$"]
    found = answer[places[-2] + 1 : places[-1]] if len(places) > 1 else answer
    return _same(found.strip(), wanted, row)


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    return Grade(score=float(right(row, answers[0])))


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
