"""Rows of benchmarks: tables in every format, rows that are left out, sets whose rows stand in several files, and
kills."""

import datetime
import json
import math
import re
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from data.mirror import write
from data.test_prepare import contents, lines
from distributed import start_process
from kill_points import count_calls

from megatron_bar.data import prepare as module
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.convert import NoTokenizer
from megatron_bar.data.hub import FromHub, HubSet, Mirror
from megatron_bar.data.prepare import Rules, prepare, read_manifest
from megatron_bar.data.tables import table_rows
from megatron_bar.errors import BarError


def joined(files: dict[str, Path]):
    terms = [row for _, row in table_rows(files["terms.csv"])]
    for (_, row), term in zip(table_rows(files["rows.json"]), terms, strict=True):
        yield row | term if isinstance(row, dict) else row


def of_rows(name: str, rows: int, **more) -> FromHub:
    hub = HubSet(id=f"some/{name}")
    return FromHub(path=Path(f"{name}.jsonl"), hub=hub, convert="rows", rows=rows, **more)


PARTS = of_rows(
    "parts", 8, columns=("q", "part"), files="*/test*", pattern=r"(?P<part>\w+)/test\.(csv|tsv|jsonl)"
)
JOINED = of_rows("joined", 4, columns=("q", "term"), pattern=r"rows\.json|terms\.csv", join=joined)
KEPT = of_rows("kept", 2, columns=("q",), column="label", values=("yes",), filled=("answer",))
TABLE = [PARTS, JOINED, KEPT]


def make(root: Path) -> Path:
    parts = root / "some/parts"
    (parts / "one").mkdir(parents=True)
    (parts / "two").mkdir()
    (parts / "one/test.csv").write_bytes('\ufeffq,n\r\n"größer, ""so""\r\n?",1\r\n\r\nb,2\r\n'.encode())
    (parts / "two/test.tsv").write_text("q\tn\nc, d\t3\ne\t\n")
    write(parts / "three/test.jsonl", [{"q": f"{n}", "n": None} for n in range(4)])
    write(parts / "three/train.jsonl", [{"x": 1}])
    (root / "some/joined").mkdir()
    (root / "some/joined/rows.json").write_text(json.dumps([{"q": n} for n in range(4)], indent=1))
    (root / "some/joined/terms.csv").write_text("term\n" + "".join(f"{n / 4}\n" for n in range(4)))
    found = [("yes", 1.0), ("yes", None), ("no", 1.0), (None, 1.0), ("yes", math.inf)]
    day = datetime.date(2023, 2, 25)
    rows = [{"q": str(n), "label": a, "answer": b, "day": day} for n, (a, b) in enumerate(found)]
    write(root / "some/kept/data/test-00000-of-00001.parquet", rows)
    return root


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("mirror"))


def run(mirror: Path, out: Path) -> None:
    rules = Rules(chats=ChatFormat(NoTokenizer(), "chatml"), max_refused=0.0)
    prepare(TABLE, Mirror(mirror), out, rules, lambda line: None)


def test_rows_keep_their_columns_and_get_those_of_their_files(mirror, tmp_path):
    run(mirror, tmp_path)
    assert lines(tmp_path / "parts.jsonl") == [
        {"part": "one", "q": 'größer, "so"\r\n?', "n": "1"},
        {"part": "one", "q": "b", "n": "2"},
        *({"part": "three", "q": str(n), "n": None} for n in range(4)),
        {"part": "two", "q": "c, d", "n": "3"},
        {"part": "two", "q": "e", "n": ""},
    ]
    assert lines(tmp_path / "joined.jsonl") == [{"q": n, "term": str(n / 4)} for n in range(4)]
    assert lines(tmp_path / "kept.jsonl") == [
        {"q": "0", "label": "yes", "answer": 1.0, "day": "2023-02-25"},
        {"q": "4", "label": "yes", "answer": None, "day": "2023-02-25"},
    ]
    files = read_manifest(tmp_path)["joined.jsonl"]["files"]
    assert [file["name"] for file in files] == ["rows.json", "terms.csv"]


