"""Rows to token files: what is in them, and that neither processes nor kills nor bad rows change it."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scripts import ROOT
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_bar.data import preprocess as module
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import read_indexed
from megatron_bar.data.mixture import prepare
from megatron_bar.data.preprocess import Options, prepared, preprocess, read_manifest
from megatron_bar.data.sources import Source
from megatron_bar.data.tokenizer import load_tokenizer, train_tokenizer
from megatron_bar.errors import BarError

DOLMA2 = ROOT.parent / "shared/data/dolma2/tokenizer.json"
WORDS = "one plus two is three and four café größer 😀 def f ( x ) : return".split()


def texts(count: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    return [{"text": " ".join(rng.choices(WORDS, k=rng.randint(1, 40)))} for _ in range(count)]


def chats(count: int) -> list[dict]:
    rng, rows = random.Random(1), []
    for _ in range(count):
        messages = []
        for _ in range(rng.randint(1, 3)):
            messages.append({"role": "user", "content": " ".join(rng.choices(WORDS, k=5))})
            messages.append({"role": "assistant", "content": " ".join(rng.choices(WORDS, k=3))})
        rows.append({"messages": messages})
    return rows


def write(path: Path, rows: list) -> Path:
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer((row["text"] for row in texts(50)), out, vocab_size=330)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def made(
    folder: Path,
    rows: list,
    tokenizer: Path,
    out: str = "out",
    kind: str = "text",
    processes: int = 1,
    **more,
):
    write(folder / "x.jsonl", rows)
    fields = {key: more.pop(key) for key in ("share", "last_turn") if key in more}
    source = Source(path=Path("x.jsonl"), kind=kind, **fields)
    preprocess(source, folder, tokenizer, folder / out, Options(**more), processes=processes)
    return prepared(folder / out)


def documents(tokens) -> list[list[int]]:
    return [tokens.ids[a:b].tolist() for a, b in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)]


def test_texts_become_their_ids_and_an_end(tmp_path, tokenizer):
    rows, loaded = texts(30), load_tokenizer(tokenizer)
    tokens = made(tmp_path, rows, tokenizer)
    assert documents(tokens) == [[*loaded.encode_text(row["text"]), loaded.eos_id] for row in rows]
    assert tokens.learn is None and tokens.ids.dtype == np.uint16
    manifest = read_manifest(tmp_path / "out")
    assert (manifest["documents"], manifest["tokens"], manifest["learnt"]) == (
        30,
        len(tokens.ids),
        len(tokens.ids),
    )
    assert manifest["tokenizer"] == loaded.hash and list(manifest["source_hashes"]) == [
        str(tmp_path / "x.jsonl")
    ]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("last_turn", [False, True])
def test_chats_become_their_ids_and_masks(tmp_path, tokenizer, last_turn):
    rows, format_ = chats(30), ChatFormat(load_tokenizer(tokenizer))
    tokens = made(tmp_path, rows, tokenizer, kind="chat", last_turn=last_turn)
    expected = [format_.render(row["messages"], last_turn=last_turn) for row in rows]
    assert documents(tokens) == [chat.ids for chat in expected]
    assert tokens.learn.tolist() == [flag for chat in expected for flag in chat.mask]


HOLES = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
ROWS = [
    {"prefix": "def f(x):\n", "suffix": "\n    return y\n", "middle": "    y = 2 * x"},
    {"text": "one plus two"},
    {"prefix": "", "suffix": " and <|fim_middle|> ", "middle": "three"},
    {"text": "a <|fim_prefix|> that is <|endoftext|> text"},
]


def with_holes(folder: Path, tokenizer: Path) -> Path:
    made = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    made.add_special_tokens(HOLES)
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder


def spelled(text: str, tokenizer: Path, special: list[str]) -> list[int]:
    """transformers' ids where ``special`` are tokens and all else is text."""
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"))
    parts = re.split("(" + "|".join(map(re.escape, special)) + ")", text) if special else [text]
    encode = partial(theirs.encode, add_special_tokens=False)
    return [n for part in parts if part for n in encode(part, split_special_tokens=part not in special)]


