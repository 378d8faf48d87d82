"""Public sets to files: one reading a set, resumable to the same bytes, counts and hashes, and every kind of bad
mirror in one line with nothing left."""

import hashlib
import json
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from data.mirror import chat, padded, turn, write
from distributed import start_process
from kill_points import count_calls

from megatron_bar.data import prepare as module
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.convert import NoTokenizer
from megatron_bar.data.hub import FromHub, HubSet, Mirror, NotFetched
from megatron_bar.data.prepare import Rules, prepare, read_manifest
from megatron_bar.data.sources import Source, read_rows
from megatron_bar.errors import BarError

MIXED = HubSet(id="some/mixture")
TASKS = HubSet(id="some/tasks")


def of_mixture(name: str, *values: str, **more) -> FromHub:
    return FromHub(
        path=Path(f"sft/{name}.jsonl"), hub=MIXED, convert="chat", column="source", values=values, **more
    )


ONE, TWO = of_mixture("one", "a/one", rows=40), of_mixture("two", "a/two", "a/three", rows=40)
TASK = FromHub(path=Path("rlvr/tasks.jsonl"), hub=TASKS, convert="task", rows=30)
TABLE = [ONE, TWO, TASK]


def rules(**more) -> Rules:
    return Rules(chats=ChatFormat(NoTokenizer(), "chatml"), **more)


def run(mirror: Path, out: Path, table: list[FromHub] = TABLE, **more) -> dict[str, dict]:
    return prepare(table, Mirror(mirror), out, rules(**more), lambda line: None)


def mixed_rows() -> list[dict]:
    values = ["a/one", "a/two", "a/three", "another", "a/one"] * 20
    rows = enumerate(values)
    return [{"id": str(n), "messages": padded(chat(n)), "source": value} for n, value in rows]


def task_rows() -> list[dict]:
    return [
        {"prompt": f"user: {n} + 1?", "ground_truth": [str(n + 1)], "dataset": ["math"]} for n in range(30)
    ]


def make(folder: Path, mixed: list[dict] | None = None, tasks: list[dict] | None = None) -> Path:
    mixed = mixed_rows() if mixed is None else mixed
    for n in range(4):
        write(folder / f"some/mixture/data/train-{n:05d}-of-00004.parquet", mixed[n::4])
    for n, rows in enumerate(
        np.array_split(np.array(task_rows() if tasks is None else tasks, dtype=object), 3)
    ):
        write(folder / f"some/tasks/train-{n}.jsonl{('', '.gz', '.zst')[n]}", rows.tolist())
    return folder


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("mirror"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_set_is_read_once_into_all_of_its_files(mirror, tmp_path):
    said = []
    made = prepare(TABLE, Mirror(mirror), tmp_path / "out", rules(), said.append)
    assert sorted(contents(tmp_path / "out")) == [
        "manifest.json",
        "rlvr/tasks.jsonl",
        "sft/one.jsonl",
        "sft/two.jsonl",
    ]
    order = [row for n in range(4) for row in mixed_rows()[n::4]]
    for table_row in (ONE, TWO):
        wanted = [{"messages": chat(int(row["id"]))} for row in order if row["source"] in table_row.values]
        assert lines(tmp_path / "out" / table_row.path) == wanted
        assert (
            made[str(table_row.path)]["found"]
            == made[str(table_row.path)]["kept"]
            == len(wanted)
            == table_row.rows
        )
    assert [task["truth"] for task in lines(tmp_path / "out/rlvr/tasks.jsonl")] == [
        str(n + 1) for n in range(30)
    ]
    assert "some/mixture: 4 of 4 files, 100 rows read, 80 kept" in said
    read_rows(Source(path=TASK.path, kind="task"), tmp_path / "out")


def test_the_manifest_has_hashes_of_what_was_read_and_of_what_was_made(mirror, tmp_path):
    run(mirror, tmp_path / "out")
    for path, entry in read_manifest(tmp_path / "out").items():
        data = (tmp_path / "out" / path).read_bytes()
        assert (entry["bytes"], entry["blake3"]) == (len(data), blake3(data).hexdigest())
        hub = mirror / entry["made"]["hub"]
        assert [file["name"] for file in entry["files"]] == sorted(
            p.relative_to(hub).as_posix() for p in hub.rglob("*") if p.is_file()
        )
        for file in entry["files"]:
            assert file["sha256"] == hashlib.sha256((hub / file["name"]).read_bytes()).hexdigest()


def test_run_again_it_makes_what_is_missing(mirror, tmp_path):
    out = tmp_path / "out"
    run(mirror, out, [ONE])
    first = (out / ONE.path).stat()
    run(mirror, out)
    assert (out / ONE.path).stat().st_mtime_ns == first.st_mtime_ns
    (out / TWO.path).unlink()
    run(mirror, out)
    run(mirror, tmp_path / "straight")
    assert contents(out) == contents(tmp_path / "straight")


def test_the_sample_is_the_mixers(tmp_path):
    mirror, sampled = make(tmp_path / "mirror"), replace(TASK, sample=10)
    run(mirror, tmp_path / "out", [sampled])
    drawn = sorted(np.random.RandomState(42).choice(30, 10, replace=False).tolist())
    assert [int(task["truth"]) - 1 for task in lines(tmp_path / "out" / TASK.path)] == drawn


def test_long_prompts_are_left_out_after_the_sample_is_drawn(tmp_path, tiny_tokenizer):
    rows = task_rows()
    for n in (3, 17):
        rows[n]["prompt"] = "user: " + "one plus two " * 200
    mirror, chats = make(tmp_path / "mirror", tasks=rows), ChatFormat(tiny_tokenizer, "tulu")
    long = replace(TASK, longest_prompt=100)
    made = prepare([long], Mirror(mirror), tmp_path / "out", Rules(chats=chats), lambda line: None)
    entry = made[str(TASK.path)]
    assert (entry["found"], entry["kept"], entry["too_long"], entry["refused"]) == (30, 28, 2, {})
    assert entry["made"]["tokenizer"] == tiny_tokenizer.hash
    both = replace(long, sample=20)
    prepare([both], Mirror(mirror), tmp_path / "both", Rules(chats=chats), lambda line: None)
    drawn = set(np.random.RandomState(42).choice(30, 20, replace=False).tolist())
    assert len(lines(tmp_path / "both" / TASK.path)) == len(drawn - {3, 17})


@pytest.fixture(scope="module")
def tiny_tokenizer(tmp_path_factory):
    from megatron_bar.data.tokenizer import load_tokenizer, train_tokenizer

    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["<|user|>\none plus two is three\n<|assistant|>\n"] * 9, out, vocab_size=300)
    return load_tokenizer(out)


