r"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): word problems of grade school, asked without examples.

An answer is right where the verifier of mathematics says so; without a box or another mark, as published,
also where the last number of the text is the truth, whatever words stand beside it.
"""

import re
from fractions import Fraction

from megatron_bar.evaluation.benchmarks.benchmark import Grade, JudgeModel, PublishedBenchmark, once
from megatron_bar.verifiers import extract, verify

NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")
COMMA = re.compile(r"(?<=\d),(?=\d)")


def prompt(row: dict) -> str:
    return (
        f"Solve the following grade school math word problem:\n{row['question']}\n\n"
        'Show your work and conclude with "Therefore, the final answer is \\boxed{answer}." where answer is '
        "just the final number that solves the problem. E.g., if the answer is 6, conclude with "
        '"Therefore, the final answer is \\boxed{6}."'
    )


def truth(row: dict) -> str:
    return COMMA.sub("", row["answer"].rsplit("####", 1)[-1].strip())


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    answer, wanted = answers[0], truth(row)
    right = verify("math", answer, wanted) == 1.0
    if not right and extract.marked(answer) is None:
        numbers = NUMBER.findall(COMMA.sub("", answer[-extract.TAIL :]))
        right = bool(numbers) and len(numbers[-1]) < 99 and Fraction(numbers[-1]) == Fraction(wanted)
    return Grade(score=float(right))


BENCHMARK = PublishedBenchmark(
    name="gsm8k",
    category="math",
    rows=1319,
    columns=("question", "answer"),
    ask=once(prompt),
    grade=grade,
    differs="compared as numbers (6.0 is 6) instead of as texts",
)
