"""Answers of growing number and length, for bench_growth.py: random weights, greedy, every answer as long as
it may be."""

from pathlib import Path

from bench_evaluate import answers_of, random_run
from bench_rollout import VOCABULARY, ours, save_model
from growth import Quantity, Work
from toy_items import toy_items

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.evaluation.generative import load_model
from megatron_bar.models.sampler import Sampler
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.weights.hf_config import read_config

HIDDEN, ACTIVE = 512, 2
PROMPT, ANSWER, SLOTS = 32, 32, 16
NEW = 32
"""Tokens of an answer to an item at most."""


def prompts(count: int) -> list[list[int]]:
    return [[2 + (7 * n + place) % (VOCABULARY - 2) for place in range(PROMPT)] for n in range(count)]


def slots(place: Path, sizes: tuple[int, ...]) -> list[Work]:
    """Makes as many answers as slots, all at work from beginning to end."""
    run = ours(save_model(place / "model", HIDDEN, ACTIVE))
    return [Work(size=n, run=lambda n=n: run(prompts(n), [ANSWER] * n, n)) for n in sizes]


def answer_length(place: Path, sizes: tuple[int, ...]) -> list[Work]:
    run = ours(save_model(place / "model", HIDDEN, ACTIVE))
    asked = prompts(SLOTS)
    return [Work(size=n, run=lambda n=n: run(asked, [n] * SLOTS, SLOTS)) for n in sizes]


def evaluation(place: Path, sizes: tuple[int, ...]) -> list[Work]:
    """Sizes count items of each of the toy's tests."""
    folder, world = random_run(place)
    chats = ChatFormat(load_tokenizer(folder), "own")
    positions = read_config(folder).max_positions
    # No token ends an answer: one that ends early is less work, whatever the number of items.
    sampler = Sampler(load_model(folder, ParallelConfig()), eos_ids=set(), pad_id=chats.tokenizer.pad_id)

    def work(each: int) -> Work:
        items = toy_items(chats, world, each=each, new=NEW, positions=positions)
        return Work(size=len(items.rows), run=lambda: answers_of(items, sampler, slots=SLOTS))

    return [work(each) for each in sizes]


QUANTITIES = (
    Quantity(
        name="slots",
        over="slots",
        sizes=(1, 4, 16, 64),
        make=slots,
        expected=1,
        why="a pass computes a token a slot; few slots pay for reading the weights, which any number shares",
    ),
    Quantity(
        name="answer_length",
        over="tokens of an answer",
        sizes=(32, 64, 128, 256),
        make=answer_length,
        expected=1,
        why=f"a pass a token, the first with the prompt of {PROMPT}; attention to what was written grows with it "
        "but is small beside the products",
        rounds=4,
    ),
    Quantity(
        name="evaluation",
        over="items",
        sizes=(6, 12, 24, 48),
        make=evaluation,
        expected=1,
        why=f"every item is asked once, {SLOTS} at a time, and its answer stored once",
    ),
)
