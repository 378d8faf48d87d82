"""Files of rows: texts, chats and tasks as JSONL, and the stratified share of them that router training takes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from megatron_bar.data.batch import Document
from megatron_bar.data.chat import render
from megatron_bar.errors import BarError


@dataclass(frozen=True, kw_only=True)
class Source:
    """One JSONL file and the share of its rows that is used."""

    path: Path
    """Relative to the recipe's data folder unless absolute."""
    kind: Literal["text", "chat", "task"]
    """Rows ``{"text"}``, ``{"messages"}``, or ``{"messages", "verifier", "truth"}``."""
    share: float = 1.0
    """A seeded sample of this fraction of the rows, at least one; the same rows for the same seed."""

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise BarError(f"source {self.path}: share must be within 0 and 1, got {self.share}")


_KEYS = {"text": ("text",), "chat": ("messages",), "task": ("messages", "verifier", "truth")}


def read_rows(source: Source, root: Path, *, seed: int = 0) -> list[tuple[str, dict]]:
    """(where, row) of the rows taken, in file order; ``where`` names file and line for later errors."""
    path = root / source.path
    rows = list(_lines(path, _KEYS[source.kind]))
    if not rows:
        raise BarError(f"{path}: expected at least one row, got none")
    if source.share < 1:
        count = max(1, round(source.share * len(rows)))
        rows = [rows[n] for n in sorted(Random(f"{seed}/{source.path}").sample(range(len(rows)), count))]
    return rows


def _lines(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}:{number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise BarError(f"{where}: not a JSON row: {error}") from None
                missing = [key for key in keys if not isinstance(row, dict) or key not in row]
                if missing:
                    raise BarError(f"{where}: expected a row with {', '.join(keys)}; {', '.join(missing)} is missing")
                yield where, row
    except FileNotFoundError:
        raise BarError(f"{path}: not found; expected a JSONL file") from None
    except UnicodeDecodeError as error:
        raise BarError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None


def documents(sources: tuple[Source, ...], root: Path, tokenizer, *, seed: int = 0) -> list[Document]:
    """Token ids and loss mask of every row: all of a text and its end-of-text, of a chat the assistant's tokens."""
    found: list[Document] = []
    for source in sources:
        for where, row in read_rows(source, root, seed=seed):
            if source.kind == "text":
                if not isinstance(row["text"], str):
                    raise BarError(f"{where}: text must be a string, got {type(row['text']).__name__}")
                ids = [*tokenizer.encode_text(row["text"]), tokenizer.eos_id]
                found.append((ids, [True] * len(ids)))
            else:
                chat = render(row["messages"], tokenizer, where=where)
                found.append((chat.ids, chat.mask))
    return found
