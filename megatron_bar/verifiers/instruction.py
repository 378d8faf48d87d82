"""Instruction following: all of the given constraints hold (constraints.py).

truth = [{"kind": ..., its fields}, ...]; the score is 1 when all of them hold, else 0. White space around the
answer never counts, nor do characters that nobody sees. An answer of those alone obeys nothing, though it has
no forbidden word.
"""

import inspect
from collections.abc import Callable

from megatron_bar.errors import BarError
from megatron_bar.verifiers.constraints import CONSTRAINTS
from megatron_bar.verifiers.text import visible


def verify(response: str, truth) -> float:
    checks = check(truth)
    answer = visible(response)
    return float(answer != "" and all(holds(answer, **fields) for holds, fields in checks))


def check(truth) -> list[tuple[Callable[..., bool], dict]]:
    if not isinstance(truth, list | tuple) or not truth:
        raise BarError(f"instruction truth: expected a list of constraints, found {truth!r:.200}")
    return [_parse(constraint) for constraint in truth]


def _parse(constraint) -> tuple[Callable[..., bool], dict]:
    kind = constraint.get("kind") if isinstance(constraint, dict) else None
    if not isinstance(kind, str) or kind not in CONSTRAINTS:
        raise BarError(
            f"instruction truth: expected a kind out of {', '.join(CONSTRAINTS)}, found {constraint!r:.200}"
        )
    holds = CONSTRAINTS[kind]
    fields = {name: value for name, value in constraint.items() if name != "kind"}
    parameters = inspect.signature(holds).parameters.items()
    wanted = {name: p.annotation for name, p in parameters if p.kind is p.KEYWORD_ONLY}
    if fields.keys() != wanted.keys() or not all(_fits(fields[name], kind) for name, kind in wanted.items()):
        spelled = ", ".join(f"{name} ({kind.__name__})" for name, kind in wanted.items()) or "no field"
        raise BarError(f"instruction truth: {kind} expects {spelled}, found {fields!r:.200}")
    return holds, fields


def _fits(value, kind: type) -> bool:
    """Returns whether a field is of its type: numbers from 1, texts that say something, lists of such
    texts."""
    if kind is list:
        return isinstance(value, list | tuple) and len(value) > 0 and all(_fits(item, str) for item in value)
    return type(value) is kind and (value >= 1 if kind is int else value.strip() != "")
