"""Answers to a benchmark's items on disk, a file of JSON lines that any number of processes fill.

The first line says what they are answers of: model, protocol, decoding, data. Each other line is one answer,
all its turns. Lines are appended whole and reach the disk before the next; a torn one, of a process that was
killed or a disk that was full, is cut off by the next writer. Who is at work on an answer holds a byte of
`.NAME.lock`, which the system lets go of when its holder ends, however it does.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from megatron_bar.errors import BarError, writing
from megatron_bar.weights.json_file import why

FORMAT = "megatron_bar.answers/1"
Unit = tuple[int, int]
"""An item's number in its file, and the number of an answer to it."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a model wrote at one go."""

    text: str
    """As it wrote it, with its thoughts; special tokens left out."""
    tokens: int | None
    """None: the server did not say."""
    finished: bool
    """Whether it ended by itself, not at the length limit."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    turns: tuple[Turn, ...]
    too_long: bool = False
    """Whether it ends where a prompt left no room for an answer in the model's positions."""


class AnswerFile:
    """The answers to ``units`` in the file ``path``. One object of a path in a process: its locks are the
    process's.

    ``about``: JSON values that say of what; a file of others is refused, but for what ``about`` does not
    name. ``write``: whether more answers are to come.
    """

    def __init__(self, path: Path, about: dict, units: Iterable[Unit], *, each: int, write: bool):
        """``each``: answers to an item."""
        self.path = path
        self.each = each
        self.found: dict[Unit, Answer] = {}
        self._missing = dict.fromkeys(units)
        self._wanted = set(self._missing)
        self._held: set[Unit] = set()
        self._read = 0
        self.through: str | None = None
        """Who gave the answers, by the file's head."""
        self._lock = None
        if write:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = path.with_name(f".{path.stem}.lock").open("ab")
                path.open("ab").close()
            self._append([{"format": FORMAT, **about}], first=True)
        if path.exists():
            self._check(about)
            self._refresh()

    @property
    def units(self) -> int:
        return len(self._wanted)

    @property
    def complete(self) -> bool:
        return not self._missing

    def close(self) -> None:
        """Lets go of what this process holds."""
        if self._lock is not None:
            self._lock.close()

    def claim(self, most: int) -> list[Unit]:
        """Returns at most ``most`` units without an answer, held by this process from now on; none where
        others hold all that are left."""
        claimed = []
        for unit in self._missing:
            if len(claimed) == most:
                break
            if unit not in self._held and self._take(unit):
                claimed.append(unit)
        self._refresh()  # who held them a moment ago may have answered them
        for unit in claimed:
            if unit in self.found:
                self._let_go(unit)
        return [unit for unit in claimed if unit not in self.found]

    def add(self, answers: Mapping[Unit, Answer]) -> None:
        """Appends answers to units that this process holds, and lets go of those."""
        lines = [{"item": unit[0], "answer": unit[1], **asdict(answer)} for unit, answer in answers.items()]
        self._append(lines)
        self._refresh()
        for unit in answers:
            self._let_go(unit)

    def _take(self, unit: Unit) -> bool:
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._byte(unit))
        except (BlockingIOError, PermissionError):
            return False
        self._held.add(unit)
        return True

    def _let_go(self, unit: Unit) -> None:
        fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, self._byte(unit))
        self._held.discard(unit)

    def _byte(self, unit: Unit) -> int:
        return unit[0] * self.each + unit[1]

    def _append(self, lines: list[dict], *, first: bool = False) -> None:
        """Appends lines behind the last whole one; ``first``: only to a file without any."""
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with writing(self.path), self.path.open("r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = _whole(file)
            if first and end:
                return
            try:
                file.truncate(end)
                file.seek(end)
                left = data
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(_whole(file))  # whole lines stay: somebody may have read them
                raise

    def _check(self, about: dict) -> None:
        """Raises BarError unless the file is of what ``about`` says."""
        with self.path.open("rb") as file:
            line = file.readline()
        found = _object(line, f"{self.path}:1")
        if found.get("format") != FORMAT:
            raise BarError(f"{self.path}: format expected {FORMAT!r}, got {found.get('format')!r:.80}")
        for key, value in json.loads(json.dumps(about)).items():
            if found.get(key) != value:
                raise BarError(
                    f"{self.path}: answers expected of {key} {_told(value)}, got those of "
                    f"{_told(found.get(key))}; give another folder (--answers DIR)"
                )
        self.through = found.get("through")
        self._read = len(line)

    def _refresh(self) -> None:
        """Reads the whole lines that came since the last time."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            unit, answer = self._parsed(line)
            self._read += len(line)
            if unit in self._wanted:
                self.found.setdefault(unit, answer)
                self._missing.pop(unit, None)

    def _parsed(self, line: bytes) -> tuple[Unit, Answer]:
        where = f"{self.path}: byte {self._read}"
        found = _object(line, where)
        try:
            turns = tuple(Turn(**turn) for turn in found["turns"])
            return (found["item"], found["answer"]), Answer(turns=turns, too_long=found["too_long"])
        except (KeyError, TypeError) as error:
            raise BarError(f"{where}: expected an answer, got {found!r:.80}: {error}") from None


def _whole(file: BinaryIO) -> int:
    """Returns the number of bytes up to the end of the last whole line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _object(line: bytes, where: str) -> dict:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BarError(f"{where}: not readable as JSON: {why(error)}") from None
    if not isinstance(found, dict):
        raise BarError(f"{where}: expected an object, got {found!r:.80}")
    return found


def _told(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
