"""The items of a published benchmark that are asked: rows of a data folder, their prompts, and what of an
answer is graded."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from blake3 import blake3

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.prepare import MANIFEST, read_manifest
from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.answers import Turn, Unit
from megatron_bar.evaluation.benchmarks.benchmark import Decoding, Messages, PublishedBenchmark
from megatron_bar.weights.json_file import loads, why

PROTOCOLS = ("published", "greedy")
GOLDEN = (5**0.5 - 1) / 2


def decoding_of(benchmark: PublishedBenchmark, protocol: str) -> Decoding:
    """Returns how answers are drawn: as published, or the likeliest tokens and one answer."""
    if protocol == "published":
        return benchmark.decoding
    return replace(benchmark.decoding, temperature=0.0, top_p=1.0, answers=1)


def read_items(benchmark: PublishedBenchmark, path: Path) -> tuple[list[dict], dict]:
    """Returns all rows of the benchmark's file, each with its place as ``index``, and the origin that a
    manifest beside it names.

    Raises BarError unless the rows are as many as published and have the benchmark's columns, and the file is
    the one that its manifest is of.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BarError(f"{path}: expected a file that can be read, got {error.strerror}") from None
    made = read_manifest(path.parent).get(path.name)
    if made is not None and made.get("blake3") != blake3(data).hexdigest():
        raise BarError(f"{path}: expected the file that {MANIFEST} beside it is of, got other bytes")
    rows = [_row(line, f"{path}:{n}", benchmark) for n, line in enumerate(data.split(b"\n"), 1) if line]
    if len(rows) != benchmark.rows:
        raise BarError(
            f"{path}: expected the {benchmark.rows:,} rows of the published set, got {len(rows):,}"
        )
    origin = {key: made[key] for key in ("commit", "licence") if made.get(key)} if made else {}
    return [row | {"index": index} for index, row in enumerate(rows)], origin


def _row(line: bytes, where: str, benchmark: PublishedBenchmark) -> dict:
    try:
        row = loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise BarError(f"{where}: not readable as JSON: {why(error)}") from None
    missing = [name for name in benchmark.columns if not isinstance(row, dict) or name not in row]
    if missing:
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise BarError(f"{where}: expected a column {missing[0]}, got {found:.200}")
    return row


def spread(rows: list[dict], limit: int | None) -> list[dict]:
    """Returns ``limit`` of the rows, evenly spread over the file, in its order; all where it has no more.
    Those of a smaller limit are among them."""
    # Multiples of the golden ratio, modulo 1, fill the line evenly however many there are (Knuth 6.4).
    chosen = sorted(range(len(rows)), key=lambda n: n * GOLDEN % 1)[:limit]
    return [rows[n] for n in sorted(chosen)]


def said(text: str) -> str:
    """Returns what is graded of an answer: what stands behind its last thoughts, without the tags of an
    answer; nothing where the thoughts were cut off."""
    _thoughts, closed, rest = text.rpartition("</think>")
    if not closed and text.lstrip().startswith("<think>"):
        return ""
    return re.sub("</?answer>", "", rest).strip()


@dataclass(frozen=True, kw_only=True)
class Prompt:
    ids: list[int]
    room: int
    """New tokens that it leaves room for; none where it is too long."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Items:
    """A benchmark's rows as they are asked of a model."""

    benchmark: PublishedBenchmark
    rows: list[dict]
    """Those that are asked."""
    decoding: Decoding
    chats: ChatFormat
    positions: int
    """Of the model: those of a prompt and its answer together."""

    @property
    def units(self) -> list[Unit]:
        return [(row["index"], n) for row in self.rows for n in range(self.decoding.answers)]

    @cached_property
    def by_index(self) -> dict[int, dict]:
        return {row["index"]: row for row in self.rows}

    def messages(self, row: dict, turns: Sequence[Turn]) -> Messages | None:
        """Returns what is asked of ``row`` behind the answers ``turns``; None: nothing more."""
        return self.benchmark.ask(row, [said(turn.text) for turn in turns])

    def prompt(self, row: dict, number: int, turns: Sequence[Turn]) -> Prompt | None:
        """Returns the next prompt of answer ``number`` to ``row``; None when nothing more is asked."""
        messages = self.messages(row, turns)
        if messages is None:
            return None
        name = self.benchmark.name
        where = f"{name}.jsonl:{row['index'] + 1}"
        ids = self.chats.prompt(messages, tools=self.benchmark.tools(row), where=where)
        room = max(0, min(self.decoding.max_new_tokens, self.positions - len(ids)))
        place = json.dumps([name, row["index"], number, len(turns)])
        seed = int.from_bytes(blake3(place.encode()).digest()[:4]) >> 1
        return Prompt(ids=ids, room=room, seed=seed)
