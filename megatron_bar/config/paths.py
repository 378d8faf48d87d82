"""Where a path such as ``experts.math.sft.optim.lr`` leads in a config, and what is put there.

A field is named by its name, an element of a tuple by one of its names (names.py) or its index; a name may
have dots. What a dataclass has no field for is looked up in the field that stands for it; no index names an
element there. ``*`` names every element in which the rest of the path leads somewhere, one at least. Names of
several elements, and paths that lead nowhere, are refused by a line that lists what there is.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from megatron_bar.config.annotations import (
    did_you_mean,
    fields_of,
    is_optional,
    items_of,
    join,
    member_of,
    members_of,
)
from megatron_bar.config.coding import decode, means_none, read
from megatron_bar.config.names import labels, names_of, stand_in
from megatron_bar.errors import BarError

EVERY = "*"


class _LeadsNowhere(BarError):
    """A path that names what is not there; ``missed`` parts of it, from the end, lead nowhere."""

    def __init__(self, message: str, missed: int):
        super().__init__(message)
        self.missed = missed


@dataclass(frozen=True)
class Target:
    """Where a path leads: what ``holder[key]``, JSON, is for a value of type ``kind``."""

    kind: Any
    holder: dict | list
    key: str | int
    path: str

    def put(self, text: str) -> None:
        """Replaces what is there by what ``text`` means."""
        members = members_of(self.kind)
        whole = all(map(_has_parts, members))
        is_json = text.lstrip().startswith(("{", "["))
        is_empty = not text and any(get_origin(member) is tuple for member in members)
        if whole and not is_json and not is_empty and not (is_optional(self.kind) and means_none(text)):
            levels = list(_levels(self.kind, self.holder[self.key]))
            parts = f"the path of one of its parts ({_options(levels)}), or " if levels else ""
            raise BarError(f"config: {self.path}: expected {parts}JSON for the whole, got {text[:200]!r}")
        value = read(self.kind, text, self.path)
        if not whole:  # a whole checks itself after the last assignment, since others may change its parts
            decode(self.kind, value, self.path)
        self.holder[self.key] = value


def _has_parts(kind: Any) -> bool:
    """Tells whether values of type ``kind`` have parts that have names."""
    if get_origin(kind) is tuple:
        return all(
            _has_parts(member)
            for hint in get_args(kind)
            if hint is not Ellipsis
            for member in members_of(hint)
        )
    return dataclasses.is_dataclass(kind) or get_origin(kind) is dict


def find(kind: Any, data: Any, keys: list[str], path: str = "") -> list[Target]:
    """Returns the targets that ``keys`` lead to from ``data``, JSON of type ``kind`` that ``path`` led to."""
    levels = list(_levels(kind, data))
    if not levels:
        shown = json.dumps(data)[:200]
        raise _LeadsNowhere(f"config: {path} is {shown} and has no field {keys[0]!r}", len(keys))
    if keys[0] == EVERY:
        return _find_every(levels, keys, path)
    for level in levels:
        for used in range(len(keys), 0, -1):
            name = ".".join(keys[:used])
            if part := level.part(name, path):
                return part.find(keys[used:], join(path, name))
    names = [name for level in levels for part in level.parts for name in part.names]
    meant = did_you_mean(keys[0], [name for name in names if not name.isdecimal()])
    message = f"{path or levels[0].kind.__name__} has no {keys[0]!r}; {meant}valid: {_options(levels)}"
    raise _LeadsNowhere(f"config: {message}", len(keys))


def _find_every(levels: "list[_Level]", keys: list[str], path: str) -> list[Target]:
    """Returns the targets in all elements; where none is, raises what stopped the path that got furthest."""
    for level in levels:
        if dataclasses.is_dataclass(level.kind):
            continue
        targets: list[Target] = []
        refusals: list[_LeadsNowhere] = []
        for part in level.parts:
            try:
                targets += part.find(keys[1:], join(path, part.label))
            except _LeadsNowhere as error:
                refusals.append(error)
        if targets:
            return targets
        if refusals:
            raise min(refusals, key=lambda error: error.missed)
    message = f"{path or levels[0].kind.__name__} has no elements for {EVERY!r}; valid: {_options(levels)}"
    raise _LeadsNowhere(f"config: {message}", len(keys))


@dataclass(frozen=True)
class _Part:
    """A field, an item of a dict or an element of a tuple: ``holder[key]``."""

    kind: Any
    holder: dict | list
    key: str | int
    label: str
    """What messages call it."""
    names: list[str]
    """What a path may call it."""

    @property
    def has_label(self) -> bool:
        return isinstance(self.key, str) or self.label != str(self.key)

    def find(self, keys: list[str], path: str) -> list[Target]:
        """Returns the targets that ``keys`` lead to from here."""
        if keys:
            return find(self.kind, self.holder[self.key], keys, path)
        return [Target(self.kind, self.holder, self.key, path)]


@dataclass(frozen=True)
class _Level:
    """What can be named in a value, or in the field that stands for it."""

    kind: Any
    field: str
    """The field that stands for the value; empty where it is the value itself."""
    parts: list[_Part]

    def part(self, name: str, path: str) -> _Part | None:
        """Returns the part of that name; raises where there are several."""
        named = [part for part in self.parts if name in part.names]
        if len(named) > 1:
            each = [f"{part.key} ({part.label})" if part.has_label else str(part.key) for part in named]
            expected = ", ".join(join(self.field, label) for label in each)
            raise BarError(f"config: {join(path, name)} is the name of several, expected one of {expected}")
        return named[0] if named else None

    def options(self) -> str:
        """Lists what there is."""
        options = ", ".join(part.label for part in self.parts if part.has_label)
        if get_origin(self.kind) is tuple and self.parts and not self.field:
            last = len(self.parts) - 1
            options += (" or " if options else "") + (f"0 to {last}" if last else "0")
        return (f"in {self.field} " if self.field else "") + (options or "none")


def _options(levels: list[_Level]) -> str:
    return "; ".join(level.options() for level in levels)


def _levels(kind: Any, data: Any) -> Iterator[_Level]:
    """Yields what can be named in ``data`` itself, then in the field that stands for it, and so on."""
    field = ""
    while (cls := member_of(kind, data)) is not None:
        yield _Level(cls, field, list(_parts(cls, data, indexed=not field)))
        if not dataclasses.is_dataclass(cls) or (inner := stand_in(cls)) is None:
            return
        kind = fields_of(cls)[inner]
        data = data[inner]
        field = join(field, inner)


def _parts(kind: Any, data: Any, *, indexed: bool) -> Iterator[_Part]:
    if dataclasses.is_dataclass(kind):
        for name, hint in fields_of(kind).items():
            yield _Part(hint, data, name, name, [name])
    elif get_origin(kind) is dict:
        for name in data:
            yield _Part(get_args(kind)[1], data, name, name, [name])
    else:
        items = items_of(kind, data, "")
        for index, ((hint, item), label) in enumerate(zip(items, labels(items), strict=True)):
            names = names_of(hint, item) + ([str(index)] if indexed else [])
            yield _Part(hint, data, index, label, names)
