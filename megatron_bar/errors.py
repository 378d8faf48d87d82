"""The one exception that means a user's mistake, and how a text that anyone wrote is shown."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves the cursor, colours, rings, turns the direction of writing, or is half of a character; not tabs
and ends of lines."""


_LONGEST = 1500
"""Characters of a line about bad input, which may quote some of it."""


def shown(text: str) -> str:
    """Returns ``text`` with control characters as Python spells them."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


class BarError(ValueError):
    """Bad input, told in one line that names the thing, what was expected and what was found.

    The command-line tools print it as ``error: ...`` and exit with status 1; anything else is a bug and keeps
    its traceback.
    """

    def __str__(self) -> str:
        text = super().__str__()
        half = _LONGEST // 2
        return shown(text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError of the block that writes ``path`` (a full disk, say) into a line that names it."""
    try:
        yield
    except OSError as error:
        raise BarError(f"{error.filename or path}: could not be written: {error.strerror or error}") from None


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def require_name(what: str, name: str) -> None:
    """Raises unless ``name``, a part of folder names, is a plain name that cannot lead elsewhere."""
    if not _NAME.fullmatch(name):
        raise BarError(f"{what} name expected letters, digits, '_', '-' and '.', got {name!r}")


def require_at_least(owner: str, values: object, least: float, *names: str) -> None:
    """Raises unless the fields ``names`` of ``values``, where they are set, are at least ``least``."""
    for name in names:
        value = getattr(values, name)
        if value is not None and not value >= least:
            raise BarError(f"{owner}: {name} expected at least {least:g}, got {value}")
