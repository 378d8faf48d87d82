"""What the annotations of a config's fields say: its fields, the members of a union, the items of a tuple."""

import dataclasses
import difflib
import types
from collections.abc import Iterable, Sequence
from enum import Enum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from megatron_bar.errors import BarError


@cache
def fields_of(cls: type) -> dict[str, Any]:
    """Returns the fields that a dataclass is made from, each with its annotation."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def is_optional(kind: Any) -> bool:
    return is_union(kind) and type(None) in get_args(kind)


def is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def members_of(kind: Any) -> list[Any]:
    """Returns the members of a union but None; of any other annotation itself."""
    return [member for member in get_args(kind) if member is not type(None)] if is_union(kind) else [kind]


def member_of(kind: Any, data: Any) -> Any | None:
    """Returns the member of a union whose fields or items ``data`` (JSON) has; None where it has neither."""
    return next((member for member in members_of(kind) if _has_the_fields_of(member, data)), None)


def _has_the_fields_of(kind: Any, data: Any) -> bool:
    if dataclasses.is_dataclass(kind):
        return isinstance(data, dict) and data.keys() == fields_of(kind).keys()
    if get_origin(kind) is tuple:
        return isinstance(data, list) and (is_endless(kind) or len(data) == len(get_args(kind)))
    return get_origin(kind) is dict and isinstance(data, dict)


def is_endless(kind: Any) -> bool:
    """Tells whether a tuple or frozenset is of any length."""
    return get_origin(kind) is frozenset or get_args(kind)[1:] == (Ellipsis,)


def items_of(kind: Any, values: Sequence[Any], path: str) -> list[tuple[Any, Any]]:
    """Returns each item of a tuple or frozenset with its annotation."""
    hints = get_args(kind)
    if is_endless(kind):
        hints = hints[:1] * len(values)
    if len(hints) != len(values):
        raise BarError(f"config: {path} must have {len(hints)} items, got {len(values)}")
    return list(zip(hints, values, strict=True))


def options_of(kind: Any) -> tuple[Any, ...]:
    """Returns the values of a Literal or Enum."""
    return get_args(kind) if get_origin(kind) is Literal else tuple(kind)


def describe(kind: Any) -> str:
    if get_origin(kind) is Literal or is_enum(kind):
        options = [option.value if isinstance(option, Enum) else option for option in options_of(kind)]
        return f"one of {', '.join(map(str, options))}"
    if kind is float:
        return "a finite float"
    if isinstance(kind, type) and not get_args(kind):
        return "None" if kind is type(None) else kind.__name__
    return " or ".join(map(describe, get_args(kind))) if is_union(kind) else str(kind)


def mismatch(kind: Any, value: Any, path: str) -> BarError:
    return BarError(f"config: {path or 'the whole'} must be {describe(kind)}, got {repr(value)[:200]}")


def did_you_mean(key: str, valid: Iterable[str]) -> str:
    """Returns a question to put before a list of what is valid; empty where nothing there is like ``key``."""
    close = difflib.get_close_matches(key, list(valid), n=3)
    return f"did you mean {' or '.join(close)}? " if close else ""


def join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