def test_holes_are_written_with_their_special_tokens(tmp_path, tokenizer):
    """Prefix, suffix, middle (PSM); a text that spells such a token stays text, unless its source says so."""
    folder = with_holes(tmp_path / "holes", tokenizer)
    loaded = load_tokenizer(folder)
    ids = [loaded.special[name] for name in HOLES]
    tokens = made(tmp_path, ROWS, folder)
    written = [[*part] for part in documents(tokens)]
    plain = [spelled(text, folder, []) for text in (ROWS[1]["text"], ROWS[3]["text"])]
    holes = []
    for row in (ROWS[0], ROWS[2]):
        parts = [spelled(row[key], folder, []) for key in ("prefix", "suffix", "middle")]
        holes.append([n for number, part in zip(ids, parts, strict=True) for n in (number, *part)])
    end = [loaded.eos_id]
    assert written == [holes[0] + end, plain[0] + end, holes[1] + end, plain[1] + end]
    # Rendered text, said to be so: its spellings are tokens, and those of no other name.
    rendered = [
        {
            "text": "".join(
                f"{name}{row[key]}" for name, key in zip(HOLES, ("prefix", "suffix", "middle"), strict=True)
            )
        }
        for row in (ROWS[0],)
    ]
    tokens = made(tmp_path, [*rendered, ROWS[3]], folder, "said", "fim", verify=True)
    assert documents(tokens) == [holes[0] + end, spelled(ROWS[3]["text"], folder, HOLES) + end]


def test_holes_of_olmo2(tmp_path):
    """Written down by hand from the tokenizer's own file."""
    if not DOLMA2.is_file():
        pytest.skip("the OLMo 2 tokenizer is not here")
    tokens = made(tmp_path, [{"prefix": "Hi", "suffix": "Hello", "middle": "Hi"}], DOLMA2)
    assert documents(tokens) == [[100258, 13347, 100260, 9906, 100259, 13347, 100257]]
    tokens = made(tmp_path, [{"text": "<|fim_prefix|>"}], DOLMA2, "text")
    assert documents(tokens) == [[27, 91, 69, 318, 14301, 91, 29, 100257]]


@pytest.mark.parametrize("row, kind", [(ROWS[0], "text"), (ROWS[0], "fim"), (ROWS[1], "fim")])
def test_a_tokenizer_without_the_special_tokens_is_named(tmp_path, tokenizer, row, kind):
    wanted = rf"expected the special tokens {re.escape(', '.join(HOLES))}, got none called <\|fim_prefix\|>"
    with pytest.raises(BarError, match=rf"^{tokenizer}/tokenizer\.json: filling in the middle {wanted}"):
        made(tmp_path, [row], tokenizer, kind=kind)
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_share_names_the_rows_it_took(tmp_path, tokenizer):
    rows, loaded = texts(100), load_tokenizer(tokenizer)
    tokens = made(tmp_path, rows, tokenizer, share=0.05)
    taken = read_manifest(tmp_path / "out")["rows_taken"]
    assert len(taken) == 5 and taken == sorted(set(taken))
    assert documents(tokens) == [[*loaded.encode_text(rows[n]["text"]), loaded.eos_id] for n in taken]


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_blocks_and_processes_change_nothing(tmp_path, tokenizer, kind, monkeypatch):
    rows = texts(300) if kind == "text" else chats(300)
    made(tmp_path, rows, tokenizer, kind=kind)
    monkeypatch.setattr(module, "BLOCK_ROWS", 17)
    made(tmp_path, rows, tokenizer, "more", kind=kind, processes=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "more")