def test_refused_rows_are_counted_by_reason_and_listed(tmp_path):
    rows = task_rows()
    rows[4]["ground_truth"], rows[5]["ground_truth"], rows[20]["dataset"] = (
        {"a": 1},
        {"a": 2},
        "general-quality",
    )
    mirror = make(tmp_path / "mirror", tasks=rows)
    with pytest.raises(
        BarError,
        match=r"rlvr/tasks\.jsonl: expected at most 5\.00% of the rows refused, got 3 of 30: 2 x math truth.* \(first some/tasks/train-0\.jsonl:5\); 1 x expected a data set out of",
    ):
        run(mirror, tmp_path / "out", [replace(TASK, rows=None)])
    assert not (tmp_path / "out").exists()
    made = run(mirror, tmp_path / "out", [TASK], max_refused=0.1)[str(TASK.path)]
    assert (made["kept"], sorted(made["refused"].values())) == (27, [1, 2])
    listed = lines(tmp_path / "out/refused.jsonl")
    assert [row["row"] for row in listed] == [
        f"some/tasks/train-{n}" for n in ("0.jsonl:5", "0.jsonl:6", "2.jsonl.zst:1")
    ]
    assert json.loads(listed[0]["was"])["ground_truth"] == {"a": 1}
    (tmp_path / "out" / TASK.path).unlink()
    run(mirror, tmp_path / "out", max_refused=0.1)
    assert lines(tmp_path / "out/refused.jsonl") == listed


# ---- kills


def killed(mirror: Path, out: Path, report: Path, kill_at: int | None) -> None:
    count_calls(module.__file__, report, kill_at, run_with_refused, mirror, out)


def run_with_refused(mirror: Path, out: Path) -> None:
    run(mirror, out, max_refused=0.2)


@pytest.fixture(scope="module")
def with_refused(tmp_path_factory) -> Path:
    rows = task_rows()
    rows[4]["ground_truth"] = {"a": 1}
    mixed = mixed_rows()
    mixed[7]["messages"] = []
    return make(tmp_path_factory.mktemp("refused"), mixed, rows)


@pytest.fixture(scope="module")
def straight(with_refused, tmp_path_factory):
    """What an undisturbed run leaves, and how many calls into the system it makes."""
    root = tmp_path_factory.mktemp("straight")
    process = start_process(killed, with_refused, root / "out", root / "report", None, output=root / "log")
    process.join()
    assert process.exitcode == 0, (root / "log").read_text()
    return contents(root / "out"), json.loads((root / "report").read_text())


