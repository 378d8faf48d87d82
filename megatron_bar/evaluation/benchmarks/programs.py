"""HumanEval+ and MBPP+ (EvalPlus, Liu et al. 2023, arXiv 2305.01210), graded by the code verifier.

An item passes when all of EvalPlus's tests run to their end. Here they run in a process that the answer's
program cannot reach (verifiers/sandbox/judge.py), with a stand-in for the little that they use of numpy.
"""

from megatron_bar.verifiers import code
from megatron_bar.verifiers.sandbox import sandbox

LIMITS = sandbox.Limits(wall_s=60.0, cpu_s=30, memory_bytes=2 << 30, value_bytes=64 << 20)
"""Limits of one item: EvalPlus has hundreds of inputs to it, large ones among them, and allows 4 GiB."""


def humaneval_plus(doc: dict, answer: str) -> bool:
    """Returns whether an answer to ``doc``, a row of evalplus/humanevalplus, passes its tests."""
    truth = {"program": doc["test"], "entry_point": doc["entry_point"], "prompt": doc["prompt"]}
    return code.grade(answer, truth, LIMITS) == 1.0


def mbpp_plus(doc: dict, answer: str) -> bool:
    """Returns whether an answer to ``doc``, a row of evalplus/mbppplus, passes its tests."""
    return code.grade(answer, {"program": doc["test"]}, LIMITS) == 1.0
