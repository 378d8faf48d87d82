"""Rows to token files: all cores, resumable after a kill to the same bytes, with a manifest of what went in.

The rows are cut into blocks whose borders depend on the source alone; each block is tokenised by one process
into one file, written beside and renamed. What an interrupted run left in ``.NAME.partial`` is taken up by
the next one with the same source, tokenizer and options. At the end the blocks are put end to end into
NAME/tokens.bin, .idx (and .learn for chats), and the folder appears when it is whole.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from blake3 import blake3

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import Tokens, id_dtype, read_indexed, write_index
from megatron_bar.data.sources import Raw, Source, parse, raw_rows, taken_rows
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError, writing

BLOCK_ROWS = 20_000
BLOCK_BYTES = 4 << 20
"""A block ends at the first of these: large enough for little overhead, small enough to lose little when
killed."""
VERSION = 1
Say = Callable[[int, int], None]
"""Callback after each block, given the source's bytes (or rows, where they have no bytes) and the tokens in
it."""


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


@dataclass(frozen=True)
class Block:
    """What one process made of some rows."""

    ids: np.ndarray
    lengths: np.ndarray
    learn: np.ndarray
    """Empty for texts, of which everything is learnt."""
    bad: list[str]


def prepared(out: Path | str, *, vocab_size: int | None = None) -> Tokens:
    """Returns the tokens that `preprocess` left in ``out``."""
    return read_indexed(Path(out) / "tokens", vocab_size=vocab_size)


def read_manifest(out: Path | str) -> dict:
    return json.loads((Path(out) / "manifest.json").read_text(encoding="utf-8"))


def preprocess(
    source: Source,
    root: Path,
    tokenizer: Path,
    out: Path,
    options: Options = Options(),
    *,
    processes: int = 1,
    say: Say = lambda amount, tokens: None,
) -> dict:
    """Writes the folder ``out``; returns its manifest. ``root`` is what the source's path is relative to."""
    out = Path(out)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise BarError(
            f"{out}: expected a new or empty folder, got a file, a link or a folder that is not empty"
        )
    text = load_tokenizer(tokenizer)
    dtype = _dtype(options.dtype, text)
    plan = {
        "version": VERSION,
        "source": {key: _plain(value) for key, value in asdict(source).items() if key != "domain"},
        "files": _identity(source, root),
        "tokenizer": text.hash,
        "options": asdict(options),
        "dtype": dtype.name,
    }
    work = out.with_name(f".{out.name}.partial")
    with writing(work):  # after a full disk what is finished is taken up by the next run
        try:
            _take_up(work, plan)
            manifest = _make(source, root, text, work, options, plan, dtype, processes=processes, say=say)
            if out.exists():
                out.rmdir()
            (work / "whole").rename(out)
            shutil.rmtree(work)
        except BarError:
            shutil.rmtree(
                work
            )  # what is wrong with the input has to be changed, and then nothing here is of use
            raise
    return manifest


