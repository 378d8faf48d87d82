"""Data for a small pretrained model: four domains that it lacks, and prompts that it answers itself.

``build`` writes files of JSONL that are a function of the seed. Of each domain there are chats to learn,
held-out chats to choose learning rates by, and held-out tasks to measure; mathematics and code have texts for
mid-training and tasks for RLVR besides. Files PROMPTS_X hold prompts without answers, from which X is made by
whoever has a model (evaluation/own_answers.py). Items of published benchmarks: real.py.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from megatron_bar.data.smol import code, gym, math, prompts, safety, tool_use
from megatron_bar.data.world.lexicon import Example, Side, Split

DOMAINS = ("tool_use", "math", "code", "safety")
PROMPTS = "prompts_"
MOST_DRAWS = 1000
"""Draws for each row that is wanted, before fewer rows must do."""


@dataclass(frozen=True, kw_only=True)
class SmolSizes:
    """Rows per file."""

    midtrain: int = 350
    tool_use: int = 500
    math: int = 700
    code: int = 700
    safety: int = 260
    rlvr: int = 400
    general: int = 300
    """Prompts that the model answers itself."""
    harmless: int = 400
    """Requests that only sound harmful, likewise."""
    validation: int = 40
    test: int = 100


def samplers(seed: int, side: Side) -> dict[str, Callable[[Random], Example]]:
    return {
        "tool_use": partial(tool_use.sample, offered=tool_use.of_side(seed, side)),
        "math": math.sample,
        "code": code.sample,
        "safety": safety.sample,
        "harmless": safety.harmless,
        "general": prompts.general,
        "instructions": prompts.instruction,
    }


def drawn(seed: int, stage: str, skill: str, count: int, side: Side = "training") -> list[Example]:
    """Returns ``count`` examples of one side with different prompts, fewer where there are not so many."""
    rng = Random(f"{seed}/{stage}/{skill}")
    sample = samplers(seed, side)[skill]
    split = Split(seed=seed)
    found: dict[str, Example] = {}
    for _ in range(MOST_DRAWS * count):
        if len(found) == count:
            break
        # Functions lie on one side with all of their requests.
        example = sample(rng) if skill == "tool_use" else split.draw(sample, rng, side)
        found.setdefault(example.prompt[-1]["content"], example)
    return list(found.values())


def build(out: Path, *, seed: int, sizes: SmolSizes = SmolSizes()) -> Path:
    """Writes every file into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    split = Split(seed=seed)
    for skill in DOMAINS:
        taught = drawn(seed, "sft", skill, getattr(sizes, skill))
        _write(out / f"sft_{skill}.jsonl", (example.chat(skill) for example in taught))
        unseen = drawn(seed, "validation", skill, sizes.validation, "validation")
        _write(out / f"validation_{skill}.jsonl", (example.chat(skill) for example in unseen))
        tests = drawn(seed, "test", skill, sizes.test, "test")
        if skill == "safety":  # half of them only sound harmful, so that to refuse all is worth half
            tests += drawn(seed, "test", "harmless", sizes.test, "test")
        _write(out / f"test_{skill}.jsonl", (example.task() for example in tests))
    for skill, module in (("math", math), ("code", code)):
        rng = Random(f"{seed}/midtrain/{skill}")
        texts = ({"text": module.midtrain(rng, split)} for _ in range(sizes.midtrain))
        _write(out / f"midtrain_{skill}.jsonl", texts)
        tasks = [example.task() for example in drawn(seed, "rlvr", skill, sizes.rlvr)]
        if skill == "math" and gym.is_there():
            tasks = tasks[: sizes.rlvr // 2] + gym.tasks(seed, sizes.rlvr - sizes.rlvr // 2)
        _write(out / f"rlvr_{skill}.jsonl", tasks)
    instructions = drawn(seed, "test", "instructions", sizes.test, "test")
    _write(out / "test_instructions.jsonl", (example.task() for example in instructions))
    for name, skill, count, side in (
        ("sft_general", "general", sizes.general, "training"),
        ("validation_general", "general", sizes.validation, "validation"),
        ("sft_harmless", "harmless", sizes.harmless, "training"),
    ):
        asked = drawn(seed, name, skill, count, side)
        _write(out / f"{PROMPTS}{name}.jsonl", ({"messages": list(example.prompt)} for example in asked))
    return out


def _write(path: Path, rows: Iterable[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
