"""Values of a config to JSON, JSON to values, text of a command line to JSON: by the field's annotation."""

import dataclasses
import json
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from megatron_bar.config.annotations import (
    describe,
    did_you_mean,
    fields_of,
    is_enum,
    is_optional,
    is_union,
    items_of,
    join,
    members_of,
    mismatch,
    options_of,
)
from megatron_bar.config.names import labels
from megatron_bar.errors import BarError


def encode(value: Any, path: str) -> Any:
    """Returns the JSON of ``value``."""
    if dataclasses.is_dataclass(value):
        return {name: encode(getattr(value, name), join(path, name)) for name in fields_of(type(value))}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: encode(item, join(path, key)) for key, item in value.items()}
    if isinstance(value, tuple | frozenset):
        items = [encode(item, join(path, i)) for i, item in enumerate(value)]
        return sorted(items, key=json.dumps) if isinstance(value, frozenset) else items
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (int, float, bool, str):
        return value
    raise BarError(f"config: {path} must not be of type {type(value).__name__}, got {value!r}")


def decode(kind: Any, data: Any, path: str) -> Any:
    """Returns the value of type ``kind`` that ``data`` (JSON) is; ``path`` names it in errors."""
    origin = get_origin(kind)
    if is_union(kind):
        if data is None and is_optional(kind):
            return None
        return _first(kind, lambda member: decode(member, data, path), data, path)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, path)
    if origin is dict and isinstance(data, dict):
        return {key: decode(get_args(kind)[1], item, join(path, key)) for key, item in data.items()}
    if origin in (tuple, frozenset) and isinstance(data, list):
        items = items_of(kind, data, path)
        named = zip(items, labels(items), strict=True)
        return origin(decode(hint, item, join(path, label)) for (hint, item), label in named)
    if origin is Literal or is_enum(kind):
        for option in options_of(kind):
            plain = option.value if isinstance(option, Enum) else option
            if type(plain) is type(data) and plain == data:  # 1 == True == 1.0 in Python, not here
                return option
    elif kind is float and type(data) in (int, float) and abs(data) <= sys.float_info.max:
        return float(data)
    elif kind is Path and type(data) is str:
        return Path(data)
    elif kind in (int, bool, str) and type(data) is kind:
        return data
    raise mismatch(kind, data, path)


def _decode_dataclass(kind: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise mismatch(kind, data, path)
    hints = fields_of(kind)
    for key in data:
        if key not in hints:
            meant = did_you_mean(key, hints)
            raise BarError(
                f"config: {path or kind.__name__} has no {key!r}; {meant}valid: {', '.join(hints)}"
            )
    for name in hints:
        if name not in data:
            raise BarError(f"config: {join(path, name)} is missing, expected {describe(hints[name])}")
    values = {name: decode(hint, data[name], join(path, name)) for name, hint in hints.items()}
    try:
        return kind(**values)
    except BarError as error:
        raise BarError(f"config: {path or kind.__name__}: {str(error).removeprefix('config: ')}") from None


def read(kind: Any, text: str, path: str) -> Any:
    """Returns the JSON value that ``text`` means; a text that means none stays, for ``decode`` to refuse."""
    origin = get_origin(kind)
    if is_union(kind):
        if is_optional(kind) and means_none(text):
            return None
        return _first(
            kind, lambda member: encode(decode(member, read(member, text, path), path), path), text, path
        )
    if (
        dataclasses.is_dataclass(kind)
        or origin is dict
        or (origin in (tuple, frozenset) and text.startswith("["))
    ):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BarError(f"config: {path} must be JSON, got {text[:200]!r}: {error}") from None
    if origin in (tuple, frozenset):
        parts = [part.strip() for part in text.split(",")] if text else []
        return [read(hint, part, join(path, i)) for i, (hint, part) in enumerate(items_of(kind, parts, path))]
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    if origin is Literal or is_enum(kind):
        plain = [option.value if isinstance(option, Enum) else option for option in options_of(kind)]
        return next((option for option in plain if str(option) == text), text)
    return text


def means_none(text: str) -> bool:
    return text.lower() in ("none", "null")


def _first[T](kind: Any, attempt: Callable[[Any], T], value: Any, path: str) -> T:
    """Returns the first success among a union's members; a sole member beside None keeps its own error."""
    *others, last = members_of(kind)
    for member in others:
        try:
            return attempt(member)
        except BarError:
            continue
    try:
        return attempt(last)
    except BarError:
        if not others:
            raise
        raise mismatch(kind, value, path) from None
