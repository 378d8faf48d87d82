"""Exact match: equal up to case, white space and one final full stop."""

from megatron_bar.errors import BarError


def verify(response: str, truth) -> float:
    return float(normalise(response) == normalise(check(truth)))


def check(truth) -> str:
    if not isinstance(truth, str) or not normalise(truth):
        raise BarError(f"exact truth: expected a text, found {truth!r:.200}")
    return truth


def normalise(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()
