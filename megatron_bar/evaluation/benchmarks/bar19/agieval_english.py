"""The English multiple-choice tasks of AGIEval (arXiv 2304.06364), the mean of the eight tasks' means."""

import re

from megatron_bar.evaluation.benchmarks.bar19 import letters
from megatron_bar.evaluation.benchmarks.benchmark import Grade, JudgeModel, PublishedBenchmark, mean_by, once

ENDING = (
    '"Therefore, the answer is (ANSWER_LETTER)" where (ANSWER_LETTER) is one of (A), (B), (C), (D), (E), etc.'
)


def question(row: dict) -> str:
    passage = f"Passage: {row['passage']}\n" if row["passage"] else ""
    options = [re.sub(r"^\s*\([A-E]\)\s*|^\s*[A-E][.?]?\s*", "", option) for option in row["options"]]
    listed = "\n".join(f" ({letter}) {option}" for letter, option in zip("ABCDEFGH", options, strict=False))
    spaced = re.sub(r"(\([A-G]\))(\w)", r"\1 \2", f"{passage}Question: {row['question']}\n{listed}")
    return re.sub(r"\n{2,}", "\n", spaced)


def prompt(row: dict) -> str:
    return (
        "Answer the following multiple-choice question by giving the correct answer letter in parentheses. "
        f"Provide CONCISE reasoning for the answer, and make sure to finish the response with {ENDING}\n\n"
        f"{question(row)}\n\n"
        "Answer the above question and REMEMBER to finish your response with the exact phrase " + ENDING
    )


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    return letters.graded(answers[0], row["label"], "F")


BENCHMARK = PublishedBenchmark(
    name="agieval_english",
    category="reasoning",
    rows=2_646,
    columns=("task", "passage", "question", "options", "label"),
    ask=once(prompt),
    grade=grade,
    combine=mean_by("task"),
    differs=letters.DIFFERS,
)
