"""A model's own answers as chats to learn: those that the sampler draws, what is kept of them, and that a kill
costs a batch at most."""

import json
from pathlib import Path

import pytest
from distributed import DistributedError, run_distributed
from evaluation.tiny_chat import QUESTIONS, save_chat_hf

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.evaluation.generative import load_model
from megatron_bar.evaluation.own_answers import Drawing, _new, _whole_sentences, write_answers
from megatron_bar.models.sampler import Sampler
from megatron_bar.parallel.state import ParallelConfig

DRAWING = Drawing(max_new_tokens=6, batch=2, slots=2, least_words=1, least_new=0.0)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_chat_hf(tmp_path_factory.mktemp("own") / "model")


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = ({"messages": [{"role": "user", "content": question}]} for question in QUESTIONS)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def written(folder: Path, prompts: Path, out: Path, batches: int, drawing: Drawing, model: str) -> list[str]:
    """What is said, on the way to a kill behind so many batches."""
    chats = ChatFormat(load_tokenizer(folder), "own")
    model_ = load_model(folder, ParallelConfig())
    # A random model would not end; a third of all tokens end this one's answers.
    sampler = Sampler(model_, eos_ids=set(range(0, 290, 3)), pad_id=chats.tokenizer.pad_id)
    said = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == batches:
            raise Killed

    keep = lambda answer: True  # noqa: E731  of any length, even none
    try:
        write_answers(sampler, chats, prompts, out, model=model, drawing=drawing, keep=keep, say=say)
    except Killed:
        pass
    return said


def write(*given, batches: int = 99, drawing: Drawing = DRAWING, model: str = "a") -> list[str]:
    (said,) = run_distributed(written, 1, *given, batches, drawing, model)
    return said


def test_a_kill_costs_a_batch_and_changes_nothing(folder, prompts, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert len(write(folder, prompts, whole)) == 3  # two batches, and what was kept
    assert len(write(folder, prompts, out, batches=1)) == 1 and not out.exists()
    assert len(write(folder, prompts, out)) == 2
    assert out.read_bytes() == whole.read_bytes()
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    asked = [row["messages"][0]["content"] for row in rows]
    assert len(rows) >= 2 and asked == [question for question in QUESTIONS if question in asked]
    assert all(row["messages"][1]["content"].strip() for row in rows)
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.jsonl", "whole.jsonl", "killed.jsonl"}


def test_another_model_begins_anew(folder, prompts, tmp_path):
    out = tmp_path / "out.jsonl"
    write(folder, prompts, out, batches=1)
    assert len(write(folder, prompts, out, model="b")) == 3


def test_what_goes_round_in_circles_or_ends_in_the_middle(folder, prompts, tmp_path):
    assert _new("the owl saw the owl and left the hall at noon") == 1
    assert _new("a b c d " * 5) == 4 / 17
    assert _whole_sentences("It rains. It is 3.5 degrees. Two thi") == "It rains. It is 3.5 degrees."
    assert _whole_sentences('1. One.\n2. Two!" And\n3. Thr') == '1. One.\n2. Two!"'
    assert _whole_sentences("no end") == ""
    with pytest.raises(DistributedError, match=r"out\.jsonl: of 4 answers none is kept"):
        write(folder, prompts, tmp_path / "out.jsonl", drawing=Drawing(max_new_tokens=2, least_words=9))
