"""Instruction following: all of the given constraints hold, or the share of them that does.

truth = [{"kind": ..., its fields}, ...], of constraints.py or, by their published names and arguments, of
ifeval.py and if_rlvr.py. Rows of published sets are read as they are, also as text of JSON or of a Python
literal:

- google/IFEval and IF-RLVR: ``{"instruction_id_list" or "instruction_id": [names], "kwargs": [arguments or
  null]}``, alone or in a list; an argument that is null, 0 or empty is none.
- RLVR-IFeval: ``{"func_name": ..., its arguments}``, of rlvr_ifeval.py.

``{"constraints": any of these, "reward": "fraction"}`` scores the share, as open-instruct does; lm-eval asks
for all.

Characters that nobody sees never count. An answer without a letter or digit obeys nothing, though it has no
forbidden word; an answer of more than ``LONGEST`` characters neither. White space around counts in the
published constraints alone.
"""

import ast
import functools
import importlib.util
import inspect
import json
import re
from collections.abc import Callable
from typing import get_args

from megatron_bar.errors import BarError
from megatron_bar.verifiers import if_rlvr, ifeval
from megatron_bar.verifiers.constraints import CONSTRAINTS
from megatron_bar.verifiers.rlvr_ifeval import FUNCTIONS
from megatron_bar.verifiers.text import says_something, seen, visible

LONGEST = 20_000
ASKED_FOR = ("contains", "starts_with", "ends_with", "repeat")
"""Constraints whose text, if it has no letter or digit, is an answer without one."""
PUBLISHED = ifeval.IFEVAL | if_rlvr.IF_RLVR
PACKAGES = ifeval.PACKAGES | if_rlvr.PACKAGES
NAMES: dict[str, Callable[..., bool]] = CONSTRAINTS | PUBLISHED


def verify(response: str, truth) -> float:
    constraints, wanted = _read(truth)
    answer = visible(response[: LONGEST + 1])
    signs = [fields["text"] for kind, fields in constraints if kind in ASKED_FOR]
    asked_for = any(text in answer and not says_something(text) for text in signs)
    if len(response) > LONGEST or not (says_something(answer) or asked_for):
        return 0.0
    written = seen(response)
    held = [NAMES[kind](written if kind in PUBLISHED else answer, **fields) for kind, fields in constraints]
    return sum(held) / len(held) if wanted == "fraction" else float(all(held))


def check(truth) -> list[tuple[str, dict]]:
    return _read(truth)[0]


def _read(truth) -> tuple[list[tuple[str, dict]], str]:
    """Returns the constraints, each a kind and its fields, and how they are scored."""
    truth = _value(truth)
    wanted = "all"
    if isinstance(truth, dict) and truth.keys() == {"constraints", "reward"}:
        truth, wanted = _value(truth["constraints"]), truth["reward"]
    if wanted not in ("all", "fraction"):
        raise BarError(f"instruction truth: expected a reward of all or fraction, found {wanted!r:.100}")
    parts = [truth] if isinstance(truth, dict) and "kind" not in truth else truth
    if not isinstance(parts, list | tuple) or not parts:
        raise BarError(f"instruction truth: expected a list of constraints, found {truth!r:.200}")
    constraints = [_parse(kind, fields) for part in parts for kind, fields in _named(_value(part))]
    if not constraints:
        raise BarError(f"instruction truth: expected at least one constraint, found {truth!r:.200}")
    return constraints, wanted


def _value(truth):
    """Returns what a text says in JSON or as a Python literal; anything else as it is."""
    if not isinstance(truth, str):
        return truth
    for read in (json.loads, ast.literal_eval):
        try:
            return read(truth)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise BarError(f"instruction truth: expected JSON or a Python literal, found the text {truth!r:.200}")


def _named(part) -> list[tuple[object, dict]]:
    """Returns what a part of a truth asks for, in any of its forms, unchecked: kinds and fields."""
    match part:
        case {"kind": kind, **fields}:
            return [(kind, fields)]
        case {"func_name": str() as name, **fields} if name in FUNCTIONS:
            types, constraints = FUNCTIONS[name]
            given = {key: value for key, value in fields.items() if value is not None}
            return constraints(**_checked(name, types, given))
        case {"instruction_id": ids, "kwargs": kwargs} | {"instruction_id_list": ids, "kwargs": kwargs} if (
            isinstance(ids, list | tuple) and isinstance(kwargs, list | tuple) and len(ids) == len(kwargs)
        ):
            given = [arguments or {} for arguments in kwargs]
            if all(isinstance(arguments, dict) for arguments in given):
                return [
                    (name, {key: value for key, value in arguments.items() if value})
                    for name, arguments in zip(ids, given, strict=True)
                ]
    raise BarError(
        "instruction truth: expected a kind, instruction_id and as many kwargs, or func_name, "
        f"found {part!r:.200}"
    )


def _parse(kind, fields: dict) -> tuple[str, dict]:
    if not isinstance(kind, str) or kind not in NAMES:
        raise BarError(f"instruction truth: expected a kind out of {', '.join(NAMES)}, found {kind!r:.100}")
    types, optional = _parameters(kind)
    fields = _checked(kind, types, fields, optional)
    if (package := PACKAGES.get(kind)) and not _is_there(package):
        raise BarError(
            f"instruction truth: expected the package {package} for {kind}, found none; "
            "pip install 'megatron_bar[eval]'"
        )
    try:
        NAMES[kind]("", **fields)
    except re.error as error:
        raise BarError(
            f"instruction truth: {kind} expects patterns, found {fields!r:.200} ({error})"
        ) from None
    return kind, {name: _seen(value) for name, value in fields.items()}


def _checked(
    name: str, types: dict[str, object], fields: dict, optional: frozenset[str] = frozenset()
) -> dict:
    """Returns the fields, if they are those that are wanted."""
    fields = {key: _whole(value) for key, value in fields.items()}
    named = types.keys() - optional <= fields.keys() <= types.keys()
    if not named or not all(_fits(fields[key], types[key]) for key in fields):
        spelled = ", ".join(f"{key} ({_spelled(of)})" for key, of in types.items()) or "no field"
        raise BarError(f"instruction truth: {name} expects {spelled}, found {fields!r:.200}")
    return fields


@functools.cache
def _parameters(kind: str) -> tuple[dict[str, object], frozenset[str]]:
    """Returns the types of a constraint's fields, and those fields that may be missing."""
    parameters = inspect.signature(NAMES[kind]).parameters.items()
    fields = {name: p for name, p in parameters if p.kind is p.KEYWORD_ONLY}
    optional = frozenset(name for name, p in fields.items() if p.default is not p.empty)
    return {name: p.annotation for name, p in fields.items()}, optional


@functools.cache
def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _whole(value):
    """Returns 3 for 3.0: a column with nulls holds its numbers so."""
    return int(value) if type(value) is float and value.is_integer() else value


def _seen(value):
    """Returns texts as an answer's are judged."""
    if isinstance(value, str):
        return seen(value)
    return [seen(item) for item in value] if isinstance(value, list | tuple) else value


def _fits(value, of) -> bool:
    """Returns whether a field is of its type: numbers from 1, texts that say something, lists of such texts,
    one of several words."""
    if of is list:
        return isinstance(value, list | tuple) and len(value) > 0 and all(_fits(item, str) for item in value)
    if words := get_args(of):
        return value in words
    return type(value) is of and (value >= 1 if of is int else seen(value).strip() != "")


def _spelled(of) -> str:
    return " or ".join(get_args(of)) or of.__name__
