"""PopQA (arXiv 2212.10511): questions about things that few know; any of an answer's names in the text."""

import json

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19.texts import table_of
from megatron_bar.evaluation.benchmarks.benchmark import Grade, JudgeModel, PublishedBenchmark, once

EXAMPLES = "".join(f"Q: {question} A: {answer}\n\n" for question, answer in table_of("popqa.json"))


def names(row: dict) -> list[str]:
    """Returns the right answer's names."""
    given = row["possible_answers"]
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        found = None
    found = (
        [name for name in found if isinstance(name, str) and name.strip()] if isinstance(found, list) else []
    )
    if not found:
        raise BarError(f"possible_answers: expected a list of names, found {given!r:.100}")
    return found


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    found = [
        name
        for name in names(row)
        if any(form in answers[0] for form in (name, name.lower(), name.capitalize()))
    ]
    return Grade(score=float(found != []), detail={"found": found[:1]})


BENCHMARK = PublishedBenchmark(
    name="popqa",
    category="knowledge",
    rows=14_267,
    columns=("question", "possible_answers"),
    ask=once(lambda row: f"{EXAMPLES}Q: {row['question']} A:"),
    grade=grade,
)
