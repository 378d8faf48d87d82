"""Verifiers: each grades a response against a truth, from 0 to 1.

A verifier is a file of this folder with two functions, ``verify(response, truth)`` and ``check(truth)``; its
docstring gives the truth's format and the quirks of its data set. Whatever a model wrote gets a score; a
truth of the wrong kind is an error, never a score: a silent zero would train the model to fail.

To add one, edit two files: its own, whose name is the verifier's, and its table of labelled answers in
tests/verifiers/verifier_cases.py. Files without these two functions are what verifiers share.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol

from megatron_bar.errors import BarError
from megatron_bar.verifiers import safety
from megatron_bar.verifiers.judge import NO_JUDGE, Judge
from megatron_bar.verifiers.text import spoken


class Verifier(Protocol):
    """What a verifier's file defines."""

    @staticmethod
    def verify(response: str, truth) -> float:
        """Returns the score, from 0 to 1, within about a second of processor time; in any thread or
        process."""

    @staticmethod
    def check(truth) -> object:
        """Raises BarError unless ``verify`` can use ``truth``."""


def _files() -> Iterator[tuple[str, Verifier]]:
    """Yields the files of this folder that define what a verifier does, by their names."""
    for entry in iter_modules(__path__):
        module = import_module(f"{__name__}.{entry.name}")
        if {"verify", "check"} <= vars(module).keys():
            yield entry.name, module


VERIFIERS: dict[str, Verifier] = dict(_files())


def verify(name: str, response: str, truth) -> float:
    """Returns the score of ``response`` by the verifier ``name``; a verifier that fails is a BarError.

    The thoughts that a response begins with are no answer (`spoken`).
    """
    try:
        score = _verifier(name).verify(spoken(response), truth)
        assert 0.0 <= score <= 1.0, f"score {score}"
    except BarError:
        raise
    except Exception as error:
        raise BarError(
            f"verifier {name}: {type(error).__name__}: {error}; "
            f"on the answer {response!r:.200} and the truth {truth!r:.200}"
        ) from error
    return score


def verify_many(items: Sequence[tuple[str, str, object]], *, judge: Judge = NO_JUDGE) -> list[float]:
    """Returns the scores of (name, response, truth) items, in their order; programs run side by side. A
    ``judge`` that has a url decides in the place of the verifier ``safety``."""

    def score(item: tuple[str, str, object]) -> float:
        name, response, truth = item
        judged = judge.url is not None and name == "safety"
        return safety.verify_by(judge, response, truth) if judged else verify(name, response, truth)

    with ThreadPoolExecutor(max_workers=min(32, 2 * len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(score, items))


def with_prompt(verifier: str, truth, messages: Sequence[dict]):
    """Returns the truth with what was asked last, which a judge wants to know."""
    if verifier != "safety" or not isinstance(truth, str):
        return truth
    asked = [message["content"] for message in messages if message["role"] == "user"]
    return {"wanted": truth, "prompt": asked[-1] if asked else ""}


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
