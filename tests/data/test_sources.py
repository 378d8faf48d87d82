"""Rows in every format are the same rows; the share that is taken; bad files and rows told by file and
line."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.json
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_bar.data.sources import Source, check, identity, parse, raw_rows, read_rows
from megatron_bar.errors import BarError

CHAT = [{"role": "user", "content": "one plus one"}, {"role": "assistant", "content": "two"}]
TEXTS = [{"text": f"row {n} größer 😀"} for n in range(2500)]


def lines(rows: list) -> bytes:
    return "".join(
        f"{row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)}\n" for row in rows
    ).encode()


def zstd(data: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


def parquet(path: Path, rows: list) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=700)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three files of 100, 40 and 7 texts, each text unique; and the same texts in every format."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("a", 100), ("b", 40), ("c", 7)):
        (folder / f"{name}.jsonl").write_bytes(lines([{"text": f"{name} {n}"} for n in range(count)]))
    data = lines(TEXTS)
    (folder / "x.jsonl").write_bytes(data)
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(data[:100_000]) + gzip.compress(data[100_000:]))
    # Two frames, as tools that compress in parallel leave them.
    (folder / "x.jsonl.zst").write_bytes(zstd(data[:50_000]) + zstd(data[50_000:]))
    parquet(folder / "x.parquet", TEXTS)
    (folder / "parts").mkdir()
    (folder / "parts/0.jsonl").write_bytes(lines(TEXTS[:1000]))
    parquet(folder / "parts/1.parquet", TEXTS[1000:])
    Dataset.from_list(TEXTS).save_to_disk(str(folder / "saved"))
    DatasetDict({"train": Dataset.from_list(TEXTS)}).save_to_disk(str(folder / "splits"))
    return folder


def text(name: str, **more) -> Source:
    return Source(path=Path(name), kind="text", **more)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet", "parts", "saved"])
def test_every_format_holds_the_same_rows(folder, name):
    assert [row for _, row in read_rows(text(name), folder)] == TEXTS
    assert [row for _, row in read_rows(text(f"{name}#500"), folder)] == TEXTS[:500]
    assert [row for _, row in read_rows(text(name, share=0.01), folder)] == sorted(
        (row for _, row in read_rows(text(name, share=0.01), folder)), key=TEXTS.index
    )


def test_a_character_written_as_a_surrogate_pair_is_one(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "\\ud83d\\ude00"}\n')
    assert [row["text"] for _, row in read_rows(text("x.jsonl"), tmp_path)] == ["😀"]


def test_blank_lines_are_no_rows(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n\n  \r\n{"text": "b"}\n\n')
    assert [
        (where.rpartition(":")[2], row["text"]) for where, row in read_rows(text("x.jsonl"), tmp_path)
    ] == [
        ("1", "a"),
        ("4", "b"),
    ]


def test_a_source_is_named_after_its_domain_or_its_file():
    assert [text(name).name for name in ("a/x.jsonl", "x.jsonl.gz#12", "x.parquet", "owner/set")] == [
        "x",
        "x",
        "x",
        "set",
    ]
    assert text("x.jsonl", domain="math").name == "math"
    assert (text("x#500").limit, text("x#500").place, text("x#y").limit) == (500, Path("x"), None)


def taken(folder: Path, share: float, *, names: str = "abc", seed: int = 0) -> list[str]:
    sources = [text(f"{name}.jsonl", share=share) for name in names]
    return [row["text"] for source in sources for _, row in read_rows(source, folder, seed=seed)]


@settings(deadline=None)
@given(share=st.floats(0.01, 1), seed=st.integers(0, 5))
def test_a_share_is_stratified_and_the_same_every_time(folder, share, seed):
    texts = taken(folder, share, seed=seed)
    counts = Counter(text[0] for text in texts)
    assert counts == {name: max(1, round(share * count)) for name, count in (("a", 100), ("b", 40), ("c", 7))}
    assert len(set(texts)) == len(texts)
    assert [(text[0], int(text[2:])) for text in texts] == sorted(
        (text[0], int(text[2:])) for text in texts
    ), "file order"
    assert taken(folder, share, seed=seed) == texts
    assert taken(folder, share, names="b", seed=seed) == [text for text in texts if text[0] == "b"], (
        "depends on other sources"
    )


def test_another_seed_and_another_file_take_other_rows(folder, tmp_path):
    assert taken(folder, 0.1) != taken(folder, 0.1, seed=1)
    for name in "xy":
        (tmp_path / f"{name}.jsonl").write_bytes(lines([{"text": f"{name} {n}"} for n in range(100)]))
    x, y = ([text[2:] for text in taken(tmp_path, 0.1, names=name)] for name in "xy")
    assert x != y
    assert taken(folder, 1.0) == [
        f"{name} {n}" for name, count in (("a", 100), ("b", 40), ("c", 7)) for n in range(count)
    ]


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(BarError, match=r"source x\.jsonl: share must be within 0 and 1, got"):
        text("x.jsonl", share=share)


def test_where_names_file_and_line(folder):
    found = read_rows(text("c.jsonl", share=0.3), folder)
    assert [where for where, _ in found] == [
        f"{folder}/c.jsonl:{int(row['text'][2:]) + 1}" for _, row in found
    ]
    assert [where for where, _ in raw_rows(text("x.parquet#2"), folder)] == [
        f"{folder}/x.parquet:1",
        f"{folder}/x.parquet:2",
    ]


GOOD = {
    "text": {"text": "a"},
    "chat": {"messages": CHAT},
    "task": {"messages": CHAT, "verifier": "exact", "truth": "two"},
    "preference": {"messages": CHAT[:1], "chosen": "two", "rejected": "three"},
}
BAD_ROWS = {
    # name: (kind, second row, message)
    "not JSON": ("text", "{'text': 1}", r"x\.jsonl:2: not a JSON row: "),
    "cut in half": ("text", '{"text": "ab', r"x\.jsonl:2: not a JSON row: Unterminated string"),
    "half a character": (
        "text",
        '{"text": "a \\uD800 b"}',
        r"x\.jsonl:2: not a JSON row: expected characters, got '\\ud800', half of a surrogate pair",
    ),
    "nested too deeply": ("text", "[" * 100_000, r"x\.jsonl:2: not a JSON row: "),
    "not an object": ("text", ["text"], r"x\.jsonl:2: expected a row with text, got list"),
    "no text": ("text", {"messages": CHAT}, r"x\.jsonl:2: expected a row with text; text is missing"),
    "no messages": ("chat", {"text": "a"}, r"x\.jsonl:2: expected a row with messages; messages is missing"),
    "no truth": (
        "task",
        {"messages": CHAT, "verifier": "exact"},
        r"x\.jsonl:2: expected a row with messages, verifier, truth; truth is missing",
    ),
    "text of numbers": ("text", {"text": 3}, r"x\.jsonl:2: text must be a string, got int"),
    "text of nothing": ("text", {"text": None}, r"x\.jsonl:2: text must be a string, got NoneType"),
    "no rejected answer": (
        "preference",
        {"messages": CHAT[:1], "chosen": "two"},
        r"x\.jsonl:2: expected a row with messages, chosen, rejected; rejected is missing",
    ),
    "an answer of numbers": (
        "preference",
        {"messages": CHAT[:1], "chosen": "two", "rejected": 3},
        r"x\.jsonl:2: rejected: expected a text, or a list of one message of the assistant's, got 3",
    ),
    "an answer of the user's": (
        "preference",
        {"messages": CHAT[:1], "chosen": "two", "rejected": CHAT[:1]},
        r"x\.jsonl:2: rejected: expected a text, or a list of one message of the assistant's, got "
        r"\[\{'role': 'user'",
    ),
    "answers to other questions": (
        "preference",
        {"chosen": CHAT, "rejected": [{"role": "user", "content": "else"}, CHAT[1]]},
        r"x\.jsonl:2: chosen and rejected expected to be the same chat up to its last message, got 2 and 2 "
        r"messages",
    ),
    "a key twice": (
        "task",
        '{"messages": [{"role": "user", "content": "q"}], "verifier": "exact", "truth": "1", "truth": "2"}',
        r"x\.jsonl:2: not a JSON row: 'truth' expected once, got it 2 times",
    ),
    "a key twice inside": (
        "chat",
        '{"messages": [{"role": "user", "role": "assistant", "content": "q"}]}',
        r"x\.jsonl:2: not a JSON row: 'role' expected once, got it 2 times",
    ),
    "a hole without a suffix": (
        "text",
        {"prefix": "a", "middle": "b"},
        r"x\.jsonl:2: expected a row with text; text is missing, got \['prefix', 'middle'\]",
    ),
    "a hole of numbers": (
        "text",
        {"prefix": "a", "middle": 3, "suffix": "c"},
        r"x\.jsonl:2: middle must be a string, got int",
    ),
    "a text and a hole": (
        "text",
        {"text": "abc", "prefix": "a", "middle": "b", "suffix": "c"},
        r"x\.jsonl:2: expected text, or prefix, suffix and middle, got all of them",
    ),
    "a task of an answer alone": (
        "task",
        {"messages": CHAT[1:], "verifier": "exact", "truth": "two"},
        r"x\.jsonl:2: messages expected what is asked, got the assistant's alone",
    ),
    "a task of nothing": (
        "task",
        {"messages": [], "verifier": "exact", "truth": "two"},
        r"x\.jsonl:2: messages expected what is asked, got none",
    ),
    "a task that ends in a result": (
        "task",
        {"messages": [*CHAT, {"role": "tool", "content": "2"}], "verifier": "exact", "truth": "two"},
        r"x\.jsonl:2: messages expected what is asked last, got a result \(tool\)",
    ),
    "a prompt of several turns": (
        "task",
        {"prompt": "user: a\nassistant: b\nuser: c", "ground_truth": "two", "dataset": "math"},
        r"x\.jsonl:2: prompt expected a question, got a chat of several turns in one text",
    ),
    "a preference behind an answer": (
        "preference",
        {"messages": CHAT, "chosen": "two", "rejected": "three"},
        r"x\.jsonl:2: messages expected what was asked, got an answer of the assistant last",
    ),
    "messages of an object": (
        "chat",
        {"messages": {"role": "user"}},
        r"x\.jsonl:2: messages must be a list, got dict",
    ),
    "messages of text": ("chat", {"messages": "hello"}, r"x\.jsonl:2: messages must be a list, got str"),
}


@pytest.mark.parametrize("kind, row, message", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named(tmp_path, kind, row, message):
    (tmp_path / "x.jsonl").write_bytes(lines([GOOD[kind], row, GOOD[kind]]))
    with pytest.raises(BarError, match=f"^{tmp_path}/{message}"):
        read_rows(Source(path=Path("x.jsonl"), kind=kind), tmp_path)


DATA = lines(TEXTS)
BAD_FILES = {
    # name: (file, bytes, message)
    "missing": ("x.jsonl", None, r"x\.jsonl: not found; expected a JSONL or Parquet file"),
    "empty": ("x.jsonl", b"", r"x\.jsonl: expected at least one row, got none"),
    "blank": ("x.jsonl", b"\n \n", r"x\.jsonl: expected at least one row, got none"),
    "another format": (
        "x.csv",
        b"a,b\n",
        r"x\.csv: expected \.jsonl, \.jsonl\.gz, \.jsonl\.zst or \.parquet",
    ),
    "not UTF-8": (
        "x.jsonl",
        b'{"text": "a"}\n{"text": "\xff"}\n',
        r"x\.jsonl:2: not a JSON row: expected UTF-8, got b'\\xff' at byte 10",
    ),
    "last line cut": ("x.jsonl", DATA[:-20], r"x\.jsonl:2500: not a JSON row"),
    "truncated gzip": (
        "x.jsonl.gz",
        gzip.compress(DATA)[:-2000],
        r"x\.jsonl\.gz: expected a whole file, got one broken after line \d+: ",
    ),
    "gzip of noise": (
        "x.jsonl.gz",
        b"\x1f\x8b" + bytes(range(256)),
        r"x\.jsonl\.gz: expected a whole file, got one broken after line 0: ",
    ),
    "not gzip": (
        "x.jsonl.gz",
        DATA,
        r"x\.jsonl\.gz: expected a whole file, got one broken after line 0: Not a gzipped file",
    ),
    "gzip with a wrong sum": (
        "x.jsonl.gz",
        gzip.compress(DATA)[:-8] + b"\0" * 8,
        r"x\.jsonl\.gz: expected a whole file, got one broken after line \d+: CRC check failed",
    ),
    "truncated zstd": (
        "x.jsonl.zst",
        zstd(DATA)[:-500],
        r"x\.jsonl\.zst: expected a whole file, got one broken after line \d+: ",
    ),
    "not zstd": ("x.jsonl.zst", DATA, r"x\.jsonl\.zst: expected a whole file, got one broken after line 0: "),
    "not Parquet": (
        "x.parquet",
        DATA,
        r"x\.parquet: expected Parquet, got a file that is not readable after row 0: ",
    ),
    "empty Parquet": (
        "x.parquet",
        b"",
        r"x\.parquet: expected Parquet, got a file that is not readable after row 0: ",
    ),
}


@pytest.mark.parametrize("name, data, message", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named(tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(BarError, match=f"^{tmp_path}/{message}"):
        read_rows(text(name), tmp_path)


def test_a_torn_parquet_is_named(tmp_path, folder):
    whole = (folder / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[:-1000])
    with pytest.raises(
        BarError,
        match=f"^{tmp_path}/x.parquet: expected Parquet, got a file that is not readable after row 0",
    ):
        read_rows(text("x.parquet"), tmp_path)
    torn = bytearray(whole)
    torn[len(whole) // 3 : len(whole) // 3 + 200] = bytes(200)
    (tmp_path / "x.parquet").write_bytes(torn)
    with pytest.raises(BarError, match=f"^{tmp_path}/x.parquet"):
        read_rows(text("x.parquet"), tmp_path)


def test_more_rows_than_there_are_and_folders_of_nothing(folder, tmp_path):
    with pytest.raises(BarError, match=r"c\.jsonl: expected 8 rows, as asked for by #8, got 7"):
        read_rows(text("c.jsonl#8"), folder)
    with pytest.raises(
        BarError, match="expected JSONL or Parquet files, or a data set saved by datasets, found none"
    ):
        read_rows(text("."), tmp_path)
    with pytest.raises(BarError, match="splits: expected one split, got train"):
        read_rows(text("splits"), folder)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/state.json").write_text("{")
    with pytest.raises(BarError, match=r"state\.json: not readable as JSON: "):
        read_rows(text("saved"), tmp_path)


def test_the_first_row_alone_can_be_checked(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(lines([{"text": "a"}, "broken"]))
    check(text("x.jsonl"), tmp_path)
    with pytest.raises(BarError, match=r"x\.jsonl:1: expected a row with messages"):
        check(Source(path=Path("x.jsonl"), kind="chat"), tmp_path)
    with pytest.raises(BarError, match=r"none\.jsonl: not found"):
        check(text("none.jsonl"), tmp_path)


RESULT = [{"role": "user", "content": "now"}, {"role": "assistant", "function_calls": "now()"}]
RESULT += [{"role": "environment", "content": "3 o'clock"}]
ASKED_TWICE = [*CHAT, {"role": "user", "content": "two plus two"}]
ANSWERED_TASKS = {
    # name: (messages, how many of them are the prompt)
    "a question": (CHAT[:1], 1),
    "a question and its answer": (CHAT, 1),
    "an answer in two messages": ([*CHAT, CHAT[1]], 1),
    "a second question": (ASKED_TWICE, 3),
    "a second question and its answer": ([*ASKED_TWICE, CHAT[1]], 3),
    "an answer after a result": ([*RESULT, CHAT[1], CHAT[0], CHAT[1]], 5),
}


@pytest.mark.parametrize("messages, asked", ANSWERED_TASKS.values(), ids=ANSWERED_TASKS)
@pytest.mark.parametrize(
    "more", [{"verifier": "exact", "truth": "two"}, {"ground_truth": "two", "dataset": "math"}]
)
def test_a_task_asks_and_does_not_answer(messages, asked, more):
    got = parse({"messages": messages} | more, "task", "a.jsonl:1")
    assert got["messages"] == messages[:asked] and got.get("answered", []) == messages[asked:]


def test_prompts_as_published():
    """A text with the role before it, as Dolci's; a list of messages, as verl's."""
    for prompt in ("user: one plus one", CHAT[:1], CHAT):
        row = {"prompt": prompt, "ground_truth": ["2"], "dataset": ["math"]}
        assert parse(row, "task", "a.jsonl:1")["messages"] == CHAT[:1]


def test_a_mark_of_the_byte_order_is_no_text(tmp_path):
    """As Windows' editors write it; pyarrow skips it too."""
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(TEXTS[:3]))
    assert [row for _, row in read_rows(text("x.jsonl"), tmp_path)] == TEXTS[:3]
    assert pyarrow.json.read_json(tmp_path / "x.jsonl").to_pylist() == TEXTS[:3]


