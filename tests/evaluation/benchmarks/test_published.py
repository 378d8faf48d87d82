"""Invented benchmarks from questions to the table: answers against transformers, resumed, shared, and through a
server that misbehaves."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from evaluation.invented import NEW, ROWS, SUITE, chats, group_of, run, served, write_data
from evaluation.tiny_chat import QUESTIONS, save_chat_hf
from scripts import ENV, ROOT

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.items import said, spread
from megatron_bar.evaluation.benchmarks.table import table
from megatron_bar.evaluation.results import read_results, write_results
from megatron_bar.parallel.state import distributed

UNITS = ROWS + 2 * 3 * ROWS
"""Requests of the benchmarks plain and turns."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_chat_hf(tmp_path_factory.mktemp("published") / "model", max_position_embeddings=256)


@pytest.fixture(scope="module", autouse=True)
def _group():
    with distributed():
        yield


@pytest.fixture
def place(tmp_path):
    write_data(tmp_path / "data")
    return tmp_path


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The table of an undisturbed run through a server."""
    place = tmp_path_factory.mktemp("whole")
    write_data(place / "data")
    with served() as (url, _):
        return table(run(folder, place, server=url))


def transformers_answers(folder: Path) -> list[str]:
    """Greedy answers to the questions, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for n in range(ROWS):
        chat = [{"role": "user", "content": f"{QUESTIONS[n % 4]} {n}"}]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**ids, max_new_tokens=NEW, do_sample=False)[0, ids["input_ids"].shape[1] :]
        found.append(tokenizer.decode(out, skip_special_tokens=True))
    return found


def test_answers_in_process_are_those_of_transformers(folder, place):
    expected = transformers_answers(folder)
    write_data(place / "data", [text if n % 4 else "other" for n, text in enumerate(expected)])
    found = run(folder, place, slots=5)
    assert [item["answer"] for item in found["scores"]["plain"]] == expected
    assert [item["score"] for item in found["scores"]["plain"]] == [float(n % 4 > 0) for n in range(ROWS)]
    plain = found["benchmarks"]["plain"]
    assert (plain["score"], plain["items"], plain["answers"]) == (0.75, ROWS, 1)
    assert plain["low"] < 0.75 < plain["high"]
    assert found["benchmarks"]["judged"] == {"category": "safety", "not_measured": "not asked for"}
    assert found["categories"]["math"]["partial"] is False and found["overall"]["partial"] is True
    write_results(place / "r.json", found)
    assert read_results(place / "r.json") == found


def test_what_is_drawn_depends_on_the_item_alone(folder, place):
    """Other slots, another order of asking, some answers there already."""
    whole = run(folder, place, slots=3)
    file = place / "answers" / "turns.jsonl"
    head, *lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 3 * ROWS and len({line.partition("turns")[2] for line in lines}) > 2 * ROWS
    file.write_text(head + "".join(lines[::5]))
    assert run(folder, place, slots=7) == whole
    (place / "answers" / "turns.jsonl").unlink()
    assert run(folder, place, slots=64) == whole


def test_macro_means_are_by_the_column(folder, place):
    with served() as (url, _):
        found = run(folder, place, server=url)
    scores = [item["score"] for item in found["scores"]["turns"]]
    groups = {group: [s for n, s in enumerate(scores) if group_of(n) == group] for group in "ab"}
    expected = sum(sum(values) / len(values) for values in groups.values()) / 2
    assert found["benchmarks"]["turns"]["score"] == pytest.approx(expected)
    assert (len(groups["a"]), len(groups["b"])) == (5, ROWS - 5) and expected != pytest.approx(
        sum(scores) / ROWS
    )


