"""A JSON object from a file that anyone may have written, or one line saying what is wrong with it."""

import json
from collections import Counter
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.weights.regular import read_regular

LARGEST = 40 << 20
"""Bytes of a file: the largest vocabularies have 35 MB, and parsing takes up to 24 times that."""
MOST_CONTAINERS = 3 << 20
"""Objects and lists of a text: each takes up to 192 bytes, and three characters to write."""
MOST_KEYS = 2 << 20
"""Keys of a text, counted by its colons; the largest vocabularies have 0.3 million, and a list of merges."""


def no_duplicates(pairs: list[tuple[str, object]]) -> dict:
    """Raises for a key that is there twice: readers take different ones. An ``object_pairs_hook``."""
    seen = dict(pairs)
    if len(seen) != len(pairs):
        [(name, count)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r} expected once, got it {count} times")
    return seen


def loads(text: str, **options) -> object:
    """Calls `json.loads`; refuses more containers and keys than memory and time are for, and halves of
    surrogate pairs, which no text that can be written has."""
    if (count := text.count("{") + text.count("[")) > MOST_CONTAINERS:
        raise ValueError(f"expected at most {MOST_CONTAINERS} objects and lists, got {count} brackets")
    if (count := text.count(":")) > MOST_KEYS:
        raise ValueError(f"expected at most {MOST_KEYS} keys, got {count} colons")
    value = json.loads(text, **options)
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def why(error: Exception) -> str:
    """Returns what reading JSON failed at: what was expected, what was found, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error}: expected JSON, got {error.doc[error.pos : error.pos + 20]!r}"
    if isinstance(error, UnicodeDecodeError):
        return f"expected UTF-8, got {error.object[error.start : error.start + 1]!r} at byte {error.start}"
    if isinstance(error, UnicodeEncodeError):
        return f"expected characters, got {error.object[error.start]!r}, half of a surrogate pair"
    if isinstance(error, RecursionError):
        return "expected fewer levels of nesting, got more than can be read"
    if isinstance(error, OSError):
        return f"expected a file that can be read, got {error.strerror or error}"
    return str(error) if "expected" in str(error) else f"expected JSON, got {error}"


def read_object(path: Path, *, expected: str) -> dict:
    """Returns the object in ``path``; where that is missing, the error names what was ``expected`` there."""
    try:
        value = loads(read_regular(path, LARGEST).decode("utf-8"), object_pairs_hook=no_duplicates)
    except FileNotFoundError:
        raise BarError(f"{path}: not found; expected {expected}, got no such file") from None
    except BarError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BarError(f"{path}: not readable as JSON: {why(error)}") from None
    if not isinstance(value, dict):
        raise BarError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