def test_a_source_is_identified_by_all_of_its_files(tmp_path):
    (tmp_path / "a/deep").mkdir(parents=True)
    (tmp_path / "a/0.jsonl").write_bytes(lines(TEXTS[:3]))
    (tmp_path / "a/readme.md").write_text("no rows")
    names = [identity(text("a"), tmp_path)]

    def changed() -> bool:
        names.append(identity(text("a"), tmp_path))
        return names[-1] != names[-2]

    assert not changed()
    (tmp_path / "a/0.jsonl").write_bytes(lines(TEXTS[1:4]))  # of the same size, if not the same time
    os.utime(tmp_path / "a/0.jsonl", ns=(0, 0))
    assert changed()
    (tmp_path / "a/deep/1.jsonl.gz").write_bytes(gzip.compress(lines(TEXTS[:1])))
    assert changed() and list(names[-1]) == ["0.jsonl", "deep/1.jsonl.gz"]
    (tmp_path / "a/0.jsonl").rename(tmp_path / "a/2.jsonl")
    assert changed()
    (tmp_path / "a/readme.md").write_text("nothing")
    assert not changed()
    (tmp_path / "a").rename(tmp_path / "b")
    assert identity(text("b"), tmp_path) == names[-1], "of the files, wherever they are"
    with pytest.raises(BarError, match=r"none\.jsonl: not found"):
        identity(text("none.jsonl"), tmp_path)


