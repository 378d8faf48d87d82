"""Answers and scores against transformers' own generation, at several layouts and with fewer active experts;
intervals."""

import json
from pathlib import Path

import pytest
from distributed import run_distributed
from evaluation.tiny_chat import NEW, QUESTIONS, answers, save_chat_hf, write_rows
from verifiers.judge_server import served

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.evaluation import generative
from megatron_bar.evaluation.generative import load_model, measure
from megatron_bar.evaluation.results import model_hash, read_results, write_results
from megatron_bar.parallel.state import ParallelConfig

TESTS = tuple(
    generative.TestSet(name=name, path=Path(f"{name}.jsonl"), max_new_tokens=NEW)
    for name in ("right", "half")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_chat_hf(tmp_path_factory.mktemp("generative") / "model")


def measured(folder, root, layout: ParallelConfig, active: int | None, limit: int | None = None) -> dict:
    model = load_model(folder, layout, active_experts=active)
    return measure(
        folder, model, ChatFormat(load_tokenizer(folder), "own"), TESTS, root, limit=limit, slots=2
    )


def refused(folder, active: int) -> str:
    with pytest.raises(ValueError) as error:
        load_model(folder, ParallelConfig(), active_experts=active)
    return str(error.value)


@pytest.mark.parametrize(
    "layout, processes, active",
    [
        (ParallelConfig(), 1, None),
        (ParallelConfig(), 1, 2),
        (ParallelConfig(tensor=2), 2, None),
        (ParallelConfig(), 2, 1),
        (ParallelConfig(pipeline=2), 2, None),
    ],
)
def test_answers_are_those_of_transformers(layout, processes, active, folder, tmp_path):
    expected = answers(folder, **({} if active is None else {"num_experts_per_tok": active}))
    write_rows(tmp_path / "right.jsonl", expected)
    write_rows(tmp_path / "half.jsonl", [text if n % 2 else "no" for n, text in enumerate(expected)])
    for found in run_distributed(measured, processes, folder, tmp_path, layout, active):
        assert [item["answer"] for item in found["scores"]["right"]] == expected
        assert [item["prompt"] for item in found["scores"]["right"]] == QUESTIONS
        assert [item["score"] for item in found["scores"]["right"]] == [1.0] * 4
        assert [item["score"] for item in found["scores"]["half"]] == [0.0, 1.0, 0.0, 1.0]
        assert (found["active_experts"], found["limit"], found["model_hash"]) == (
            active or 3,
            None,
            model_hash(folder),
        )


def test_reference_answers_behind_the_questions_are_not_shown(folder, tmp_path):
    """As published sets end their messages: the answers are those to the questions alone."""
    expected = answers(folder)
    for test in TESTS:
        write_rows(tmp_path / test.path, expected)
        rows = [json.loads(line) for line in (tmp_path / test.path).read_text().splitlines()]
        for row in rows:
            row["messages"].append({"role": "assistant", "content": "blue"})
        (tmp_path / test.path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    ((found, said),) = run_distributed(measured_and_said, 1, folder, tmp_path)
    assert [item["answer"] for item in found["scores"]["right"]] == expected
    assert [item["prompt"] for item in found["scores"]["right"]] == QUESTIONS
    assert said == [
        f"  {test.name}: 4 of 4 solved; 4 rows end with an answer, which no prompt showed" for test in TESTS
    ]


def measured_and_said(folder, root) -> tuple[dict, list[str]]:
    said: list[str] = []
    model = load_model(folder, ParallelConfig())
    chats = ChatFormat(load_tokenizer(folder), "own")
    return measure(folder, model, chats, TESTS, root, slots=2, say=said.append), said


def test_a_limit_takes_the_first_rows_and_is_told(folder, tmp_path):
    for test in TESTS:
        write_rows(tmp_path / test.path, ["a", "b", "c", "d"])
    (found,) = run_distributed(measured, 1, folder, tmp_path, ParallelConfig(), None, limit=3)
    assert found["limit"] == 3 and found["tests"]["half"]["items"] == 3 == len(found["scores"]["half"])
    write_results(tmp_path / "found.json", found)
    assert read_results(tmp_path / "found.json") == found


def judged(folder, root, judge) -> dict:
    test = generative.TestSet(name="safety", path=Path("safety.jsonl"), max_new_tokens=NEW)
    chats = ChatFormat(load_tokenizer(folder), "own")
    return generative.measure_folder(folder, ParallelConfig(), chats, (test,), root, slots=2, judge=judge)[1]


def test_a_judge_reads_questions_and_answers(folder, tmp_path):
    (tmp_path / "safety.jsonl").write_text(
        "".join(
            json.dumps(
                {"messages": [{"role": "user", "content": asked}], "verifier": "safety", "truth": wanted}
            )
            + "\n"
            for asked, wanted in zip(QUESTIONS, ("comply", "refuse", "comply", "refuse"), strict=True)
        )
    )
    with served("judges") as (process, judge):
        (found,) = run_distributed(judged, 1, folder, tmp_path, judge)
        prompts = [json.loads(process.stdout.readline()) for _ in QUESTIONS]
    assert [item["score"] for item in found["scores"]["safety"]] == [1, 0, 1, 0]
    assert found["judge"] == judge.model
    asked = [prompt.split("Human user:\n")[1].split("\n\nAI assistant:\n")[0] for prompt in prompts]
    assert sorted(asked) == sorted(QUESTIONS)
    with pytest.raises(Exception, match="expected a reply of an OpenAI-like server to /v1/models"):
        run_distributed(judged, 1, folder, tmp_path, judge)


def test_active_experts_that_the_model_has_not_are_refused(folder, tmp_path):
    dense = save_chat_hf(tmp_path / "dense", experts=0)
    for path, active, message in (
        (folder, 4, "from 1 to 3, got 4"),
        (folder, 0, "from 1 to 3, got 0"),
        (dense, 1, "dense model"),
    ):
        (line,) = run_distributed(refused, 1, path, active)
        assert str(path) in line and message in line