KILLS = 20


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_it_goes_on_and_ends_with_the_same_bytes(number, with_refused, straight, tmp_path):
    expected, calls = straight
    point = 1 + (number * 2 + 1) * len(calls) // (2 * KILLS)
    out = tmp_path / "out"
    process = start_process(killed, with_refused, out, tmp_path / "report", point, output=tmp_path / "log")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = contents(out)
    assert all(
        before[name] == expected[name]
        for name in before.keys() & expected.keys()
        if name.endswith(".jsonl") and name != "refused.jsonl"
    )
    run_with_refused(with_refused, out)
    assert contents(out) == expected


@pytest.mark.faults
def test_killed_around_every_change_of_the_disk_it_ends_with_the_same_bytes(with_refused, straight, tmp_path):
    """Before and after all but the writes of rows."""
    expected, calls = straight
    points = [n for n, call in enumerate(calls, 1) if call.split()[1] not in ("write", "replace")]
    assert len(points) > 200
    for point in points:
        out = tmp_path / str(point)
        process = start_process(
            killed, with_refused, out, tmp_path / "report", point, output=tmp_path / "log"
        )
        process.join()
        assert process.exitcode == -signal.SIGKILL
        run_with_refused(with_refused, out)
        assert contents(out) == expected, (point, calls[point - 1])
        shutil.rmtree(out)


def test_what_was_read_before_a_kill_is_not_read_again(with_refused, straight, tmp_path):
    calls = straight[1]
    out = tmp_path / "out"
    process = start_process(
        killed, with_refused, out, tmp_path / "report", len(calls) // 4, output=tmp_path / "log"
    )
    process.join()
    state = json.loads(next(out.glob(".prepare/*/state.json")).read_text())
    assert state["read"]
    broken = tmp_path / "mirror"
    shutil.copytree(with_refused, broken)
    for file in state["read"]:
        path = next(broken.glob(f"some/*/{file['name']}"))
        path.write_bytes(bytes(path.stat().st_size))  # who reads it again fails
    run_with_refused(broken, out)
    assert contents(out) == straight[0]


def test_other_bytes_in_the_place_of_what_a_killed_run_left_are_noticed(with_refused, straight, tmp_path):
    out = tmp_path / "out"
    process = start_process(
        killed, with_refused, out, tmp_path / "report", len(straight[1]) // 4, output=tmp_path / "log"
    )
    process.join()
    part = next(path for path in out.glob(".prepare/*/sft/*.jsonl") if path.stat().st_size)
    part.write_bytes(b"x" + part.read_bytes()[1:])
    with pytest.raises(BarError, match="expected what an interrupted run left, got other bytes; run again"):
        run_with_refused(with_refused, out)
    run_with_refused(with_refused, out)
    assert contents(out) == straight[0]


class BreaksOff(Mirror):
    """Gives so many files, and then cannot be reached."""

    def __init__(self, folder: Path, files: int):
        super().__init__(folder)
        self.left = files

    def fetch(self, source, file, into):
        self.left -= 1
        if self.left < 0:
            raise NotFetched("the hub is away")
        return super().fetch(source, file, into)


def test_after_a_network_that_broke_off_it_goes_on(with_refused, straight, tmp_path):
    out, options = tmp_path / "out", rules(max_refused=0.2)
    for files in (3, 1, 2):  # seven in all
        with pytest.raises(NotFetched):
            prepare(TABLE, BreaksOff(with_refused, files), out, options, lambda line: None)
    prepare(TABLE, BreaksOff(with_refused, 1), out, options, lambda line: None)
    assert contents(out) == straight[0]


