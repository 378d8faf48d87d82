"""A run is a tree of frozen dataclasses; here it is overridden, written, read, compared and hashed.

Everything follows the field annotations: int, float, bool, str, Path, None, Literal, Enum, tuple[X, ...],
tuple[X, Y], frozenset[X], dict[str, X], dataclasses, and unions of these whose members can be told apart by
their JSON.
Left out: interpolation, new fields. A config is Python; only values come from the command line.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import blake3

from megatron_bar.config.annotations import join
from megatron_bar.config.coding import decode, encode
from megatron_bar.config.paths import find
from megatron_bar.errors import BarError


def override[T](config: T, assignments: Sequence[str]) -> T:
    """Returns a changed copy: ``override(recipe, ["seed=2", "experts.math.sft.optim.lr=1e-4"])``.

    A path names fields, keys and elements (config/paths.py). A value is read by its field's type: ``none`` or
    ``null`` where None is allowed, ``1,2,3`` for tuples, JSON for dataclasses and dicts. Later assignments
    win and see what earlier ones did. The dataclasses check themselves once, after the last assignment, so a
    pair of fields that is only valid together can be changed.
    """
    data = to_json(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise BarError(f"override {assignment!r}: expected PATH=VALUE")
        for target in find(type(config), data, path.strip().split(".")):
            target.put(text)
    return from_json(type(config), data)


def to_json(config: Any) -> dict[str, Any]:
    """Returns the tree as JSON values; a value that contradicts its annotation is an error."""
    read_back = from_json(type(config), encode(config, ""))
    if read_back != config:
        name = type(config).__name__
        raise BarError(f"config: {name} does not survive JSON; members of a union need different fields")
    return encode(read_back, "")


def from_json[T](cls: type[T], data: Any) -> T:
    """Inverts ``to_json``: every key present, none unknown, no value converted but int to float."""
    return decode(cls, data, "")


def diff(old: Any, new: Any) -> list[str]:
    """Lists the leaves that differ, as ``path: old -> new`` in JSON; what one side lacks is ``absent``."""
    return diff_json(to_json(old), to_json(new))


def diff_json(old: Any, new: Any) -> list[str]:
    """Does the same for two trees that are JSON already."""
    before = dict(_leaves(old, ""))
    after = dict(_leaves(new, ""))
    return [
        f"{path}: {before.get(path, 'absent')} -> {after.get(path, 'absent')}"
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    ]


def config_hash(config: Any) -> str:
    """Returns the BLAKE3 of the canonical JSON: the same in every process and on every machine."""
    canonical = json.dumps(to_json(config), sort_keys=True, separators=(",", ":"))
    return blake3.blake3(canonical.encode()).hexdigest()


def _leaves(data: Any, path: str) -> Iterator[tuple[str, str]]:
    children = dict(enumerate(data)) if isinstance(data, list) else data
    if not children or not isinstance(children, dict):
        yield path, json.dumps(data)
        return
    for key, item in children.items():
        yield from _leaves(item, join(path, key))
