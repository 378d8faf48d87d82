"""Instruction following: constraints a program can check, after IFEval (arXiv 2311.07911).

truth = [{"kind": ..., its fields}, ...]; the score is 1 when all of them hold. White space around the answer never counts, case
does. An empty answer obeys nothing, though it has no forbidden word. Words are what white space separates.
"""

import inspect
from collections.abc import Callable

from megatron_bar.errors import BarError


def exact_words(text: str, *, n: int) -> bool:
    return len(text.split()) == n


def max_words(text: str, *, n: int) -> bool:
    return len(text.split()) <= n


def min_words(text: str, *, n: int) -> bool:
    return len(text.split()) >= n


def all_uppercase(answer: str) -> bool:
    return answer.isupper()


def all_lowercase(answer: str) -> bool:
    return answer.islower()


def starts_with(answer: str, *, text: str) -> bool:
    return answer.startswith(text)


def ends_with(answer: str, *, text: str) -> bool:
    return answer.endswith(text)


def contains(answer: str, *, text: str) -> bool:
    return text in answer


def not_contains(answer: str, *, text: str) -> bool:
    return text not in answer


def comma_separated(answer: str, *, n: int) -> bool:
    """n items, none empty."""
    items = [item.strip() for item in answer.removesuffix(".").split(",")]
    return len(items) == n and all(items)


def repeat(answer: str, *, text: str, n: int) -> bool:
    """The text n times and nothing besides, with white space or one comma between."""
    rest = answer
    for i in range(n):
        if not rest.startswith(text):
            return False
        rest = rest[len(text) :]
        if i < n - 1:
            tail = rest.removeprefix(",")
            if tail == rest and not rest[:1].isspace():
                return False
            rest = tail.lstrip()
    return rest == ""


CONSTRAINTS: dict[str, Callable[..., bool]] = {
    "exact_words": exact_words,
    "max_words": max_words,
    "min_words": min_words,
    "all_uppercase": all_uppercase,
    "all_lowercase": all_lowercase,
    "starts_with": starts_with,
    "ends_with": ends_with,
    "contains": contains,
    "not_contains": not_contains,
    "comma_separated": comma_separated,
    "repeat": repeat,
}


def verify(response: str, truth) -> float:
    if not isinstance(truth, list | tuple) or not truth:
        raise BarError(f"instruction truth: expected a list of constraints, found {truth!r:.200}")
    checks = [_parse(constraint) for constraint in truth]
    answer = response.strip()
    return float(answer != "" and all(check(answer, **fields) for check, fields in checks))


def _parse(constraint) -> tuple[Callable[..., bool], dict]:
    if not isinstance(constraint, dict) or constraint.get("kind") not in CONSTRAINTS:
        raise BarError(f"instruction truth: expected a kind out of {', '.join(CONSTRAINTS)}, found {constraint!r:.200}")
    check = CONSTRAINTS[constraint["kind"]]
    fields = {name: value for name, value in constraint.items() if name != "kind"}
    wanted = {name: p.annotation for name, p in inspect.signature(check).parameters.items() if p.kind is p.KEYWORD_ONLY}
    if fields.keys() != wanted.keys() or not all(_fits(fields[name], kind) for name, kind in wanted.items()):
        spelled = ", ".join(f"{name} ({kind.__name__})" for name, kind in wanted.items()) or "no field"
        raise BarError(f"instruction truth: {constraint['kind']} expects {spelled}, found {fields!r:.200}")
    return check, fields


def _fits(value, kind: type) -> bool:
    return type(value) is kind and (value >= 1 if kind is int else value != "")
