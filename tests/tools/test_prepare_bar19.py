"""`bar prepare bar19`: the benchmarks' data from an invented mirror of every set, with the published columns, and
what a user can get wrong, in one line."""

import importlib
import json
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from data import bar19_mirror as made
from data.bar19_mirror import ROWS, make_bar19_mirror
from data.hub_server import TOKEN, hub_of
from data.mirror import write
from data.test_prepare import contents
from scripts import ENV, ROOT

from megatron_bar.evaluation.benchmarks import bar19
from megatron_bar.evaluation.benchmarks.hub_data import BENCHMARK_DATA

REAL = {"harmbench": 320, "bfcl": 4_441}
"""Benchmarks whose files are the real ones."""
INVENTED = [row.name for row in BENCHMARK_DATA if row.name not in REAL]
MODULES = [
    importlib.import_module(f"{bar19.__name__}.{info.name}") for info in pkgutil.iter_modules(bar19.__path__)
]
BENCHMARKS = {module.BENCHMARK.name: module.BENCHMARK for module in MODULES if hasattr(module, "BENCHMARK")}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    return make_bar19_mirror(tmp_path_factory.mktemp("mirror"))


def command(*arguments) -> list[str]:
    return [sys.executable, str(ROOT / "tools/prepare_data.py"), "bar19", *map(str, arguments)]


@pytest.fixture(scope="module")
def data(mirror, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "data"
    arguments = command("--from", mirror, "--out", out, "--accept-counts")
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENV, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return out


@cache
def rows_of(data: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (data / f"{name}.jsonl").read_text("utf-8").splitlines()]


def test_every_benchmark_has_its_data_in_the_table():
    table = {row.name: row for row in BENCHMARK_DATA}
    assert len(table) == len(BENCHMARK_DATA) == 19
    assert BENCHMARKS.keys() == table.keys()
    for name, benchmark in BENCHMARKS.items():
        assert table[name].rows == benchmark.rows
        assert set(benchmark.columns) <= set(table[name].columns)


def test_all_nineteen_are_made(data):
    manifest = json.loads((data / "manifest.json").read_text())["files"]
    assert {path.name for path in data.iterdir()} == {f"{row.name}.jsonl" for row in BENCHMARK_DATA} | {
        "manifest.json"
    }
    for row in BENCHMARK_DATA:
        entry, rows = manifest[f"{row.name}.jsonl"], rows_of(data, row.name)
        count = REAL.get(row.name) or (16 if row.name == "agieval_english" else ROWS)
        assert (len(rows), entry["kept"], entry["refused"]) == (count, count, {}), row.name
        assert all(set(row.columns) <= found.keys() for found in rows)
        assert entry["licence"] == row.licence and all(file["sha256"] for file in entry["files"])


def test_rows_stay_as_they_were(data):
    numbers = made.NUMBERS
    assert rows_of(data, "mmlu") == [made.mcq(n, made.SUBJECTS[n % 2]) for n in numbers]
    assert rows_of(data, "popqa") == [
        {key: str(value) for key, value in made.popqa(n).items()} for n in numbers
    ]
    assert rows_of(data, "gpqa") == [made.gpqa(n) for n in numbers]
    assert rows_of(data, "zebralogic") == [made.zebra(n) for n in numbers]
    assert rows_of(data, "do_anything_now") == [made.dan(n) | {"community_name": None} for n in numbers]
    assert rows_of(data, "wildguardtest") == [made.wildguard(n) for n in numbers]
    assert rows_of(data, "wildjailbreak_benign") == [made.jailbreak(n) for n in numbers]


def test_sets_of_several_parts_say_which_a_row_is_of(data):
    bbh = rows_of(data, "bbh")
    assert [row["task"] for row in bbh] == [task for task in made.BBH for _ in range(4)]
    assert all(row["input"].startswith(row["task"]) for row in bbh)
    agieval = rows_of(data, "agieval_english")
    assert sorted({row["task"] for row in agieval}) == sorted(made.AGIEVAL)
    for row in agieval:
        assert {key: row[key] for key in row if key != "task"} == made.agieval(
            int(row["question"][:-1]), row["task"]
        )
    assert {row["type"] for row in rows_of(data, "math")} == set(made.TYPES.values())


def test_rows_of_the_baseline_have_what_controls_for_length(data):
    for n, row in enumerate(rows_of(data, "alpaca_eval")):
        assert row == made.preferred(n) | {
            "instruction_difficulty": n / 10,
            "gamed": [[0.4 + n / 100, -0.5]] * 2,
        }


def test_bfcl_is_whole(data):
    rows = rows_of(data, "bfcl")
    assert len({row["category"] for row in rows}) == 17
    conversations = [row for row in rows if row["category"].startswith("multi_turn")]
    assert len(conversations) == 800 and all(row["sources"] for row in conversations)


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_row_can_be_asked(name, data):
    benchmark = BENCHMARKS[name]
    for index, row in enumerate(rows_of(data, name)):
        asked = benchmark.ask(row | {"index": index}, [])
        assert asked and all(message["content"] for message in asked)


def test_counts_must_be_the_published_ones(mirror, tmp_path, inline):
    out = tmp_path / "out"
    status, printed, err = inline("prepare_data", "bar19", "--from", mirror, "--out", out, "--only", *REAL)
    assert (status, err) == (0, "")
    assert "bfcl.jsonl       4,441 rows" in printed and "harmbench.jsonl  320 rows" in printed
    for row in BENCHMARK_DATA:
        if row.name in INVENTED:
            status, _, err = inline(
                "prepare_data", "bar19", "--from", mirror, "--out", tmp_path / "no", "--only", row.name
            )
            assert status == 1 and err.startswith(f"error: {row.name}.jsonl: expected {row.rows:,} rows of ")
            assert err.count("\n") == 1 and not (tmp_path / "no").exists()


def test_killed_at_any_moment_it_ends_with_the_same_bytes(mirror, data, tmp_path):
    out = tmp_path / "data"
    arguments = command("--from", mirror, "--out", out, "--accept-counts")
    for number in (2, 9):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=ENV)
        for _ in range(number):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENV, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(out) == contents(data)


