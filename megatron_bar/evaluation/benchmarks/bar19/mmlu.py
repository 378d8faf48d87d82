"""MMLU (arXiv 2009.03300): multiple choice in 57 subjects, the mean of the subjects' means."""

from megatron_bar.evaluation.benchmarks.bar19 import letters
from megatron_bar.evaluation.benchmarks.benchmark import Grade, JudgeModel, PublishedBenchmark, mean_by, once

LETTERS = "ABCD"


def prompt(row: dict) -> str:
    choices = "".join(
        f" {letter}. {choice}\n" for letter, choice in zip(LETTERS, row["choices"], strict=True)
    )
    subject = row["subject"].replace("_", " ")
    return (
        f"The following are multiple choice questions about {subject}. Summarize your reasoning concisely, "
        "then conclude with 'Therefore, the answer is: X' where X is one of A, B, C, or D.\n\n"
        f"Question: {row['question']}\n{choices}"
    )


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    number = row["answer"]
    right = LETTERS[number] if type(number) is int and 0 <= number < len(LETTERS) else number
    return letters.graded(answers[0], right, exact=False)


BENCHMARK = PublishedBenchmark(
    name="mmlu",
    category="knowledge",
    rows=14_042,
    columns=("question", "subject", "choices", "answer"),
    ask=once(prompt),
    grade=grade,
    combine=mean_by("subject"),
    differs=letters.DIFFERS,
)
