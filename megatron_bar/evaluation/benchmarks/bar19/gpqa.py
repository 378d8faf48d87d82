"""GPQA (arXiv 2311.12022), main set: four choices in an order drawn by the item's number."""

import random
import re

from megatron_bar.evaluation.benchmarks.bar19 import letters
from megatron_bar.evaluation.benchmarks.benchmark import Grade, JudgeModel, PublishedBenchmark, once

LETTERS = "ABCD"
SEED = 111
CHOICES = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3", "Correct Answer")
ENDING = '"Therefore, the answer is (ANSWER_LETTER)" where (ANSWER_LETTER) is one of (A), (B), (C), (D).'


def clean(text: str | None) -> str:
    """Returns a choice without marks of its web page."""
    if text is None:
        return " "
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def choices(row: dict) -> list[str]:
    """Returns the choices in the order in which they are asked."""
    texts = [clean(row[column]) for column in CHOICES]
    random.Random(SEED + row["index"]).shuffle(texts)
    return texts


def prompt(row: dict) -> str:
    listed = "".join(f" ({letter}) {text}\n" for letter, text in zip(LETTERS, choices(row), strict=True))
    return (
        "Answer the following multiple-choice question by giving the correct answer letter in parentheses. "
        f"Provide CONCISE reasoning for the answer, and make sure to finish the response with {ENDING}\n\n"
        f"Question: {row['Question']}\nChoices:\n{listed}\n\n"
        "Answer the above question and REMEMBER to finish your response with the exact phrase " + ENDING
    )


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    right = LETTERS[choices(row).index(clean(row["Correct Answer"]))]
    return letters.graded(answers[0], right)


BENCHMARK = PublishedBenchmark(
    name="gpqa",
    category="reasoning",
    rows=448,
    columns=("Question", *CHOICES),
    ask=once(prompt),
    grade=grade,
    differs=f"the published task is internal, its words here are its public twin's; {letters.DIFFERS}",
)
