"""BFCL v3 (Patil et al. 2025): calls of functions, in single questions and in conversations."""

from megatron_bar.evaluation.benchmarks.bar19.bfcl import calls, prompt, turns
from megatron_bar.evaluation.benchmarks.bar19.bfcl.categories import CATEGORIES, of, overall
from megatron_bar.evaluation.benchmarks.benchmark import (
    Decoding,
    Grade,
    JudgeModel,
    Messages,
    PublishedBenchmark,
)
from megatron_bar.verifiers import possible_calls


def ask(row: dict, answers: list[str]) -> Messages | None:
    if of(row).kind == "turns":
        return turns.ask(row, answers)
    return None if answers else prompt.beginning(row)


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    category = of(row)
    if category.kind == "turns":
        return turns.grade(row, answers)
    if category.kind == "none":
        return Grade(score=float(not calls.is_attempt(answers[0])))
    made = possible_calls.read(answers[0])
    if category.kind == "any":
        return Grade(score=float(bool(made)))
    right = possible_calls.right(made, row["function"], row["ground_truth"], category.language)
    return Grade(score=float(right))


BENCHMARK = PublishedBenchmark(
    name="bfcl",
    category="tool_use",
    rows=sum(category.items for category in CATEGORIES),
    columns=("id", "category", "question", "function", "ground_truth"),
    ask=ask,
    grade=grade,
    tools=prompt.tools,
    combine=overall,
    decoding=Decoding(temperature=0.001, top_p=1.0),
    differs="the functions stand in the chat template's section of tools, behind a row's own system text",
)
