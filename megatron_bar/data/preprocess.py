"""Rows to token files: all cores, resumable after a kill to the same bytes, with a manifest of what went in.

The rows are cut into blocks whose borders depend on the source alone; each block is tokenised into a file
(blocks.py). What an interrupted run left in ``.NAME.partial`` is taken up by
the next one with the same source, tokenizer and options. At the end the blocks are put end to end into
NAME/tokens.bin, .idx (and .learn for chats), and the folder appears when it is whole.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from blake3 import blake3

from megatron_bar.data.blocks import USUAL, BlockMaker, Options, amount, make_blocks
from megatron_bar.data.indexed import Tokens, id_dtype, read_indexed, write_index
from megatron_bar.data.sources import Raw, Source, identity, raw_rows, taken_rows
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError, writing

BLOCK_ROWS = 20_000
BLOCK_BYTES = 4 << 20
"""Bounds of a block, whichever comes first: large for little overhead, small to lose little when killed."""
VERSION = 2
"""Of what rows become: an interrupted run of another version, and its token files, are not taken up."""
Say = Callable[[int, int], None]
"""Callback after each block: the source's bytes (or rows, where it has no bytes), and the tokens in it."""


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
    options: Options = USUAL,
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
    plan = _plan(source, root, text, options, dtype)
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
            # What is wrong with the input has to be changed, and then nothing here is of use.
            shutil.rmtree(work)
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
    maker = BlockMaker(source, text, dtype.name, options)
    numbers = taken_rows(source, root, seed=options.seed)
    bad: list[str] = []
    count = 0
    for done in make_blocks(maker, cut(source, root, numbers), work, processes):
        bad += done["bad"]
        say(done["amount"], done["tokens"])
        count += 1
    manifest = _assemble(work, count, dtype, masked=source.kind == "chat")
    files = plan.pop("files")
    manifest = plan | manifest | {"bad_rows": bad, "rows_taken": None if numbers is None else list(numbers)}
    if not manifest["tokens"]:
        raise BarError(f"{Path(root) / source.place}: no token in any row")
    manifest["tokens_hash"] = _file_hash(work / "whole/tokens.bin")
    place = Path(root) / source.place
    manifest["source_hashes"] = {
        str(place / name): _file_hash(place / name) for name in files if (place / name).is_file()
    }
    if identity(source, root) != files:
        raise BarError(f"{Path(root) / source.place}: changed while it was read; remove {work} and run again")
    (work / "whole/manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _dtype(wanted: str | None, tokenizer) -> np.dtype:
    if wanted == "uint16" and tokenizer.vocab_size > 1 << 16:
        raise BarError(
            f"{tokenizer.path}: a vocabulary of {tokenizer.vocab_size:,} does not fit uint16, "
            "which ends at 65,535"
        )
    return np.dtype(wanted) if wanted else id_dtype(tokenizer.vocab_size)


def _plan(source: Source, root: Path, text, options: Options, dtype: np.dtype) -> dict:
    """Returns all that the token files depend on; an interrupted run with the same is resumed."""
    fields = {key: value for key, value in asdict(source).items() if key != "domain"}
    return {
        "version": VERSION,
        "source": {k: str(value) if isinstance(value, Path) else value for k, value in fields.items()},
        "files": identity(source, root),
        "tokenizer": text.hash,
        "begin": list(text.begin),
        "options": asdict(options),
        "dtype": dtype.name,
    }


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


def cut(source: Source, root: Path, numbers: Iterable[int] | None) -> Iterator[list[Raw]]:
    """Yields the rows of ``source`` of these numbers, None: all, in blocks whose borders depend on the rows
    alone."""
    wanted = None if numbers is None else set(numbers)
    block: list[Raw] = []
    size = 0
    for number, (where, raw) in enumerate(raw_rows(source, root)):
        if wanted is not None and number not in wanted:
            continue
        block.append((where, raw))
        size += amount(raw)
        if len(block) == BLOCK_ROWS or size >= BLOCK_BYTES:
            yield block
            block = []
            size = 0
    if block:
        yield block


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