def test_the_list_names_sets_counts_licences_and_what_is_gated(inline):
    status, out, err = inline("prepare_data", "bar19", "--list")
    assert (status, err) == (0, "")
    for row in BENCHMARK_DATA:
        (line,) = (line for line in out.splitlines() if line.startswith(f"{row.name}.jsonl "))
        assert f"{row.rows:,}" in line and row.licence in line and row.hub.id in line
        assert ("(gated)" in line) == (row.name in ("gpqa", "zebralogic", "wildguardtest"))
        assert any(line.split()[:2] == [row.hub.id, row.hub.revision] for line in out.splitlines())


def test_the_hub_gives_what_the_mirror_gives(mirror, data, tmp_path):
    """Three sets of other kinds, one of them gated."""
    names = ("bbh", "gpqa", "alpaca_eval")
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    arguments = command("--out", tmp_path / "out", "--accept-counts", "--only", *names)
    with hub_of(mirror, gated="Idavidrein/gpqa") as (address, _):
        env = ENV | home | {"HF_ENDPOINT": address}
        done = subprocess.run(arguments, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 1 and done.stderr.startswith(
            "error: Idavidrein/gpqa: gated, expected a token"
        )
        env["HF_TOKEN"] = TOKEN
        done = subprocess.run(arguments, capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    for name in names:
        assert rows_of(tmp_path / "out", name) == rows_of(data, name)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def without(column: str):
    def act(path: Path) -> None:
        write(path, [{"passage": "", "options": [], "label": "A"} for _ in range(2)])

    return act


BAD = {
    "akariasai/PopQA/test.tsv": (cut, r"test\.tsv: expected a whole table, got one broken after row 11: "),
    "Idavidrein/gpqa/gpqa_main.csv": (
        lambda path: path.write_text(path.read_text() + "a,b\n"),
        r"gpqa_main\.csv:13: expected 6 columns, got 2",
    ),
    "tatsu-lab/alpaca_eval/alpaca_eval_gpt4_baseline.json": (cut, r"baseline\.json: not readable as JSON"),
    "tatsu-lab/alpaca_eval/df_gamed.csv": (
        lambda path: path.write_text(path.read_text().replace("index", "number")),
        r"df_gamed\.csv: expected index, preference, instruction_difficulty and std_delta_len of the rows",
    ),
    "RUCAIBox/agieval/test/sat-en.jsonl": (
        without("question"),
        r"sat-en\.jsonl:1: agieval_english\.jsonl expected a column question, got task, passage, options, lab",
    ),
    "openai/gsm8k/main/test-00000-of-00001.parquet": (
        cut,
        r"expected Parquet, got a file that is not readable",
    ),
    "gorilla-llm/Berkeley-Function-Calling-Leaderboard/bfcl_eval/data/BFCL_v4_multiple.json": (
        Path.unlink,
        r"BFCL_v4_multiple\.json expected, not found",
    ),
    "allenai/tulu-3-harmbench-eval/harmbench_behaviors_text_test.csv": (
        Path.unlink,
        r"allenai/tulu-3-harmbench-eval: expected JSONL or Parquet files \* for harmbench\.jsonl, found none",
    ),
    "allenai/wildguardmix/test/wildguard_test.parquet": (
        lambda path: write(path, [{"prompt": "x", "response_harm_label": "harmful"}]),
        r"wildguard_test\.parquet:1: wildguardtest\.jsonl expected a column prompt_harm_label",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_mirror_is_one_line(name, mirror, tmp_path, inline):
    spoil, message = BAD[name]
    broken = tmp_path / "mirror"
    hub_id = "/".join(name.split("/")[:2])
    shutil.copytree(mirror / hub_id, broken / hub_id)
    spoil(broken / name)
    only = next(row.name for row in BENCHMARK_DATA if row.hub.id == hub_id)
    given = ("--from", broken, "--out", tmp_path / "out", "--accept-counts", "--only", only)
    status, _, err = inline("prepare_data", "bar19", *given)
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert re.search(message, err), err
    assert not (tmp_path / "out").exists()