def test_bad_rows_are_left_out_when_asked_and_reported(tmp_path, tokenizer):
    rows = texts(20)
    bad = [*rows[:5], "{not json", *rows[5:10], {"text": 3}, *rows[10:]]
    with pytest.raises(BarError, match=rf"^{tmp_path}/x\.jsonl:6: not a JSON row"):
        made(tmp_path, bad, tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]
    tokens = made(tmp_path, bad, tokenizer, skip_bad=True)
    whole = tmp_path / "whole"
    whole.mkdir()
    assert documents(tokens) == documents(made(whole, rows, tokenizer))
    reported = read_manifest(tmp_path / "out")["bad_rows"]
    assert [line.partition(": ")[0] for line in reported] == [
        f"{tmp_path}/x.jsonl:6",
        f"{tmp_path}/x.jsonl:12",
    ]
    (tmp_path / "out2").mkdir()
    with pytest.raises(BarError, match="no token in any row"):
        made(tmp_path / "out2", ["{"], tokenizer, skip_bad=True)


def test_verify_refuses_what_does_not_decode_back(tmp_path, tokenizer):
    made(tmp_path, texts(20), tokenizer, verify=True)
    # Word pieces without a decoder lose white space.
    bad = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<|endoftext|>": 2, "<|pad|>": 3}, unk_token="a"))
    bad.pre_tokenizer = pre_tokenizers.Whitespace()
    bad.add_special_tokens(["<|endoftext|>", "<|pad|>"])
    (tmp_path / "bad").mkdir()
    bad.save(str(tmp_path / "bad/tokenizer.json"))
    rows = [{"text": "a b"}, {"text": "a  b"}]
    assert len(made(tmp_path, rows, tmp_path / "bad", "lossy")) == 2
    with pytest.raises(
        BarError,
        match=rf"^{tmp_path}/x\.jsonl:2: its tokens do not decode to it: at character 2 'a  b' became 'a b'",
    ):
        made(tmp_path, rows, tmp_path / "bad", "verified", verify=True)


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path):
    big = Tokenizer(models.WordLevel({f"w{n}": n for n in range(66_000)} | {"a": 66_000}, unk_token="a"))
    big.add_special_tokens(["<|endoftext|>", "<|pad|>"])
    big.save(str(tmp_path / "tokenizer.json"))
    rows = [{"text": "a"}]
    with pytest.raises(BarError, match="a vocabulary of 66,003 does not fit uint16, which ends at 65,535"):
        made(tmp_path, rows, tmp_path, dtype="uint16")
    assert made(tmp_path, rows, tmp_path).ids.dtype == np.int32


def test_an_output_that_is_there_is_kept(tmp_path, tokenizer):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(
        BarError, match=r"out: expected a new or empty folder, got .* a folder that is not empty"
    ):
        made(tmp_path, texts(2), tokenizer)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


TOOL = [sys.executable, str(ROOT / "tools/preprocess_data.py")]


def command(folder: Path, out: Path, tokenizer: Path) -> list[str]:
    return [
        *TOOL,
        "--input",
        str(folder / "x.jsonl"),
        "--tokenizer",
        str(tokenizer),
        "--out",
        str(out),
        "--processes",
        "2",
    ]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.faults)])
def test_killed_at_any_point_it_ends_with_the_same_bytes(tmp_path, tokenizer, kills, record_property):
    """Kills of the whole process tree, at random moments and spread over the work, then a run to the end."""
    rows = texts(60_000)
    write(tmp_path / "x.jsonl", rows)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    subprocess.run(command(tmp_path, tmp_path / "whole", tokenizer), env=env, check=True, capture_output=True)
    took, rng = time.monotonic() - began, random.Random(0)
    out = tmp_path / "out"
    work = tmp_path / ".out.partial"
    states = set()
    for kill in range(kills):
        process = subprocess.Popen(
            command(tmp_path, out, tokenizer),
            env=env,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Once the work has begun: what was finished by then stays, so that the kills come later and later.
        deadline = time.monotonic() + 60
        before = len(list(work.glob("*"))) if kill % 4 else -1
        while process.poll() is None and len(list(work.glob("*"))) <= before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15 * took))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        states.add(len(list(work.glob("*.npz"))))
        if out.exists():  # it was whole before the kill; begin again
            assert contents(out) == contents(tmp_path / "whole")
            shutil.rmtree(out)
    subprocess.run(command(tmp_path, out, tokenizer), env=env, check=True, capture_output=True)
    assert contents(out) == contents(tmp_path / "whole")
    assert kills < 20 or len(states) > 1, "every kill came at the same state"
    assert not work.exists()
    record_property(
        "figure", f"SIGKILL while rows become tokens: {kills} kills, 0 unrecoverable, the same bytes"
    )


