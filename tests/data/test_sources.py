"""Files of rows: the share that is taken, and bad rows told by file and line."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.data.sources import Source, documents, read_rows
from megatron_bar.data.tokenizer import load_tokenizer, train_tokenizer
from megatron_bar.errors import BarError

CHAT = [{"role": "user", "content": "one plus one"}, {"role": "assistant", "content": "two"}]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three files of 100, 40 and 7 texts, each text unique."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("a", 100), ("b", 40), ("c", 7)):
        write(folder / f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(count)])
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["one plus one is two", "a b c 0 1 2 3 4 5 6 7 8 9"] * 3, out, vocab_size=300)
    return load_tokenizer(out)


def taken(folder: Path, share: float, *, names: str = "abc", seed: int = 0) -> list[str]:
    sources = [Source(path=Path(f"{name}.jsonl"), kind="text", share=share) for name in names]
    return [row["text"] for source in sources for _, row in read_rows(source, folder, seed=seed)]


@given(share=st.floats(0.01, 1), seed=st.integers(0, 5))
def test_a_share_is_stratified_and_the_same_every_time(folder, share, seed):
    texts = taken(folder, share, seed=seed)
    counts = Counter(text[0] for text in texts)
    assert counts == {name: max(1, round(share * count)) for name, count in (("a", 100), ("b", 40), ("c", 7))}
    assert len(set(texts)) == len(texts)
    assert [(text[0], int(text[2:])) for text in texts] == sorted((text[0], int(text[2:])) for text in texts), "file order"
    assert taken(folder, share, seed=seed) == texts
    assert taken(folder, share, names="b", seed=seed) == [text for text in texts if text[0] == "b"], "depends on other sources"


def test_another_seed_and_another_file_take_other_rows(folder, tmp_path):
    assert taken(folder, 0.1) != taken(folder, 0.1, seed=1)
    for name in "xy":
        write(tmp_path / f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(100)])
    x, y = ([text[2:] for text in taken(tmp_path, 0.1, names=name)] for name in "xy")
    assert x != y
    assert taken(folder, 1.0) == [f"{name} {n}" for name, count in (("a", 100), ("b", 40), ("c", 7)) for n in range(count)]


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(BarError, match=r"source x\.jsonl: share must be within 0 and 1, got"):
        Source(path=Path("x.jsonl"), kind="text", share=share)


def test_where_names_file_and_line(folder):
    found = read_rows(Source(path=Path("c.jsonl"), kind="text", share=0.3), folder)
    assert [where for where, _ in found] == [f"{folder}/c.jsonl:{int(row['text'][2:]) + 1}" for _, row in found]


BAD = {
    # name: (kind, second row, message)
    "not JSON": ("text", "{'text': 1}", r"x\.jsonl:2: not a JSON row: "),
    "empty line": ("text", "", r"x\.jsonl:2: not a JSON row: "),
    "not an object": ("text", ["text"], r"x\.jsonl:2: expected a row with text; text is missing"),
    "no text": ("text", {"messages": CHAT}, r"x\.jsonl:2: expected a row with text; text is missing"),
    "no messages": ("chat", {"text": "a"}, r"x\.jsonl:2: expected a row with messages; messages is missing"),
    "no truth": (
        "task",
        {"messages": CHAT, "verifier": "exact"},
        r"x\.jsonl:2: expected a row with messages, verifier, truth; truth is missing",
    ),
    "text of numbers": ("text", {"text": 3}, r"x\.jsonl:2: text must be a string, got int"),
    "unknown role": ("chat", {"messages": [{"role": "robot", "content": "x"}]}, r"x\.jsonl:2: message 0: expected a role.*robot"),
    "nothing to learn": ("chat", {"messages": CHAT[:1]}, r"x\.jsonl:2: no assistant message"),
}
GOOD = {"text": {"text": "a"}, "chat": {"messages": CHAT}, "task": {"messages": CHAT, "verifier": "exact", "truth": "two"}}


@pytest.mark.parametrize("kind, row, message", BAD.values(), ids=BAD)
def test_a_bad_row_is_named(tmp_path, tokenizer, kind, row, message):
    write(tmp_path / "x.jsonl", [GOOD[kind], row, GOOD[kind]])
    with pytest.raises(BarError, match=f"^{tmp_path}/{message}"):
        documents((Source(path=Path("x.jsonl"), kind=kind),), tmp_path, tokenizer)


def test_a_file_that_is_missing_empty_or_of_bytes_is_named(tmp_path):
    source = Source(path=Path("x.jsonl"), kind="text")
    with pytest.raises(BarError, match=rf"^{tmp_path}/x\.jsonl: not found; expected a JSONL file"):
        read_rows(source, tmp_path)
    (tmp_path / "x.jsonl").touch()
    with pytest.raises(BarError, match=rf"^{tmp_path}/x\.jsonl: expected at least one row, got none"):
        read_rows(source, tmp_path)
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(BarError, match=rf"^{tmp_path}/x\.jsonl: not UTF-8: invalid start byte at byte \d+"):
        read_rows(source, tmp_path)


def test_documents_are_texts_with_their_end_and_chats_with_the_answers_mask(tmp_path, tokenizer):
    write(tmp_path / "t.jsonl", [{"text": "one plus"}])
    write(tmp_path / "c.jsonl", [{"messages": CHAT}])
    sources = (Source(path=Path("t.jsonl"), kind="text"), Source(path=tmp_path / "c.jsonl", kind="chat"))
    text, chat = documents(sources, tmp_path, tokenizer)
    assert text == ([*tokenizer.encode_text("one plus"), tokenizer.eos_id], [True] * len(text[0]))
    learnt = [token for token, learn in zip(*chat, strict=True) if learn]
    assert learnt == [*tokenizer.encode_text("two"), tokenizer.eos_id]
    assert chat[0][0] == tokenizer.eos_id and tokenizer.decode(chat[0]) == "<|user|>\none plus one\n<|assistant|>\ntwo"
