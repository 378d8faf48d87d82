"""Spoiled files of five kinds, each through the tool that a user would run: one line with both sides, and
nothing left behind.

The files are the tables of the tests beside the code; here they are counted.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from data.test_indexed import BAD as BAD_TOKENS
from data.test_sources import BAD_FILES, BAD_ROWS, GOOD, lines
from folders import NOT_FINITE, SPOILED, SPOILED_MOE, save_hf
from scripts import ROOT, refused
from test_convert import BAD_CHECKPOINTS
from weights.test_folder import BAD_INDEX
from weights.test_hf_config import BAD as BAD_CONFIGS
from weights.test_hf_config import PLAIN
from weights.test_safetensors_io import BAD as BAD_HEADERS
from weights.test_safetensors_io import by_hand

from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.weights.folder import INDEX, SINGLE

ONE_SIDED = {"no metadata", "empty metadata", "truncated metadata", "metadata of text", "zeros for data"}
"""Checkpoints of which the line does not say yet what was expected and what was got."""


@dataclass(frozen=True, kw_only=True)
class Case:
    kind: str
    name: str
    start: str
    """Of what good folder a copy is spoiled."""
    spoil: Callable[[Path], object]
    tool: str
    arguments: str
    """Words in capitals stand for paths."""
    message: str


def edit_index(change, folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"], sorted(set(index["weight_map"].values())))
    (folder / INDEX).write_text(json.dumps(index))


def write_header(header, size: int, folder: Path) -> None:
    by_hand(folder / SINGLE, header, bytes(size))


def write(name: str, data: bytes | None, folder: Path) -> None:
    if data is not None:
        (folder / name).write_bytes(data)


def write_tokens(idx: bytes | None, size: int | None, folder: Path) -> None:
    write("x.idx", idx, folder)
    write("x.bin", None if size is None else np.arange(size // 2, dtype=np.uint16).tobytes(), folder)


IMPORT = {"tool": "tools/import_hf.py", "arguments": "--hf SPOILED --out OUT"}
EXPORT = {"tool": "tools/export_hf.py", "arguments": "--checkpoint SPOILED --out OUT"}
SOURCE = json.dumps(
    [{"path": "x", "kind": "tokens", "domain": "", "share": 1.0, "last_turn": False}], separators=(",", ":")
)
TRAIN = {
    "tool": "examples/pretrain_bar.py",
    "arguments": "OWN_DATA:recipe --out OUT --set base=DENSE anchor=DENSE data=SPOILED experts.math.sft.data="
    + SOURCE,
}


def preprocess(name: str, kind: str) -> dict[str, str]:
    arguments = f"--input SPOILED/{name} --kind {kind} --tokenizer TOKENIZER --out OUT --processes 1"
    return {"tool": "tools/preprocess_data.py", "arguments": arguments}


def cases() -> Iterator[Case]:
    for name, (spoil, message) in (SPOILED | SPOILED_MOE | NOT_FINITE).items():
        kind = "config" if r"config\.json: " in message else "safetensors"
        yield Case(kind=kind, name=name, start="branched", spoil=spoil, message=message, **IMPORT)
    for name, (header, size, message) in BAD_HEADERS.items():
        spoil = partial(write_header, header, size)
        yield Case(kind="safetensors", name=name, start="branched", spoil=spoil, message=message, **IMPORT)
    for name, (change, message) in BAD_INDEX.items():
        spoil = partial(edit_index, change)
        yield Case(
            kind="safetensors", name=f"index: {name}", start="sharded", spoil=spoil, message=message, **IMPORT
        )
    for name, (changes, message) in BAD_CONFIGS.items():
        text = json.dumps({key: value for key, value in (PLAIN | changes).items() if value is not None})
        spoil = partial(write, "config.json", text.encode())
        yield Case(
            kind="config",
            name=name,
            start="branched",
            spoil=spoil,
            message=rf"config\.json: {message}",
            **IMPORT,
        )
    for name, (kind, row, message) in BAD_ROWS.items():
        if kind in ("task", "preference"):  # no tool reads them on their own
            continue
        spoil = partial(write, "x.jsonl", lines([GOOD[kind], row, GOOD[kind]]))
        yield Case(
            kind="rows", name=name, start="empty", spoil=spoil, message=message, **preprocess("x.jsonl", kind)
        )
    for name, (file, data, message) in BAD_FILES.items():
        spoil = partial(write, file, data)
        yield Case(
            kind="rows",
            name=f"file: {name}",
            start="empty",
            spoil=spoil,
            message=message,
            **preprocess(file, "text"),
        )
    for name, (idx, size, message) in BAD_TOKENS.items():
        if message is not None:
            spoil = partial(write_tokens, idx, size)
            yield Case(kind="tokens", name=name, start="empty", spoil=spoil, message=message, **TRAIN)
    for name, (spoil, message) in BAD_CHECKPOINTS.items():
        yield Case(kind="checkpoint", name=name, start="checkpoint", spoil=spoil, message=message, **EXPORT)


@pytest.fixture
def places(tmp_path_factory, inline, dense, branched) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("places")
    (root / "empty").mkdir()
    save_hf(root / "sharded", experts=3, seed=4, dtype="bfloat16", shard="5KB")
    save_hf(root / "two", experts=2, seed=1, dtype="bfloat16")
    assert inline("import_hf", "--hf", root / "two", "--out", root / "checkpoint")[0] == 0
    train_tokenizer(["one two three"] * 9, root / "tokenizer", vocab_size=300)
    starts = {path.name: path for path in root.iterdir()} | {"branched": branched}
    return starts | {
        "DENSE": dense,
        "TOKENIZER": root / "tokenizer",
        "OWN_DATA": ROOT / "examples/own_data.py",
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.faults)], ids=["sample", "all"])
def test_every_spoiled_file_is_refused_in_one_line_that_says_both_sides(
    every, tmp_path, places, run, record_property
):
    kinds, seen, problems = Counter(), set(), []
    for case in islice(cases(), 0, None, every):
        folder = tmp_path / str(kinds.total())
        broken = shutil.copytree(places[case.start], folder / "spoiled")
        case.spoil(broken)
        before = contents(folder)
        paths = places | {"SPOILED": broken, "OUT": folder / "out"}
        arguments = re.sub(
            "SPOILED|OUT|DENSE|TOKENIZER|OWN_DATA",
            lambda word, paths=paths: str(paths[word[0]]),
            case.arguments,
        )
        line = refused(run(case.tool, *arguments.split()))
        named = str(broken) in line and re.search(case.message, line)
        both_sides = re.search(r"expected .*\bgot\b|must be .*\bgot\b", line) or case.name in ONE_SIDED
        kept = contents(folder) == before and sorted(path.name for path in folder.iterdir()) == ["spoiled"]
        if not (named and both_sides and kept):
            problems.append(f"{case.kind}, {case.name}: {line}")
        seen.add(blake3(repr((case.start, sorted(before.items()), case.arguments)).encode()).digest())
        kinds[case.kind] += 1
        shutil.rmtree(folder)
    assert not problems, "\n".join(problems)
    assert len(seen) == kinds.total() and every * kinds.total() >= 60 and len(kinds) == 5, (len(seen), kinds)
    count = kinds.total()
    record_property(
        "figure",
        f"bad inputs: {count} files of {len(kinds)} kinds, {count} refused in one line, 0 left anything",
    )
