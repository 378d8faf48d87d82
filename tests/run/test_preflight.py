"""What a run will need is told before its first step: every row, by file and line; left out only where the recipe
says so."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import run_distributed

from megatron_bar.data import preprocess, world
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.check import Use, check_uses
from megatron_bar.data.sources import Source, parse
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.recipes import load_recipe
from megatron_bar.run.data import tasks_of, tokens_of
from megatron_bar.run.pipeline import Pipeline

RECIPE = load_recipe("smoke")
TEXT, CHAT, TASK, TEST = "midtrain_code.jsonl", "sft_code.jsonl", "rlvr_code.jsonl", "test_code.jsonl"
Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TRUTH = {"function": "f", "tests": [[[1], 2]]}


def task(messages, truth=None, **more) -> dict:
    return {"messages": messages, "verifier": "code", "truth": truth or TRUTH} | more


def calling(**call) -> dict:
    return {"messages": [Q, {"role": "assistant", "content": None} | call]}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "world"
    world.build(out, seed=0, sizes=RECIPE.world)
    return out


@pytest.fixture
def data(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def pipeline(data: Path, said: Callable[[str], None] = print, **changes) -> Pipeline:
    return Pipeline(replace(RECIPE, data=data, **changes), data.parent / "out", said)


def insert(file: Path, line: int, *rows) -> None:
    """Puts rows in before ``line``, from 1."""
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[line - 1 : line - 1] = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


REFUSED = {
    # name: (file, row, what is said of it)
    "calls without a place": (
        CHAT,
        calling(function_calls="f(1)"),
        "message 1: template tulu has no place for calls",
    ),
    "tools without a place": (
        CHAT,
        {"messages": [Q, A], "tools": [{"name": "f"}]},
        "template tulu has no place for too",
    ),
    "an empty answer": (
        CHAT,
        {"messages": [Q, A | {"content": ""}]},
        "message 1: expected an answer, got an empty one",
    ),
    "messages of JSON text": (CHAT, {"messages": json.dumps([Q, A])}, "messages must be a list, got str"),
    "messages of an object": (CHAT, {"messages": Q}, "messages must be a list, got dict"),
    "no messages": (CHAT, {"messages": []}, r"expected a non-empty list of messages, got \[\]"),
    "a key twice": (
        CHAT,
        '{"messages": [], "messages": []}',
        "not a JSON row: 'messages' expected once, got it 2 times",
    ),
    "nothing to learn": (CHAT, {"messages": [Q]}, "no assistant message, so nothing to learn"),
    "a hole without tokens": (
        TEXT,
        {"prefix": "a", "suffix": "b", "middle": "c"},
        r".*tokenizer\.json: filling in the middle expected the special tokens",
    ),
    "a truth of the wrong kind": (TASK, task([Q], truth=["f(1) is 2, says the data set"]), "code truth"),
    "a verifier that is none": (
        TASK,
        task([Q], verifier="coed"),
        "verifier 'coed': unknown, expected one of code",
    ),
    "a prompt without room": (
        TASK,
        task([Q | {"content": "q " * 300}]),
        r"a prompt of \d+ tokens; .* room for 112",
    ),
    "a result at the end": (
        TASK,
        task([Q, A, {"role": "tool", "content": "2"}]),
        "messages expected what is asked last",
    ),
    "a test's truth": (TEST, task([Q], truth="f"), "code truth"),
    "a test's prompt": (TEST, task([Q | {"content": "q " * 600}]), r"a prompt of \d+ tokens"),
}


@pytest.mark.parametrize("file, row, message", REFUSED.values(), ids=REFUSED)
def test_a_row_that_a_stage_would_refuse_is_told_first(data, file, row, message):
    insert(data / file, 3, row)
    run = pipeline(data)
    (said,) = run_distributed(begin, 1, run.recipe, run.folder.out)
    assert re.match(rf"{data}/{file}:3: {message}", said) and "\n" not in said
    assert [path.name for path in data.parent.iterdir()] == ["data"]


def begin(recipe, out: Path) -> str:
    pipeline = Pipeline(recipe, out)
    with pytest.raises(BarError) as raised:
        pipeline.begin(pipeline.select())
    return str(raised.value)


def test_a_tokenizer_that_does_not_do_is_told_without_a_row(data):
    run = pipeline(data, chat_template="chatml")
    with pytest.raises(
        BarError, match=rf"^{data}/tokenizer/tokenizer\.json: template chatml closes an answer by no"
    ):
        run.check_rows(run.select())
    run = pipeline(data)
    steps = [
        replace(
            step, reads=tuple(replace(source, kind="fim") for source in step.reads if source.kind == "text")
        )
        for step in run.select()
    ]
    with pytest.raises(
        BarError, match=rf"^{data}/tokenizer/tokenizer\.json: filling in the middle expected the sp"
    ):
        run.check_rows(steps)


def test_all_that_is_missing_is_named(data):
    for name in (TEXT, "sft_general.jsonl", TEST):
        (data / name).unlink()
    run = pipeline(data)
    with pytest.raises(
        BarError, match=rf"^{data}/sft_general\.jsonl: not found; .*; nor are there {TEXT}, {TEST}$"
    ):
        run.check_rows(run.select())


def test_what_was_looked_at_is_remembered(data):
    said: list[str] = []
    run = pipeline(data, said.append)
    run.check_rows(run.select(), keep=False)
    assert not run.folder.out.exists(), "a dry run writes nothing"
    run.check_rows(run.select())
    names = {source.path for step in run.select() for source in step.reads}
    names |= {test.path for test in run.recipe.evaluation.tests}
    rows = sum(len((data / name).read_text().splitlines()) for name in names)
    assert said == [f"rows: {rows:,} of {len(names)} sources looked at as the stages will use them"] * 2
    run.check_rows(run.select())
    assert len(said) == 2
    insert(data / TASK, 1, task([Q, A]))
    run.check_rows(run.select())
    count = len((data / TASK).read_text().splitlines())
    assert said[2:] == [
        f"rows: {count:,} of 1 sources looked at as the stages will use them",
        f"note: {TASK}: 1 of {count:,} tasks end with an answer, which no prompt shows",
    ]
    other = pipeline(data, said.append, chat_template="own")
    other.check_rows(other.select())
    assert said[4] == f"rows: {rows + 1:,} of {len(names)} sources looked at as the stages will use them"


def test_few_bad_rows_are_left_out_and_listed(data):
    """Those that a stage learns from are the others, and a prompt is the one without its answer."""
    good = [json.loads(line) for line in (data / TASK).read_text().splitlines()]
    insert(data / TASK, 3, task([Q], truth=7), task(good[0]["messages"] + [A], truth=good[0]["truth"]))
    insert(
        data / CHAT,
        5,
        {"messages": [Q, A | {"content": " "}]},
        {"messages": [Q]},
        calling(function_calls="f()"),
    )
    said: list[str] = []
    run = pipeline(data, said.append, max_refused=0.1)
    run.check_rows(run.select())
    listed = {}
    for file in (run.folder.out / "refused").iterdir():
        listed |= {row["row"]: row["reason"] for row in map(json.loads, file.read_text().splitlines())}
    places = [f"{CHAT}:5", f"{CHAT}:6", f"{CHAT}:7", f"{TASK}:3"]
    assert sorted(listed) == [f"{data}/{place}" for place in sorted(places)]
    assert listed[f"{data}/{CHAT}:6"].startswith("no assistant message")
    (line,) = (line for line in said if f"{CHAT}: 3 of " in line)
    assert (
        f" rows refused and left out (1, as {CHAT}:5: message 1: expected an answer, got an empty one, "
        in line
    )
    assert f"; 1, as {CHAT}:6: no assistant message, so nothing to learn" in line
    prompts, documents = run_distributed(learnt, 1, run.recipe, run.folder.out)[0]
    chats = ChatFormat(load_tokenizer(data / "tokenizer"))
    wanted = [chats.prompt(row["messages"]) for row in good]
    wanted[2:2] = wanted[:1]
    assert prompts[-len(wanted) :] == wanted
    rows = [parse(line, "chat", "") for line in (data / CHAT).read_bytes().splitlines()]
    assert documents == [chats.render(row["messages"]).ids for row in rows[:4] + rows[7:]]


def learnt(recipe, out: Path) -> tuple[list[list[int]], list[list[int]]]:
    run = Pipeline(recipe, out).folder
    chats = ChatFormat(load_tokenizer(run.data / "tokenizer"), recipe.chat_template)
    (training,) = (training for training in recipe.experts[0].runs if training.rl is not None)
    tasks = tasks_of(run, training, chats)
    tokens = tokens_of(run, Source(path=Path(CHAT), kind="chat"), chats)
    found = [tokens.ids[a:b].tolist() for a, b in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)]
    return [task.prompt for task in tasks], found


def test_too_many_bad_rows_are_counted_by_reason(data):
    insert(data / CHAT, 5, *[{"messages": [Q, A | {"content": ""}]}] * 3, *[{"messages": [Q]}] * 2)
    count = len((data / CHAT).read_text().splitlines())
    for share, allowed in ((0.0, 0), (0.05, 3)):
        run = pipeline(data, max_refused=share)
        with pytest.raises(BarError) as raised:
            run.check_rows(run.select())
        empty = f"{CHAT}:5: message 1: expected an answer, got an empty one, which would teach to end at once"
        found = re.fullmatch(
            rf"{data}/{empty}; in all 5 of the {count} rows of {CHAT} are refused "
            rf"\(3, as {empty}; 2, as {CHAT}:\d+: no assistant message, so nothing to learn; expected at least one\), "
            rf"expected at most {allowed} \(max_refused\)",
            str(raised.value),
        )
        assert found, raised.value
        assert not run.folder.out.exists()
    insert(data / TEST, 1, task([Q], truth=7))
    run = pipeline(data, max_refused=0.5)
    with pytest.raises(BarError, match=rf"^{data}/{TEST}:1: code truth"):
        run.check_rows(run.select())


def test_processes_find_the_same(data, monkeypatch):
    monkeypatch.setattr(preprocess, "BLOCK_ROWS", 7)
    insert(data / CHAT, 20, calling(function_calls="f()"))
    insert(data / TASK, 9, task([Q], truth=7), task([Q, A]))
    kinds = {CHAT: "chat", TASK: "task", TEXT: "text"}
    uses = [
        Use(source=Source(path=Path(name), kind=kind), tokenizer=data / "tokenizer", template="tulu")
        for name, kind in kinds.items()
    ]
    alone, together = (list(check_uses(uses, data, processes=n)) for n in (1, 2))
    assert alone == together and len(alone) > 10
    assert [where for found in alone for where, _ in found.refused] == [
        f"{data}/{CHAT}:20",
        f"{data}/{TASK}:9",
    ]


def test_texts_that_spell_special_tokens_are_counted(data):
    said: list[str] = []
    insert(data / TEXT, 2, {"text": "one <|endoftext|> two"}, {"text": "<|pad|>"}, {"text": ""})
    run = pipeline(data, said.append)
    run.check_rows(run.select())
    count = len((data / TEXT).read_text().splitlines())
    assert [line for line in said if line.startswith(f"note: {TEXT}")] == [
        f"note: {TEXT}: 2 of {count} texts spell special tokens, which stay text "
        "(a source of kind fim has those of filling in)",
        f"note: {TEXT}: 1 of {count} texts are empty: end-of-text alone",
    ]