def test_a_server_gets_the_templates_prompts_with_their_seeds_and_room(folder, place):
    with served(positions=200) as (url, state):
        run(folder, place, server=url)
    first = [[{"role": "user", "content": f"{QUESTIONS[n % 4]} {n}"}] for n in range(ROWS)]
    prompts = [chats(folder).prompt(messages) for messages in first]
    greedy = [asked for asked in state.requests if asked["temperature"] == 0]
    assert sorted(asked["prompt"] for asked in greedy) == sorted(prompts)
    assert all(asked["max_tokens"] == min(NEW, 200 - len(asked["prompt"])) for asked in state.requests)
    assert {tuple(asked["stop_token_ids"]) for asked in greedy} == {tuple(sorted(chats(folder).stop_ids))}
    drawn = [asked for asked in state.requests if asked["temperature"]]
    assert {(asked["temperature"], asked["top_p"]) for asked in drawn} == {(0.8, 0.9)}
    assert len({asked["seed"] for asked in drawn}) == len(drawn) == 2 * 3 * ROWS
    later = [asked["prompt"] for asked in drawn if asked["prompt"] not in prompts]
    assert len(later) == 3 * ROWS and all(any(ids[:9] == prompt[:9] for prompt in prompts) for ids in later)


def test_a_prompt_that_is_too_long_is_an_empty_answer_and_told(folder, place):
    """plain's prompts have 19 to 50 tokens or so, a second turn's twice as many."""
    lengths = [
        len(chats(folder).prompt([{"role": "user", "content": f"{QUESTIONS[n % 4]} {n}"}]))
        for n in range(ROWS)
    ]
    positions = sorted(lengths)[ROWS // 2]
    with served(positions=positions) as (url, state):
        found = run(folder, place, ("plain",), server=url)
    long = [n for n, length in enumerate(lengths) if length >= positions]
    assert found["benchmarks"]["plain"]["too_long"] == len(long) > 0
    assert len(state.requests) == ROWS - len(long)
    assert [n for n, item in enumerate(found["scores"]["plain"]) if not item["answer"]] == long
    assert f"plain: {len(long)} prompts too long for the model, graded as empty answers" in table(found)


ONCE = {
    "status 500": lambda n: 500 if n % 3 == 0 else None,
    "status 429": lambda n: 429 if n % 3 == 0 else None,
    "reset": lambda n: "reset" if n % 3 == 0 else None,
    "no choice": lambda n: {"model": "the-model", "choices": []} if n % 3 == 0 else None,
    "nothing written": lambda n: (
        {
            "choices": [{"text": "", "finish_reason": "stop"}],
            "usage": {"completion_tokens": 0},
        }
        if n % 3 == 0
        else None
    ),
    "no text": lambda n: {"choices": [{"text": None, "finish_reason": "stop"}]} if n % 3 == 0 else None,
    "aborted": lambda n: {"choices": [{"text": "wrong", "finish_reason": "abort"}]} if n % 3 == 0 else None,
    "another model": lambda n: (
        {"model": "other", "choices": [{"text": "wrong", "finish_reason": "stop"}]} if n % 3 == 0 else None
    ),
    "no object": lambda n: [] if n % 3 == 0 else None,
}


@pytest.mark.parametrize("name", ONCE)
def test_what_a_server_does_now_and_then_changes_nothing(name, folder, place, whole):
    with served(ONCE[name]) as (url, state):
        # One at a time: then no request meets three faults.
        assert table(run(folder, place, server=url, requests=1)) == whole
    assert state.asked.total() > UNITS


@pytest.mark.parametrize(
    "fault, told",
    [
        (500, r"got status 500: .*fault.* \(3 times\)"),
        (400, r"got status 400: .*fault"),
        ("reset", r"got .*(Remote|reset|closed).* \(3 times\)"),
        ({"model": "other", "choices": [{"text": "a", "finish_reason": "stop"}]}, "got one of 'other'"),
        ({"choices": []}, r"got no answer in .*choices"),
    ],
)
def test_a_server_that_fails_for_good_is_one_line_and_no_answer_is_lost(fault, told, folder, place, whole):
    with served(lambda n: fault if n >= 15 else None) as (url, state):
        with pytest.raises(BarError, match=rf"^{re.escape(url)}: expected an answer of the-model, {told}"):
            run(folder, place, ("plain",), server=url, requests=4)
    assert lines_of(place) == 1 + 15
    with served() as (url, state):
        assert table(run(folder, place, server=url)) == whole
    assert state.asked.total() == UNITS - 15


def test_a_slow_server_is_asked_many_at_a_time(folder, place, whole):
    most = 0
    with served(seconds=0.05) as (url, _state):
        began = time.monotonic()
        assert table(run(folder, place, server=url, requests=32)) == whole
        most = time.monotonic() - began
    assert most < UNITS * 0.05, "one at a time"


def start(folder: Path, place: Path, url: str = "") -> subprocess.Popen:
    environment = ENV | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "evaluation.invented", folder, place, *([url] if url else [])]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def lines_of(place: Path, names: str = "*.jsonl") -> int:
    return sum(file.read_bytes().count(b"\n") for file in (place / "answers").glob(names))


