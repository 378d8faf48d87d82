"""What the elements of a config's tuples are called, so that a path can name them.

An element is called by its field ``name`` and by the fields that are marked with ``IS_NAME``: by a text as it
is, by a path's last part up to its first dot or ``#``. A dataclass may mark one field with ``STANDS_FOR_IT``:
names that it does not have itself are looked up there, and it is called what that field is called.

    stage: Stage = field(metadata=STANDS_FOR_IT)
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_bar.config.annotations import fields_of, member_of

IS_NAME = {"is_name": True}
STANDS_FOR_IT = {"stands_for_it": True}
_PLAIN = re.compile(r"(?=.*[^0-9.])\w[\w.-]*")
"""Names that read well in a path, and as no index."""


def stand_in(cls: type) -> str | None:
    """Returns the field that stands for the dataclass, if one does."""
    return next((field.name for field in dataclasses.fields(cls) if "stands_for_it" in field.metadata), None)


def names_of(kind: Any, data: Any) -> list[str]:
    """Returns what ``data`` (JSON), an element of a tuple, is called; it may be half changed, and invalid."""
    cls = member_of(kind, data)
    if not dataclasses.is_dataclass(cls):
        return []
    names: list[str] = []
    for field in dataclasses.fields(cls):
        hint = fields_of(cls).get(field.name)
        value = data.get(field.name)
        if "stands_for_it" in field.metadata:
            names += names_of(hint, value)
        elif (field.name == "name" or "is_name" in field.metadata) and isinstance(value, str):
            names.append(re.split(r"[.#]", Path(value).name)[0] if hint is Path else value)
    return [name for name in dict.fromkeys(names) if name]


def labels(items: Sequence[tuple[Any, Any]]) -> list[str]:
    """Returns what to call each item of a tuple, given with its annotation: its own name or its index."""
    names_of_each = [names_of(kind, item) for kind, item in items]
    counts = Counter(name for names in names_of_each for name in names)
    return [
        next((name for name in names if counts[name] == 1 and _PLAIN.fullmatch(name)), str(index))
        for index, names in enumerate(names_of_each)
    ]
