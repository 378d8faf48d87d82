"""Verifiers: each grades an answer against a truth, from 0 to 1. Their docstrings tell the truth's format and the quirks.

Adding one is a file with ``verify(response, truth)``, a line below and a table of cases in tests/rl/test_verifiers.py.
A truth of the wrong kind is an error, never a score: a silent zero would train the model to fail.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from megatron_bar.errors import BarError
from megatron_bar.rl.verifiers import code, exact, instruction, math, safety, tool_call

VERIFIERS: dict[str, Callable[[str, object], float]] = {
    "math": math.verify,
    "code": code.verify,
    "tool_call": tool_call.verify,
    "instruction": instruction.verify,
    "safety": safety.verify,
    "exact": exact.verify,
}


def verify(name: str, response: str, truth) -> float:
    if name not in VERIFIERS:
        raise BarError(f"verifier {name!r:.100}: unknown, expected one of {', '.join(VERIFIERS)}")
    score = VERIFIERS[name](response, truth)
    assert 0.0 <= score <= 1.0, (name, score)
    return score


def verify_many(items: Sequence[tuple[str, str, object]]) -> list[float]:
    """The scores of (name, response, truth) items, in their order; programs run side by side."""
    with ThreadPoolExecutor(max_workers=min(32, 2 * len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(lambda item: verify(*item), items))