def test_killed_and_resumed_it_is_the_same_table_and_no_stored_answer_is_asked_for_again(
    folder, place, whole
):
    with served(seconds=0.05) as (url, _):
        running = start(folder, place, url)
        while lines_of(place) < 40:
            assert running.poll() is None, running.communicate()
            time.sleep(0.005)
        os.kill(running.pid, signal.SIGKILL)
        running.communicate()
    kept = {name: lines_of(place, f"{name}.jsonl") - 1 for name in ("plain", "turns")}
    with (place / "answers" / "turns.jsonl").open("a") as file:
        file.write('{"item": 3, "answer": 1, "tur')  # as a kill in the middle of a line leaves it
    with served() as (url, state):
        assert table(run(folder, place, server=url)) == whole
    assert state.asked.total() == UNITS - kept["plain"] - 2 * kept["turns"] < UNITS
    assert set(state.asked.values()) == {1}
    assert lines_of(place) == 2 + ROWS + 3 * ROWS > 2 + sum(kept.values())


def test_two_processes_share_the_work(folder, place, whole):
    with served(seconds=0.1) as (url, state):
        pair = [start(folder, place, url) for _ in range(2)]
        printed = [running.communicate(timeout=240) for running in pair]
    assert [out.splitlines() for out, _ in printed] == [whole, whole], printed
    assert state.asked.total() == UNITS and set(state.asked.values()) == {1}


def test_what_a_killed_process_had_claimed_is_taken_by_the_other(folder, place, whole):
    with served(seconds=0.3) as (url, _state):
        pair = [start(folder, place, url) for _ in range(2)]
        while lines_of(place) < 10:
            time.sleep(0.005)
        os.kill(pair[0].pid, signal.SIGKILL)
        pair[0].communicate()
        out, err = pair[1].communicate(timeout=240)
    assert out.splitlines() == whole, err


def test_a_full_disk_is_one_line_and_the_rest_follows(folder, place, whole):
    with served() as (url, _):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
        try:
            with pytest.raises(BarError, match=r"(plain|turns)\.jsonl: could not be written: File too large"):
                run(folder, place, server=url)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        kept = lines_of(place)
        files = list((place / "answers").glob("*.jsonl"))
        assert kept > 10 and all(file.read_bytes().endswith(b"\n") for file in files)
        assert table(run(folder, place, server=url)) == whole


def test_answers_of_something_else_are_refused(folder, place, tmp_path_factory):
    other = save_chat_hf(tmp_path_factory.mktemp("other") / "model", seed=8, max_position_embeddings=256)
    with served() as (url, _):
        run(folder, place, server=url)
        file = re.escape(str(place / "answers" / "plain.jsonl"))
        said = "expected of {} .*, got those of .*; give another folder"
        with pytest.raises(BarError, match=rf"^{file}: answers {said.format('model_hash')}"):
            run(other, place, server=url)
        with pytest.raises(BarError, match=rf"^{file}: answers {said.format('protocol')}"):
            run(folder, place, server=url, protocol="greedy")
        with pytest.raises(BarError, match=rf"^{file}: answers {said.format('through')}"):
            run(folder, place)
        write_data(place / "data", ["others"] * ROWS)
        with pytest.raises(BarError, match=rf"^{file}: answers {said.format('data')}"):
            run(folder, place, server=url)


