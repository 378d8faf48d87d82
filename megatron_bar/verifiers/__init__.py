"""Verifiers: each grades a response against a truth, from 0 to 1.

A verifier is a file of this folder with two functions, ``verify(response, truth)`` and ``check(truth)``; its
docstring gives the truth's format and the quirks of its data set. Whatever a model wrote gets a score; a
truth of the wrong kind is an error, never a score: a silent zero would train the model to fail.

To add one, edit three files: its own, one line of `VERIFIERS` below, and its table of labelled answers in
tests/verifiers/verifier_cases.py. The names exist in `VERIFIERS` alone; all else asks it.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from megatron_bar.errors import BarError
from megatron_bar.verifiers import code, exact, gym, instruction, math, numeric, safety, tool_call


class Verifier(Protocol):
    """What a verifier's file defines."""

    @staticmethod
    def verify(response: str, truth) -> float:
        """Returns the score, from 0 to 1, within about a second of processor time; in any thread or
        process."""

    @staticmethod
    def check(truth) -> object:
        """Raises BarError unless ``verify`` can use ``truth``."""


VERIFIERS: dict[str, Verifier] = {
    "math": math,
    "numeric": numeric,
    "code": code,
    "tool_call": tool_call,
    "instruction": instruction,
    "safety": safety,
    "exact": exact,
    "reasoning_gym": gym,
}


def verify(name: str, response: str, truth) -> float:
    """Returns the score of ``response`` by the verifier ``name``; a verifier that fails is a BarError."""
    try:
        score = _verifier(name).verify(response, truth)
        assert 0.0 <= score <= 1.0, f"score {score}"
    except BarError:
        raise
    except Exception as error:
        raise BarError(
            f"verifier {name}: {type(error).__name__}: {error}; "
            f"on the answer {response!r:.200} and the truth {truth!r:.200}"
        ) from error
    return score


def verify_many(items: Sequence[tuple[str, str, object]]) -> list[float]:
    """Returns the scores of (name, response, truth) items, in their order; programs run side by side."""
    with ThreadPoolExecutor(max_workers=min(32, 2 * len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(lambda item: verify(*item), items))


def check_task(verifier: str, truth, where: str) -> None:
    """Raises a BarError that starts with ``where`` (a file and line, say) unless verifier and truth can be
    used.

    Call it for every task before training: a bad row must not wait until it is drawn. It runs no program and
    parses no LaTeX.
    """
    try:
        _verifier(verifier).check(truth)
    except BarError as error:
        raise BarError(f"{where}: {error}") from error


def _verifier(name: str) -> Verifier:
    if not isinstance(name, str) or name not in VERIFIERS:
        raise BarError(f"verifier {name!r:.100}: unknown, expected one of {', '.join(VERIFIERS)}")
    return VERIFIERS[name]