def _make(
    source: Source,
    root: Path,
    text,
    work: Path,
    options: Options,
    plan: dict,
    dtype,
    *,
    processes: int,
    say: Say,
):
    """Fills ``work/whole``; returns the manifest that it holds."""
    maker = _Maker(source.kind, text, dtype.name, source.last_turn, options)
    numbers = taken_rows(source, root, seed=options.seed)
    bad: list[str] = []
    count = 0
    for count, done in enumerate(_all_blocks(maker, _cut(source, root, numbers), work, processes), 1):  # noqa: B007
        bad += done["bad"]
        say(done["amount"], done["tokens"])
    manifest = _assemble(work, count, dtype, masked=source.kind == "chat")
    files = plan.pop("files")
    manifest = plan | manifest | {"bad_rows": bad, "rows_taken": None if numbers is None else list(numbers)}
    if not manifest["tokens"]:
        raise BarError(f"{Path(root) / source.place}: no token in any row")
    manifest["tokens_hash"] = _file_hash(work / "whole/tokens.bin")
    manifest["source_hashes"] = {name: _file_hash(Path(name)) for name in files}
    if _identity(source, root) != files:
        raise BarError(f"{Path(root) / source.place}: changed while it was read; remove {work} and run again")
    (work / "whole/manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _dtype(wanted: str | None, tokenizer) -> np.dtype:
    found = id_dtype(tokenizer.vocab_size)
    if wanted == "uint16" and tokenizer.vocab_size > 1 << 16:
        raise BarError(
            f"{tokenizer.path}: a vocabulary of {tokenizer.vocab_size:,} does not fit uint16, "
            "which ends at 65,535"
        )
    return np.dtype(wanted) if wanted else found


def _plain(value):
    return str(value) if isinstance(value, Path) else value


def _identity(source: Source, root: Path) -> dict[str, list[int]]:
    """Returns size and time of change of every file: enough to notice, when a run is resumed, that they are
    not the same."""
    path = Path(root) / source.place
    files = (
        sorted(p for p in path.rglob("*") if p.is_file())
        if path.is_dir()
        else [path]
        if path.exists()
        else []
    )
    return {str(p): [p.stat().st_size, p.stat().st_mtime_ns] for p in files}


def _take_up(work: Path, plan: dict) -> None:
    """Makes an empty working folder with ``plan``, or keeps the one of an earlier run with the same plan."""
    file = work / "plan.json"
    if file.is_file() and file.read_text(encoding="utf-8") == json.dumps(plan):
        shutil.rmtree(work / "whole", ignore_errors=True)
        for path in work.glob("*.writing"):
            path.unlink()
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    beside = work / "plan.writing"
    beside.write_text(json.dumps(plan), encoding="utf-8")
    beside.rename(file)


def _cut(source: Source, root: Path, numbers) -> Iterator[list[Raw]]:
    wanted = None if numbers is None else set(numbers)
    block: list[Raw] = []
    size = 0
    for number, (where, raw) in enumerate(raw_rows(source, root)):
        if wanted is not None and number not in wanted:
            continue
        block.append((where, raw))
        size += _amount(raw)
        if len(block) == BLOCK_ROWS or size >= BLOCK_BYTES:
            yield block
            block = []
            size = 0
    if block:
        yield block


def _amount(raw: bytes | dict) -> int:
    return (
        len(raw)
        if isinstance(raw, bytes)
        else sum(len(value) for value in raw.values() if isinstance(value, str))
    )


class _Maker:
    """Makes a block's file; sent to the processes, each of which loads the tokenizer once."""

    def __init__(self, kind: str, text, dtype: str, last_turn: bool, options: Options):
        self.kind = kind
        self.tokenizer = text.path
        self.dtype = dtype
        self.last_turn = last_turn
        self.options = options
        self._text = text
        self._chats = None

    def __getstate__(self):
        return vars(self) | {"_text": None, "_chats": None}

    def __call__(self, rows: list[Raw], path: Path) -> dict:
        amount = sum(_amount(raw) for _, raw in rows)
        if not path.exists():
            self._write(self.block(rows), path)
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {
                    "tokens": int(stored["lengths"].sum()),
                    "bad": json.loads(str(stored["bad"])),
                    "amount": amount,
                }
        except (ValueError, KeyError, AttributeError, EOFError, BadZipFile) as error:
            raise BarError(
                f"{path}: expected what an interrupted run left here, got another file ({error}); run again"
            ) from None

    def _write(self, block: Block, path: Path) -> None:
        beside = path.with_suffix(".writing")
        with beside.open("wb") as file:
            np.savez(
                file,
                ids=block.ids,
                lengths=block.lengths,
                learn=block.learn,
                bad=np.array(json.dumps(block.bad)),
            )
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)

    def block(self, rows: list[Raw]) -> Block:
        if self._text is None:
            self._text = load_tokenizer(self.tokenizer)
        if self._chats is None and self.kind == "chat":
            self._chats = ChatFormat(self._text, self.options.template)
        text = self._text
        chats = self._chats
        good = []
        bad = []
        for where, raw in rows:
            try:
                row = parse(raw, self.kind, where)
                good.append(row["text"] if chats is None else self._chat(chats, row, where))
            except BarError as error:
                if not self.options.skip_bad:
                    raise
                bad.append(str(error))
        if chats is None:
            ids = [[*found, text.eos_id] for found in text.encode_texts(good)]
            if self.options.verify:
                wheres = [where for where, _ in rows] if not bad else [None] * len(good)
                for where, wanted, found in zip(wheres, good, ids, strict=True):
                    self._verify(text, where, wanted, found)
            learn = np.empty(0, np.bool_)
        else:
            ids = [chat.ids for chat in good]
            learn = np.concatenate(
                [np.asarray(chat.mask, np.bool_) for chat in good] or [np.empty(0, np.bool_)]
            )
        return Block(
            ids=np.concatenate([np.asarray(one, self.dtype) for one in ids] or [np.empty(0, self.dtype)]),
            lengths=np.array([len(one) for one in ids], np.int32),
            learn=learn,
            bad=bad,
        )

    def _chat(self, chats: ChatFormat, row: dict, where: str):
        return chats.render(row["messages"], tools=row.get("tools"), last_turn=self.last_turn, where=where)

    def _verify(self, text, where: str, wanted: str, ids: list[int]) -> None:
        found = text.decode(ids)
        if found != wanted:
            at = next(
                (n for n, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b),
                min(len(wanted), len(found)),
            )
            part = slice(max(0, at - 10), at + 10)
            raise BarError(
                f"{where}: its tokens do not decode to it: "
                f"at character {at} {wanted[part]!r} became {found[part]!r}"
            )


def _all_blocks(maker: _Maker, blocks: Iterator[list[Raw]], work: Path, processes: int) -> Iterator[dict]:
    """Yields what was made of every block, in order; no more than two a process are in memory."""
    paths = ((work / f"{number:06d}.npz", rows) for number, rows in enumerate(blocks))
    if processes == 1:
        for path, rows in paths:
            yield maker(rows, path)
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of each process: they are the parallelism
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        running: list[Future] = [
            pool.submit(maker, rows, path) for path, rows in islice(paths, 2 * processes)
        ]
        try:
            while running:
                done = running.pop(0).result()
                running += [pool.submit(maker, rows, path) for path, rows in islice(paths, 1)]
                yield done
        finally:
            for future in running:
                future.cancel()


def _assemble(work: Path, count: int, dtype: np.dtype, *, masked: bool) -> dict:
    whole = work / "whole"
    whole.mkdir()
    lengths = []
    learnt = 0
    with (whole / "tokens.bin").open("wb") as ids, (whole / "tokens.learn").open("wb") as learn:
        for number in range(count):
            with np.load(work / f"{number:06d}.npz", allow_pickle=False) as block:
                block["ids"].tofile(ids)
                block["learn"].tofile(learn)
                learnt += int(np.count_nonzero(block["learn"]))
                lengths.append(block["lengths"])
    sizes = np.concatenate(lengths)
    write_index(whole / "tokens.idx", sizes, dtype)
    total = int(sizes.sum(dtype=np.int64))
    if not masked:
        (whole / "tokens.learn").unlink()
    for path in whole.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return {"documents": len(sizes), "tokens": total, "learnt": learnt if masked else total}


def _file_hash(path: Path) -> str:
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