@pytest.mark.parametrize(
    "row, verifier, truth",
    [
        ({"messages": CHAT, "ground_truth": "18", "dataset": "gsm8k"}, "numeric", "18"),
        ({"prompt": "What is 2+2?", "ground_truth": "4", "dataset": "MATH"}, "math", "4"),
        ({"messages": CHAT, "ground_truth": ["4"], "dataset": ["math"]}, "math", "4"),
        (
            {"messages": CHAT, "ground_truth": ["assert f(1) == 2"], "dataset": "code"},
            "code",
            ["assert f(1) == 2"],
        ),
        ({"messages": CHAT, "ground_truth": "two", "verifier": "exact"}, "exact", "two"),
    ],
)
def test_rows_of_published_rlvr_sets(row, verifier, truth):
    got = parse(row, "task", "a.jsonl:1")
    assert (got["verifier"], got["truth"]) == (verifier, truth)
    # The reference answer that the messages end with is no part of the prompt.
    assert got["messages"] == row.get("messages", [{"role": "user", "content": "What is 2+2?"}])[:1]
    assert got.get("answered", []) == row.get("messages", [])[1:]


def test_a_published_row_that_nobody_grades_is_named():
    with pytest.raises(
        BarError,
        match=r"^a.jsonl:1: expected a verifier, or a dataset out of gsm8k.*, got 'general-quality'$",
    ):
        parse({"messages": CHAT, "ground_truth": "x", "dataset": "general-quality"}, "task", "a.jsonl:1")


ASKED, ANSWERED, WORSE = (
    CHAT[0],
    {"role": "assistant", "content": "two"},
    {"role": "assistant", "content": "three"},
)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED], "chosen": "two", "rejected": "three"},
        {"messages": [ASKED], "chosen": [ANSWERED], "rejected": [WORSE]},
        # As published: whole chats, beside which other columns may say anything.
        {"prompt": "x", "chosen": [ASKED, ANSWERED], "rejected": [ASKED, WORSE]},
        {"messages": [ASKED, ANSWERED], "chosen": [ASKED, ANSWERED], "rejected": [ASKED, WORSE]},
    ],
    ids=["texts", "messages", "whole chats", "whole chats and messages"],
)
def test_a_preference_in_every_form(row):
    got = parse(row, "preference", "a.jsonl:1")
    assert {key: got[key] for key in ("messages", "chosen", "rejected")} == {
        "messages": [ASKED],
        "chosen": ANSWERED,
        "rejected": WORSE,
    }
