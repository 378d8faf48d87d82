"""A run is a tree of frozen dataclasses; here it is overridden, written, read, compared and hashed.

Everything follows the field annotations: int, float, bool, str, Path, None, Literal, Enum, tuple[X, ...], tuple[X, Y],
frozenset[X], dict[str, X], dataclasses, and unions of these whose members can be told apart by their JSON.
Left out: globs, interpolation, new fields. A config is Python; only values come from the command line.
"""

import dataclasses
import difflib
import json
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import blake3

from megatron_bar.errors import BarError


def override[T](config: T, assignments: Sequence[str]) -> T:
    """``override(config, ["optim.lr=1e-4", "stages.sft.steps=10", "experts.0.name=math"])``: a changed copy.

    A value is read by its field's type: ``none`` or ``null`` where None is allowed, ``1,2,3`` for tuples, JSON for whole
    dataclasses and dicts. Later assignments win. The dataclasses check themselves once, after the last assignment, so a
    pair of fields that is only valid together can be changed.
    """
    data = to_json(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise BarError(f"override {assignment!r}: expected PATH=VALUE")
        data = _assign(type(config), data, path.strip().split("."), text, "")
    return from_json(type(config), data)


def to_json(config: Any) -> dict[str, Any]:
    """The tree as JSON values; a value that contradicts its annotation is an error."""
    read_back = from_json(type(config), _encode(config, ""))
    if read_back != config:
        raise BarError(f"config: {type(config).__name__} does not survive JSON; members of a union need different fields")
    return _encode(read_back, "")


def from_json[T](cls: type[T], data: Any) -> T:
    """The inverse of ``to_json``: every key present, none unknown, no value converted but int to float."""
    return _decode(cls, data, "")


def diff(old: Any, new: Any) -> list[str]:
    """The leaves that differ, as ``path: old -> new`` in JSON; a leaf that only one side has is ``absent`` on the other."""
    return diff_json(to_json(old), to_json(new))


def diff_json(old: Any, new: Any) -> list[str]:
    """The same of two trees that are JSON already."""
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    return [
        f"{path}: {before.get(path, 'absent')} -> {after.get(path, 'absent')}"
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    ]


def config_hash(config: Any) -> str:
    """BLAKE3 of the canonical JSON: the same in every process and on every machine."""
    return blake3.blake3(json.dumps(to_json(config), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _encode(value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value):
        return {name: _encode(getattr(value, name), _join(path, name)) for name in _fields(type(value))}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _encode(item, _join(path, key)) for key, item in value.items()}
    if isinstance(value, tuple | frozenset):
        items = [_encode(item, _join(path, i)) for i, item in enumerate(value)]
        return sorted(items, key=json.dumps) if isinstance(value, frozenset) else items
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (int, float, bool, str):
        return value
    raise BarError(f"config: {path} must not be of type {type(value).__name__}, got {value!r}")


def _decode(kind: Any, data: Any, path: str) -> Any:
    origin = get_origin(kind)
    if _is_union(kind):
        return None if _is_none(kind, data) else _first(kind, lambda member: _decode(member, data, path), data, path)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, path)
    if origin is dict and isinstance(data, dict):
        return {key: _decode(get_args(kind)[1], item, _join(path, key)) for key, item in data.items()}
    if origin in (tuple, frozenset) and isinstance(data, list):
        return origin(_decode(hint, item, _join(path, i)) for i, (hint, item) in enumerate(_items(kind, data, path)))
    if origin is Literal or _is_enum(kind):
        for option in get_args(kind) or kind:
            plain = option.value if isinstance(option, Enum) else option
            if type(plain) is type(data) and plain == data:  # 1 == True == 1.0 in Python, not here
                return option
    elif kind is float and type(data) in (int, float) and abs(data) <= sys.float_info.max:
        return float(data)
    elif kind is Path and type(data) is str:
        return Path(data)
    elif kind in (int, bool, str) and type(data) is kind:
        return data
    raise _mismatch(kind, data, path)


def _decode_dataclass(kind: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise _mismatch(kind, data, path)
    hints = _fields(kind)
    for key in data:
        _check_known(key, hints, path or kind.__name__)
    for name in hints:
        if name not in data:
            raise BarError(f"config: {_join(path, name)} is missing, expected {_name(hints[name])}")
    values = {name: _decode(hint, data[name], _join(path, name)) for name, hint in hints.items()}
    try:
        return kind(**values)
    except BarError as error:
        raise BarError(f"config: {path or kind.__name__}: {str(error).removeprefix('config: ')}") from None


def _assign(kind: Any, data: Any, keys: list[str], text: str, path: str) -> Any:
    """``data`` (JSON) with the place that ``keys`` lead to replaced by what ``text`` means there."""
    if not keys:
        return _read(kind, text, path)
    if _is_union(kind) and data is not None:
        members = [member for member in get_args(kind) if member is not type(None)]
        # To decode is to check, and the pair that an assignment is half of may not be valid yet: only where there is a choice.
        kind = members[0] if len(members) == 1 else _first(kind, lambda m: (_decode(m, data, path), m)[1], data, path)
    if dataclasses.is_dataclass(kind):
        hints = _fields(kind)
    elif get_origin(kind) is dict:
        hints = dict.fromkeys(data, get_args(kind)[1])
    elif get_origin(kind) is tuple:
        hints = {str(i): hint for i, (hint, _) in enumerate(_items(kind, data, path))}
    else:
        raise BarError(f"config: {path} is {json.dumps(data)} and has no field {keys[0]!r}")
    _check_known(keys[0], hints, path or kind.__name__)
    place = int(keys[0]) if isinstance(data, list) else keys[0]
    data[place] = _assign(hints[keys[0]], data[place], keys[1:], text, _join(path, keys[0]))
    return data


def _read(kind: Any, text: str, path: str) -> Any:
    """The JSON value that ``text`` means; text that means none is handed on as it is, for ``_decode`` to refuse."""
    origin = get_origin(kind)
    if _is_union(kind):
        if _is_none(kind, None) and text.lower() in ("none", "null"):
            return None
        return _first(kind, lambda member: _encode(_decode(member, _read(member, text, path), path), path), text, path)
    if dataclasses.is_dataclass(kind) or origin is dict or (origin in (tuple, frozenset) and text.startswith("[")):
        try:
            return json.loads(text)
        except ValueError as error:
            raise BarError(f"config: {path} must be JSON, got {text!r}: {error}") from None
    if origin in (tuple, frozenset):
        parts = [part.strip() for part in text.split(",")] if text else []
        return [_read(hint, part, _join(path, i)) for i, (hint, part) in enumerate(_items(kind, parts, path))]
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    if origin is Literal or _is_enum(kind):
        plain = [option.value if isinstance(option, Enum) else option for option in get_args(kind) or kind]
        return next((option for option in plain if str(option) == text), text)
    return text


def _first[T](kind: Any, attempt: Callable[[Any], T], value: Any, path: str) -> T:
    """The first success among a union's members; a sole member beside None keeps its own error."""
    members = [member for member in get_args(kind) if member is not type(None)]
    for member in members[:-1]:
        try:
            return attempt(member)
        except BarError:
            continue
    try:
        return attempt(members[-1])
    except BarError:
        if len(members) == 1:
            raise
        raise _mismatch(kind, value, path) from None


def _items(kind: Any, values: Sequence[Any], path: str) -> list[tuple[Any, Any]]:
    """Each item of a tuple or frozenset with its annotation."""
    hints = get_args(kind)
    if get_origin(kind) is frozenset or hints[1:] == (Ellipsis,):
        hints = hints[:1] * len(values)
    if len(hints) != len(values):
        raise BarError(f"config: {path} must have {len(hints)} items, got {len(values)}")
    return list(zip(hints, values, strict=True))


def _leaves(data: Any, path: str) -> Iterator[tuple[str, str]]:
    children = dict(enumerate(data)) if isinstance(data, list) else data
    if not children or not isinstance(children, dict):
        yield path, json.dumps(data)
        return
    for key, item in children.items():
        yield from _leaves(item, _join(path, key))


def _fields(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _is_none(kind: Any, data: Any) -> bool:
    return data is None and type(None) in get_args(kind)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _check_known(key: str, valid: dict[str, Any], path: str) -> None:
    if key not in valid:
        close = difflib.get_close_matches(key, valid, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise BarError(f"config: {path} has no {key!r}; {hint}valid: {', '.join(valid)}")


def _mismatch(kind: Any, value: Any, path: str) -> BarError:
    return BarError(f"config: {path or 'the whole'} must be {_name(kind)}, got {repr(value)[:200]}")


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal or _is_enum(kind):
        options = get_args(kind) or kind
        return "one of " + ", ".join(str(option.value if isinstance(option, Enum) else option) for option in options)
    if kind is float:
        return "a finite float"
    if isinstance(kind, type) and not get_args(kind):
        return "None" if kind is type(None) else kind.__name__
    return " or ".join(map(_name, get_args(kind))) if _is_union(kind) else str(kind)


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