def test_scoring_needs_no_model_and_says_what_is_missing(folder, place, whole):
    with served() as (url, _):
        run(folder, place, ("turns",), server=url, limit=5)
        found = run(folder, place, ("turns", "plain"), limit=5, score_only=True)
        assert found["benchmarks"]["plain"]["not_measured"] == (
            f"5 of 5 answers are not in {place / 'answers' / 'plain.jsonl'}"
        )
        assert found["benchmarks"]["turns"]["items"] == 5 and not (place / "answers" / "plain.jsonl").exists()
        run(folder, place, server=url)
    assert [line for line in table(run(folder, place, score_only=True)) if "answers by" not in line] == [
        line for line in whole if "answers by" not in line
    ]


def test_without_judge_or_data_it_is_not_measured(folder, place):
    (place / "data" / "plain.jsonl").unlink()
    with served() as (url, _):
        found = run(folder, place, (), server=url, limit=4)
    lines = table(found)
    assert "judged: not measured: needs --judge wildguard=URL; its answers are there" in lines
    expected = (
        f"plain: not measured: {place}/data/plain.jsonl not found; make it by `bar prepare bar19 --out "
    )
    assert any(line.startswith(expected) for line in lines)
    assert found["categories"]["math"]["partial"] and found["categories"]["safety"]["mean"] is None
    judge = type(
        "Judge", (), {"model": "j", "complete": lambda self, prompt, *, max_tokens: "no " + prompt}
    )()
    again = run(folder, place, ("judged",), limit=4, score_only=True, judges={"wildguard": judge})
    assert again["benchmarks"]["judged"]["score"] == 1.0 and again["settings"]["judges"] == {"wildguard": "j"}


BAD_DATA = {
    "a row less": (lambda text: text.split("\n", 1)[1], r"plain\.jsonl: expected the 24 rows .*, got 23"),
    "a column less": (
        lambda text: text.replace('"truth"', '"gold"'),
        r"plain\.jsonl:1: expected a column truth",
    ),
    "no JSON": (lambda text: text[:-9] + "\n", r"plain\.jsonl:24: not readable as JSON"),
}


@pytest.mark.parametrize("change, told", BAD_DATA.values(), ids=BAD_DATA)
def test_other_data_are_refused_before_anything_is_asked(change, told, folder, place):
    file = place / "data" / "plain.jsonl"
    file.write_text(change(file.read_text()))
    with served() as (url, state), pytest.raises(BarError, match=told):
        run(folder, place, server=url)
    assert not state.requests and not (place / "answers").exists()


def test_a_file_that_its_manifest_is_not_of_is_refused(folder, place):
    made = {"files": {"plain.jsonl": {"blake3": "00", "commit": "abc", "licence": "MIT"}}}
    (place / "data" / "manifest.json").write_text(json.dumps(made))
    with pytest.raises(
        BarError, match=r"plain\.jsonl: expected the file that manifest\.json beside it is of"
    ):
        run(folder, place)


def test_a_limit_spreads_over_the_file_and_a_larger_one_holds_it():
    rows = [{"index": n} for n in range(1000)]
    for limit in (10, 50, 250):
        chosen = [row["index"] for row in spread(rows, limit)]
        gaps = [after - before for before, after in zip([-1, *chosen], [*chosen, 1000], strict=True)]
        assert len(chosen) == limit and chosen == sorted(chosen) and max(gaps) <= 3 * 1000 / limit
        assert set(chosen) < {row["index"] for row in spread(rows, 2 * limit)}
    assert spread(rows, None) == rows and spread(rows, 5000) == rows


def test_thoughts_and_tags_are_no_answer():
    assert said("<think>a</think>b</think> <answer>4</answer>\n") == "4"
    assert said("thoughts</think>4") == "4" and said(" 4 ") == "4"
    assert said("<think>the answer is 4") == ""


def test_every_benchmark_of_the_suite_is_in_the_table(folder, place, whole):
    for benchmark in SUITE.benchmarks:
        assert any(benchmark.name in line for line in whole)
    assert any(re.match(r"BAR-5x7B, as released \(published\) +49.1 +28.4", line) for line in whole)