def killed(mirror: Path, out: Path, report: Path, kill_at: int | None) -> None:
    count_calls(module.__file__, report, kill_at, run, mirror, out)


@pytest.fixture(scope="module")
def straight(mirror, tmp_path_factory):
    root = tmp_path_factory.mktemp("straight")
    process = start_process(killed, mirror, root / "out", root / "report", None, output=root / "log")
    process.join()
    assert process.exitcode == 0, (root / "log").read_text()
    return contents(root / "out"), json.loads((root / "report").read_text())


KILLS = 4


@pytest.mark.parametrize("number", range(KILLS + len(TABLE)))
def test_killed_it_goes_on_and_ends_with_the_same_bytes(number, mirror, straight, tmp_path):
    """Somewhere, and for each set between the last of its rows and the names of its files."""
    expected, calls = straight
    read = [n for n, two in enumerate(pairwise(calls), 2) if two == ("after rename", "before close")]
    assert len(read) == len(TABLE)
    point = [*range(len(calls) // (2 * KILLS), len(calls), len(calls) // KILLS)[:KILLS], *read][number]
    out = tmp_path / "out"
    process = start_process(killed, mirror, out, tmp_path / "report", point, output=tmp_path / "log")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run(mirror, out)
    assert contents(out) == expected


BAD = {
    "no row": ("x.csv", b"q,n\n", "expected at least one row, got none"),
    "nothing": ("x.csv", b"", "expected at least one row, got none"),
    "too few": ("x.csv", b"q,n\na,1\nb\n", r"x\.csv:2: expected 2 columns, got 1"),
    "too many": ("x.tsv", b"q\tn\na\t1\t2\n", r"x\.tsv:1: expected 2 columns, got 3"),
    "an open quote": ("x.csv", b'q,n\na,1\nb,"2\n', "got one broken after row 1: unexpected end of data"),
    "text behind a quote": ("x.csv", b'q,n\n"a"b,1\n', "got one broken after row 0: ',' expected after '\"'"),
    "no UTF-8": ("x.csv", b"q,n\na,\xff\n", r"broken after row 0: expected UTF-8, got b'\\xff'"),
    "an object": ("x.json", b'{"q": 1}', "expected a list of rows, got dict"),
    "a cut list": ("x.json", b'[{"q": 1}, {"q"', "not readable as JSON"),
    "a key twice": ("x.json", b'[{"q": 1, "q": 2}]', "'q' expected once, got it 2 times"),
    "half a character": ("x.json", b'[{"q": "\\ud800"}]', "half of a surrogate pair"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_table_is_one_line(name, tmp_path):
    file, text, message = BAD[name]
    (tmp_path / file).write_bytes(text)
    with pytest.raises(BarError, match=message) as caught:
        list(table_rows(tmp_path / file))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{tmp_path / file}")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("joined/rows.json", '[{"q": 0}, 1, 2, 3]', "expected 4 rows of some/joined, got 1; --acc"),
        (
            "parts/one/test.csv",
            "x,n\na,1\nb,2\n",
            r"one/test\.csv:1: parts\.jsonl expected a column q, got part, x",
        ),
        ("parts/three/test.jsonl", '{"q": "0"}\n{"q": "1"\n{"q": "2"}\n{"q": "3"}\n', "got 1 of 8 so far"),
        ("parts/three/test.jsonl", '{"q": "0"}\n{"n": 2}\n{"q": "2"}\n{"q": "3"}\n', "expected a column q"),
        ("parts/two/test.tsv", "q\tn\nc\t3\n", r"parts\.jsonl: expected 8 rows of some/parts, got 7"),
    ],
)
def test_a_set_of_another_shape_is_one_line(name, text, message, mirror, tmp_path):
    broken = make(tmp_path / "mirror")
    (broken / "some" / name).write_text(text)
    with pytest.raises(BarError) as caught:
        run(broken, tmp_path / "out")
    assert re.search(message, str(caught.value)) and "\n" not in str(caught.value)
    assert list((tmp_path / "out").glob(f"**/{name.split('/')[0]}.jsonl")) == []
