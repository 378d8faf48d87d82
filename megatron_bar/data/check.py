"""What every row that a run will use must stand before its first step: it is read and laid out as it will be,
its verifier can use its truth, and it fits where it must. No ids are made but of what has a length to keep.

Read again where it is used (blocks.py, run/data.py): a row refused here is refused there with the same words.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_bar.data.blocks import spread
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.preprocess import cut
from megatron_bar.data.sources import ANSWERED, ANSWERS, TEXTS, Raw, Source, parse, taken_rows
from megatron_bar.data.tokenizer import HOLE, load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.verifiers import check_task


@dataclass(frozen=True, kw_only=True)
class Use:
    """Rows, and what a run does with them."""

    source: Source
    tokenizer: Path
    """A folder with the tokenizer of the model that learns from them."""
    template: str
    seed: int = 0
    """Of the sample that the source's share takes."""
    spare: bool = True
    """Whether the run can do without some."""
    room: int | None = None
    """Tokens that a prompt may have; of what is learnt from, where longer ones are an error. None: any."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found in some rows of a use."""

    number: int
    """Of the use."""
    rows: int
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Where (file:line), and why."""
    notes: Counter = field(default_factory=Counter)
    """Rows that are taken otherwise than they may have been meant: see `NOTES`."""


NOTES = {
    ANSWERED: "tasks end with an answer, which no prompt shows",
    "spelled": "texts spell special tokens, which stay text (a source of kind fim has those of filling in)",
    "empty": "texts are empty: end-of-text alone",
}


def check_uses(uses: list[Use], root: Path, *, processes: int) -> Iterator[Checked]:
    """Yields what was found, block by block of rows, use after use.

    ``root``: what the sources' paths start from.
    """
    blocks = (
        (number, rows)
        for number, use in enumerate(uses)
        for rows in cut(use.source, root, taken_rows(use.source, root, seed=use.seed))
    )
    yield from spread(_Checks(uses), blocks, processes)


def prompt_of(chats: ChatFormat, row: dict, room: int | None, where: str) -> list[int]:
    """Returns the prompt of a parsed task, with ``room`` for so many tokens; its truth is looked at first."""
    check_task(row["verifier"], row["truth"], where)
    prompt = chats.prompt(row["messages"], tools=row.get("tools"), where=where)
    if room is not None and len(prompt) > room:
        raise BarError(f"{where}: a prompt of {len(prompt)} tokens; the stage's rows leave room for {room}")
    return prompt


class _Checks:
    """Checks blocks; sent to the processes, each of which loads what it needs once."""

    def __init__(self, uses: list[Use]):
        self.uses = uses
        self._loaded: dict = {}

    def __getstate__(self):
        return {"uses": self.uses, "_loaded": {}}

    def __call__(self, number: int, rows: list[Raw]) -> Checked:
        use = self.uses[number]
        look = _Look(use, self._text(use.tokenizer), lambda: self._chats(use))
        found = Checked(number=number, rows=len(rows))
        for where, raw in rows:
            try:
                for note in look.at(parse(raw, use.source.kind, where), where):
                    found.notes[note] += 1
            except BarError as error:
                found.refused.append((where, str(error).removeprefix(f"{where}: ")))
        return found

    def _text(self, path: Path):
        return self._load(path, lambda: load_tokenizer(path))

    def _chats(self, use: Use) -> ChatFormat:
        name = use.tokenizer, use.template
        return self._load(name, lambda: ChatFormat(self._text(use.tokenizer), use.template))

    def _load(self, name, load: Callable):
        if name not in self._loaded:
            self._loaded[name] = load()
        return self._loaded[name]


class _Look:
    """Looks at the rows of one use; returns names of `NOTES`."""

    def __init__(self, use: Use, text, chats: Callable[[], ChatFormat]):
        """Raises where the tokenizer does not do for any row."""
        self.use = use
        self.text = text
        self.chats = None if use.source.kind in TEXTS else chats()
        kinds = {"text": self.of_text, "fim": self.of_text, "chat": self.of_chat, "task": self.of_task}
        self.at = kinds.get(use.source.kind, self.of_preference)
        if use.source.kind == "fim":
            text.hole_ids()
        names = sorted(
            text.special.keys() - (HOLE if use.source.kind == "fim" else ()), key=len, reverse=True
        )
        self._spelled = re.compile("|".join(map(re.escape, names)) or "(?!)")

    def of_text(self, row: dict, where: str) -> list[str]:
        pieces = self.text.pieces(row, rendered=self.use.source.kind == "fim")
        if self.use.room is not None:
            (ids,) = self.text.documents([pieces])
            self._fits(len(ids), "text", where)
        written = [pieces] if isinstance(pieces, str) else [part for part in pieces if isinstance(part, str)]
        if not any(written):
            return ["empty"]
        return ["spelled"] if any(map(self._spelled.search, written)) else []

    def of_chat(self, row: dict, where: str) -> list[str]:
        more = {"tools": row.get("tools"), "last_turn": self.use.source.last_turn, "where": where}
        if self.use.room is None:
            self.chats.check(row["messages"], **more)
        else:
            self._fits(len(self.chats.render(row["messages"], **more).ids), "chat", where)
        return []

    def of_task(self, row: dict, where: str) -> list[str]:
        prompt_of(self.chats, row, self.use.room, where)
        return [ANSWERED] if ANSWERED in row else []

    def of_preference(self, row: dict, where: str) -> list[str]:
        size = 0
        for name in ANSWERS:
            chat = [*row["messages"], row[name]]
            more = {"tools": row.get("tools"), "last_turn": True, "where": f"{where}: {name}"}
            if self.use.room is None:
                self.chats.check(chat, **more)
            else:
                size += len(self.chats.render(chat, **more).ids)
        self._fits(size, "pair", where)
        return []

    def _fits(self, size: int, what: str, where: str) -> None:
        if self.use.room is not None and size > self.use.room:
            raise BarError(f"{where}: a {what} of {size} tokens; a row holds {self.use.room}")
