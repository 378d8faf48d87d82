"""HumanEval+ (EvalPlus, Liu et al. 2023, arXiv 2305.01210): functions to complete, graded in the sandbox.

An item passes when all of EvalPlus's tests run to their end. Here they run in a process that the answer's
program cannot reach (verifiers/sandbox/judge.py), with a stand-in for the little that they use of numpy.
"""

from megatron_bar.evaluation.benchmarks.benchmark import (
    Decoding,
    Grade,
    JudgeModel,
    PublishedBenchmark,
    once,
)
from megatron_bar.verifiers import code
from megatron_bar.verifiers.sandbox import sandbox

LIMITS = sandbox.Limits(wall_s=60.0, cpu_s=30, memory_bytes=2 << 30, value_bytes=64 << 20)
"""Limits of one item: EvalPlus has hundreds of inputs to it, large ones among them, and allows 4 GiB."""


def prompt(row: dict) -> str:
    return (
        f"Complete the following function:\n{row['prompt']}\nProvide CONCISE reasoning on how to arrive "
        "at the answer, and make sure to finish the response with the following, where (CODE) is the code "
        "for the complete function:\n\nHere is the completed function:\n\n```python\n(CODE)\n```"
    )


def passes(row: dict, answer: str) -> bool:
    """Returns whether the program of ``answer`` passes the tests of ``row``, of evalplus/humanevalplus."""
    truth = {"program": row["test"], "entry_point": row["entry_point"], "prompt": row["prompt"]}
    return code.grade(answer, truth, LIMITS) == 1.0


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    return Grade(score=float(passes(row, answers[0])))


BENCHMARK = PublishedBenchmark(
    name="humaneval_plus",
    category="code",
    rows=164,
    columns=("task_id", "prompt", "entry_point", "test"),
    ask=once(prompt),
    grade=grade,
    decoding=Decoding(answers=10),
    metric="pass@1",
    differs="the program is every block up to the last that defines the function, instead of the last block",
)
