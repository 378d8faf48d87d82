"""MBPP+ (EvalPlus, Liu et al. 2023, arXiv 2305.01210): functions from a sentence and their first line, graded
in the sandbox as HumanEval+ is.

The question shows the truth's code up to its first colon, imports included, so an answer need not repeat them
and may be the function's body alone; as published, the program begins with them.
"""

import re

from megatron_bar.evaluation.benchmarks.bar19.humaneval_plus import LIMITS
from megatron_bar.evaluation.benchmarks.benchmark import (
    Decoding,
    Grade,
    JudgeModel,
    PublishedBenchmark,
    once,
)
from megatron_bar.verifiers import code

FUNCTION = re.compile(r"^def\s+(\w+)\b[^\n]*\Z", re.MULTILINE)
"""The first line of a function that ends a text."""


def prompt(row: dict) -> str:
    return (
        f"{row['prompt']}{_head(row)}\n\nProvide CONCISE reasoning on how to arrive at the answer, and make "
        "sure to finish the response with the following:\n\n"
        "Here is the completed function:\n\n```python\n(CODE)\n```\n"
        "where (CODE) is the code for the complete function."
    )


def passes(row: dict, answer: str) -> bool:
    """Returns whether the program of ``answer`` passes the tests of ``row``, of evalplus/mbppplus."""
    head = _head(row)
    function = FUNCTION.search(head)
    truth = {"program": row["test"]}
    if function:
        truth |= {"entry_point": function[1], "prompt": f"{head}\n"}
    return code.grade(answer, truth, LIMITS) == 1.0


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    return Grade(score=float(passes(row, answers[0])))


def _head(row: dict) -> str:
    return row["code"].split(":")[0] + ":"


BENCHMARK = PublishedBenchmark(
    name="mbpp_plus",
    category="code",
    rows=378,
    columns=("task_id", "prompt", "code", "test"),
    ask=once(prompt),
    grade=grade,
    decoding=Decoding(answers=10),
    metric="pass@1",
    differs="the program is every block up to the last that defines the function, instead of the last block",
)