def limited(mirror: Path, out: Path, most: int) -> None:
    """A run that may write files of so many bytes: a longer one fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    with pytest.raises(BarError, match="could not be written: File too large"):
        run_with_refused(mirror, out)


@pytest.mark.parametrize("most", [400, 1_500, 3_000])
def test_after_a_disk_that_was_full_it_goes_on(most, with_refused, straight, tmp_path):
    out = tmp_path / "out"
    process = start_process(limited, with_refused, out, most, output=tmp_path / "log")
    process.join()
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    run_with_refused(with_refused, out)
    assert contents(out) == straight[0]


# ---- bad input


def cut(path: Path, keep: float = 0.47) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def edit_tasks(change):
    def act(mirror: Path) -> None:
        rows = task_rows()
        change(rows)
        make(mirror, tasks=rows)

    return act


def other_schema(mirror: Path) -> None:
    write(
        mirror / "some/mixture/data/train-00002-of-00004.parquet", [{"conversations": [], "source": "a/one"}]
    )


def no_filter_column(mirror: Path) -> None:
    rows = [{"messages": chat(1), "dataset": "a/one"}]
    write(mirror / "some/mixture/data/train-00000-of-00004.parquet", rows)


def messages_everywhere(value):
    def act(mirror: Path) -> None:
        rows = [{"prompt": None, "ground_truth": "1", "dataset": "math", "messages": value}] * 30
        make(mirror, tasks=rows)

    return act


def ends_in_a_result(mirror: Path) -> None:
    result = [turn("user", "u"), turn("assistant", None, function_calls="f()"), turn("environment", "4")]
    make(mirror, [row | {"messages": padded(result)} for row in mixed_rows()])


BAD = {
    "no folder of the set": (
        lambda m: shutil.rmtree(m / "some/tasks"),
        r"some/tasks: not found; expected the files of the data set some/tasks, got none",
    ),
    "a shard is missing": (
        lambda m: (m / "some/mixture/data/train-00001-of-00004.parquet").unlink(),
        r"some/mixture: data/train-00001-of-00004\.parquet is missing; expected 4 files data/train-\*, got 3",
    ),
    "no file": (
        lambda m: shutil.rmtree(m / "some/mixture/data"),
        r"some/mixture: expected JSONL or Parquet files \* for sft/one\.jsonl, found none",
    ),
    "Parquet cut": (
        lambda m: cut(m / "some/mixture/data/train-00003-of-00004.parquet"),
        r"train-00003-of-00004\.parquet: expected Parquet, got a file that is not readable",
    ),
    "Parquet empty": (
        lambda m: cut(m / "some/mixture/data/train-00003-of-00004.parquet", 0),
        r"train-00003-of-00004\.parquet: expected Parquet",
    ),
    "JSONL cut": (
        lambda m: cut(m / "some/tasks/train-0.jsonl"),
        r"some/tasks/train-0\.jsonl:\d+: not a JSON row: .*; it is the last line, so the file was cut",
    ),
    "gzip cut": (
        lambda m: cut(m / "some/tasks/train-1.jsonl.gz"),
        r"train-1\.jsonl\.gz: expected a whole file, got one broken after line",
    ),
    "zstd cut": (
        lambda m: cut(m / "some/tasks/train-2.jsonl.zst"),
        r"train-2\.jsonl\.zst: expected a whole file, got one broken after line",
    ),
    "JSONL empty": (
        lambda m: cut(m / "some/tasks/train-0.jsonl", 0),
        r"train-0\.jsonl: expected at least one row, got none",
    ),
    "another schema": (
        other_schema,
        r"some/mixture/data/train-00002-of-00004\.parquet:1: sft/one\.jsonl expected a column messages, got conversations, source",
    ),
    "no filter column": (
        no_filter_column,
        r"train-00000-of-00004\.parquet:1: sft/one\.jsonl expected a column source, got messages, dataset",
    ),
    "fewer rows": (
        edit_tasks(lambda rows: rows.pop()),
        r"rlvr/tasks\.jsonl: expected 30 rows of some/tasks, got 29; --accept-counts takes them",
    ),
    "no row of a value": (
        lambda m: make(m, [row | {"source": "x"} for row in mixed_rows()]),
        r"sft/one\.jsonl: expected 40 rows of some/mixture with source = a/one, got 0",
    ),
    "truths of the wrong kind": (
        edit_tasks(lambda rows: [row.update(ground_truth=None) for row in rows[9:12]]),
        r"got 3 of 30 so far: 3 x math truth: .* \(first some/tasks/train-0\.jsonl:10\)",
    ),
    "rows that end in a result": (
        ends_in_a_result,
        r"sft/one\.jsonl: expected at most 5\.00% of the rows refused, got 10 of 40 so far: 10 x expected the assistant's answer last",
    ),
    "messages empty": (
        messages_everywhere([]),
        r"got 10 of 30 so far: 10 x expected a message before the answer",
    ),
    "messages a dict": (
        messages_everywhere({"role": "user"}),
        r"got 10 of 30 so far: 10 x messages or prompt expected as a list or a text",
    ),
    "messages of JSON text": (
        messages_everywhere('[{"role": "user"}]'),
        r"got 10 of 30 so far: 10 x messages or prompt expected as a list or a text",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_mirror_is_one_line_and_leaves_nothing(name, tmp_path):
    spoil, message = BAD[name]
    mirror = make(tmp_path / "mirror")
    spoil(mirror)
    with pytest.raises(BarError, match=message) as error:
        run(mirror, tmp_path / "out", [ONE, TASK])
    assert "\n" not in str(error.value)
    assert set(contents(tmp_path / "out")) in (set(), {"manifest.json", "sft/one.jsonl"})


def test_a_bad_line_in_the_middle_is_a_row_that_is_refused(tmp_path):
    mirror = make(tmp_path / "mirror")
    file = mirror / "some/tasks/train-0.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*rows[:3], '{"prompt": \n', *rows[3:]]))
    run(mirror, tmp_path / "out", [TASK])
    (refused,) = lines(tmp_path / "out/refused.jsonl")
    assert refused["row"] == "some/tasks/train-0.jsonl:4" and refused["reason"].startswith("not a JSON row")


def test_a_key_that_a_row_has_twice_is_no_row(tmp_path):
    mirror = make(tmp_path / "mirror")
    file = mirror / "some/tasks/train-0.jsonl"
    file.write_text("\ufeff" + file.read_text().replace('"dataset"', '"prompt": "user: other", "dataset"', 1))
    made = run(mirror, tmp_path / "out", [TASK], accept_counts=True)[str(TASK.path)]
    assert made["kept"] == 29 and list(made["refused"]) == ["not a JSON row: 'prompt' expected once"]


def test_too_many_refused_rows_are_told_when_it_is_sure(tmp_path):
    rows = task_rows()
    for row in rows[:5]:
        row["dataset"] = "general-quality"
    said = []
    with pytest.raises(BarError, match="got 5 of 30 so far: 5 x expected a data set out of"):
        prepare([TASK], Mirror(make(tmp_path / "mirror", tasks=rows)), tmp_path / "out", rules(), said.append)
    assert said == []  # after the first of three files
    rows = [row | {"ground_truth": None} for row in task_rows()]
    mirror = make(tmp_path / "plain", tasks=rows * 12)
    with pytest.raises(BarError, match="got 120 of 120 so far: 120 x math truth"):
        prepare([replace(TASK, rows=None)], Mirror(mirror), tmp_path / "out", rules(), said.append)
    assert said == []


def test_counts_can_be_accepted_but_not_none(tmp_path):
    mirror = make(tmp_path / "mirror", tasks=task_rows()[:20])
    made = run(mirror, tmp_path / "out", [TASK], accept_counts=True)[str(TASK.path)]
    assert (made["found"], made["made"]["rows"]) == (20, 30)
    with pytest.raises(BarError, match=r"got 0\Z"):
        run(mirror, tmp_path / "none", [replace(ONE, values=("nowhere",))], accept_counts=True)


def test_a_disk_that_is_too_small_is_told_before_anything_is_read(tmp_path):
    mirror = make(tmp_path / "mirror")
    with (mirror / "some/mixture/data/train-more.parquet").open("wb") as file:
        file.truncate(8 << 40)  # a hole: no byte of it is there
    with pytest.raises(BarError, match=r"out: not enough space: expected about 17,592\.2 GB free, got "):
        run(mirror, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_of_somebody_else_is_kept(mirror, tmp_path):
    (tmp_path / "out/sft").mkdir(parents=True)
    (tmp_path / "out/sft/one.jsonl").write_text("mine\n")
    with pytest.raises(
        BarError, match=r"sft/one\.jsonl: expected none or the file of an earlier run, got one that is not"
    ):
        run(mirror, tmp_path / "out")
    assert contents(tmp_path / "out") == {"sft/one.jsonl": b"mine\n"}


@pytest.mark.parametrize("change", [{"rows": 41}, {"values": ("a/two",)}])
def test_a_file_of_another_table_is_not_taken_for_this_ones(change, mirror, tmp_path):
    run(mirror, tmp_path / "out", [ONE])
    with pytest.raises(BarError, match="got one of another table, template or size; remove it"):
        run(mirror, tmp_path / "out", [replace(ONE, **change)])


def test_another_manifest_and_a_link_for_a_folder_are_refused(mirror, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text('{"format": 1}')
    with pytest.raises(BarError, match="expected the manifest of prepared data, got another file"):
        run(mirror, tmp_path / "out")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/.prepare").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BarError, match="expected a folder of our own, got a link"):
        run(mirror, tmp_path / "linked")
    assert not (tmp_path / "elsewhere").exists()


def test_one_process_at_a_time(mirror, tmp_path):
    out = tmp_path / "out"
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); time.sleep(60)"
    (out / ".prepare").mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", code, out / ".prepare/lock"], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(BarError, match="expected to be its only writer"):
            run(mirror, out)
    finally:
        other.kill()
        other.wait()
    run(mirror, out)
    assert not (out / ".prepare").exists()
