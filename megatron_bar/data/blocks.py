"""Blocks of rows tokenised by all cores, each by one process into one file, written beside and renamed."""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice, starmap
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.sources import Raw, Source, parse
from megatron_bar.data.tokenizer import Pieces, load_tokenizer
from megatron_bar.errors import BarError


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the tokens depend on besides the source and the tokenizer."""

    template: str = "tulu"
    """Template of chats: see `ChatFormat`."""
    seed: int = 0
    """Seed of the sample of rows that a source's share takes."""
    verify: bool = False
    """Refuse a text that its ids do not decode back to."""
    skip_bad: bool = False
    """Leave bad rows out and report them, instead of stopping at the first."""
    dtype: str | None = None
    """Dtype of the ids, uint16 or int32; None: what the vocabulary needs."""


USUAL = Options()


@dataclass(frozen=True)
class Block:
    """What one process made of some rows."""

    ids: np.ndarray
    lengths: np.ndarray
    learn: np.ndarray
    """Empty for texts, of which everything is learnt."""
    bad: list[str]


def amount(raw: bytes | dict) -> int:
    """Returns the bytes of an unread line, or the characters of a row's texts."""
    if isinstance(raw, bytes):
        return len(raw)
    return sum(len(value) for value in raw.values() if isinstance(value, str))


class BlockMaker:
    """Makes a block's file; sent to the processes, each of which loads the tokenizer once."""

    def __init__(self, source: Source, text, dtype: str, options: Options):
        self.source = source
        self.tokenizer = text.path
        self.dtype = dtype
        self.options = options
        self._text = text
        self._chats = None

    def __getstate__(self):
        return vars(self) | {"_text": None, "_chats": None}

    def __call__(self, rows: list[Raw], path: Path) -> dict:
        total = sum(amount(raw) for _, raw in rows)
        if not path.exists():
            self._write(self.block(rows), path)
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {
                    "tokens": int(stored["lengths"].sum()),
                    "bad": json.loads(str(stored["bad"])),
                    "amount": total,
                }
        except (ValueError, KeyError, AttributeError, EOFError, BadZipFile) as error:
            raise BarError(
                f"{path}: expected what an interrupted run left here, got another file ({error}); run again"
            ) from None

    def _write(self, block: Block, path: Path) -> None:
        beside = path.with_suffix(".writing")
        with beside.open("wb") as file:
            bad = np.array(json.dumps(block.bad))
            np.savez(file, ids=block.ids, lengths=block.lengths, learn=block.learn, bad=bad)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)

    def block(self, rows: list[Raw]) -> Block:
        if self._text is None:
            self._text = load_tokenizer(self.tokenizer)
        if self._chats is None and self.source.kind == "chat":
            self._chats = ChatFormat(self._text, self.options.template)
        good = []
        bad = []
        for where, raw in rows:
            try:
                row = parse(raw, self.source.kind, where)
                if self._chats is None:
                    good.append(self._text.pieces(row, rendered=self.source.kind == "fim"))
                else:
                    good.append(self._chat(self._chats, row, where))
            except BarError as error:
                if not self.options.skip_bad:
                    raise
                bad.append(str(error))
        if self._chats is None:
            documents = self._texts(good, [None] * len(good) if bad else [where for where, _ in rows])
            masks = []
        else:
            documents = [chat.ids for chat in good]
            masks = [np.asarray(chat.mask, np.bool_) for chat in good]
        ids = [np.asarray(document, self.dtype) for document in documents]
        return Block(
            ids=np.concatenate(ids or [np.empty(0, self.dtype)]),
            lengths=np.array([len(document) for document in documents], np.int32),
            learn=np.concatenate(masks or [np.empty(0, np.bool_)]),
            bad=bad,
        )

    def _texts(self, texts: list[Pieces], wheres: list[str | None]) -> list[list[int]]:
        documents = self._text.documents(texts)
        if self.options.verify:
            for where, text, ids in zip(wheres, texts, documents, strict=True):
                self._verify(self._text, where, text, ids)
        return documents

    def _chat(self, chats: ChatFormat, row: dict, where: str):
        last_turn = self.source.last_turn
        return chats.render(row["messages"], tools=row.get("tools"), last_turn=last_turn, where=where)

    def _verify(self, text, where: str, pieces: Pieces, ids: list[int]) -> None:
        wanted = "".join(piece for piece in pieces if isinstance(piece, str))
        found = text.decode(ids)
        if found != wanted:
            pairs = enumerate(zip(wanted, found, strict=False))
            at = next((n for n, (a, b) in pairs if a != b), min(len(wanted), len(found)))
            part = slice(max(0, at - 10), at + 10)
            raise BarError(
                f"{where}: its tokens do not decode to it: "
                f"at character {at} {wanted[part]!r} became {found[part]!r}"
            )


def make_blocks(maker: BlockMaker, blocks: Iterator[list[Raw]], work: Path, processes: int) -> Iterator[dict]:
    """Yields what was made of every block, in order; no more than two a process are in memory."""
    paths = ((rows, work / f"{number:06d}.npz") for number, rows in enumerate(blocks))
    yield from spread(maker, paths, processes)


def spread(function: Callable, calls: Iterable[tuple], processes: int) -> Iterator:
    """Yields what ``function`` returns for the arguments of each of ``calls``, in order; no more than two
    calls a process are in memory."""
    if processes == 1:
        yield from starmap(function, calls)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of each process: they are the parallelism
    context = multiprocessing.get_context("spawn")
    begin = {"initializer": _begin, "initargs": (function,)}
    with ProcessPoolExecutor(processes, mp_context=context, **begin) as pool:
        started = (pool.submit(_call, *arguments) for arguments in calls)
        running: list[Future] = list(islice(started, 2 * processes))
        try:
            while running:
                done = running.pop(0).result()
                running += islice(started, 1)
                yield done
        finally:
            for future in running:
                future.cancel()


def _begin(function: Callable) -> None:
    """Keeps ``function`` in this process, with all that it loads, which a call could not bring along."""
    _call.function = function


def _call(*arguments):
    return _call.function(*arguments)