def test_what_was_begun_from_other_rows_is_not_taken_up(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 10)
    write(tmp_path / "x.jsonl", texts(90))

    def stop(amount, tokens):
        if len(list((tmp_path / ".out.partial").glob("*.npz"))) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess(Source(path=Path("x.jsonl"), kind="text"), tmp_path, tokenizer, tmp_path / "out", say=stop)
    assert len(list((tmp_path / ".out.partial").glob("*.npz"))) == 5
    rows, loaded = texts(60, seed=2), load_tokenizer(tokenizer)
    tokens = made(tmp_path, rows, tokenizer)
    assert documents(tokens) == [[*loaded.encode_text(row["text"]), loaded.eos_id] for row in rows]


def test_a_source_is_prepared_once_and_anew_when_it_changed(tmp_path, tokenizer):
    said: list[str] = []
    chats_ = ChatFormat(load_tokenizer(tokenizer))
    write(tmp_path / "x.jsonl", texts(5))
    source = Source(path=Path("x.jsonl"), kind="text")
    first, again = (
        prepare(source, tmp_path, chats_, tmp_path / "cache", seed=0, say=said.append) for _ in range(2)
    )
    assert first == again and len(said) == 1 and len(read_indexed(first)) == 5
    write(tmp_path / "x.jsonl", texts(7))
    assert (
        len(read_indexed(prepare(source, tmp_path, chats_, tmp_path / "cache", seed=0, say=said.append))) == 7
    )
    tokens = Source(path=first.relative_to(tmp_path), kind="tokens")
    assert prepare(tokens, tmp_path, chats_, tmp_path / "cache", seed=0, say=said.append) == first
    for kind, message in (
        ("task", "rows of tasks are for RLVR"),
        ("preference", "rows of preferences are for DPO"),
    ):
        with pytest.raises(BarError, match=message):
            prepare(
                Source(path=Path("x.jsonl"), kind=kind),
                tmp_path,
                chats_,
                tmp_path / "cache",
                seed=0,
                say=said.append,
            )


def test_a_folder_whose_files_change_is_prepared_anew(tmp_path, tokenizer):
    """Its own size and time of change do not say so."""
    said: list[str] = []
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    format_ = ChatFormat(load_tokenizer(tokenizer))
    source = Source(path=Path("texts"), kind="text")

    def rows() -> int:
        return len(
            read_indexed(prepare(source, tmp_path, format_, tmp_path / "cache", seed=0, say=said.append))
        )

    write(folder / "deep/a.jsonl", texts(5))
    before = folder.stat()
    assert (rows(), rows(), len(said)) == (5, 5, 1)
    write(folder / "deep/a.jsonl", texts(7))
    assert rows() == 7
    write(folder / "deep/b.jsonl", texts(2))
    assert rows() == 9
    (folder / "deep/a.jsonl").unlink()
    assert rows() == 2
    after = folder.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def test_bad_rows_are_left_out_where_asked_and_said(tmp_path, tokenizer):
    said: list[str] = []
    format_ = ChatFormat(load_tokenizer(tokenizer))
    good = chats(9)
    empty = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}
    write(tmp_path / "x.jsonl", [*good[:4], empty, *good[4:]])
    source = Source(path=Path("x.jsonl"), kind="chat")
    more = {"seed": 0, "say": said.append}
    with pytest.raises(BarError, match=rf"^{tmp_path}/x\.jsonl:5: message 1: expected an answer"):
        prepare(source, tmp_path, format_, tmp_path / "cache", **more)
    found = read_indexed(prepare(source, tmp_path, format_, tmp_path / "cache", skip_bad=True, **more))
    assert documents(found) == [format_.render(row["messages"]).ids for row in good]
    assert said[-1].endswith(", 1 bad rows left out")
