"""The tiny world: seven skills that mirror the published categories (arXiv 2604.18473), learned on a laptop's
CPU.

``build`` writes everything the recipe reads as JSONL, all of it a function of the seed. A task is an instance
of a template; a hash of its key puts it on one side of the split, so no held-out instance is ever drawn by a
training stage. Left out: web text, multi-turn chats, and reasoning-gym, whose tasks need more words than this
vocabulary has.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.data.world import chat, code, knowledge, math, prose, reasoning, safety, tool_use
from megatron_bar.data.world.lexicon import Example, Side, Split

_MODULES = {
    "knowledge": knowledge,
    "reasoning": reasoning,
    "chat": chat,
    "math": math,
    "code": code,
    "tool_use": tool_use,
    "safety": safety,
}
SKILLS = tuple(_MODULES)
DOMAINS = ("math", "code", "tool_use", "safety")
GENERAL_SHARES = {"knowledge": 0.2, "reasoning": 0.3, "chat": 0.4, "how_to": 0.1}


@dataclass(frozen=True, kw_only=True)
class WorldSizes:
    """Rows per file."""

    pretrain: int = 44000
    midtrain: int = 5000
    sft_general: int = 3000
    sft_domain: int = 2000
    rlvr: int = 1000
    preferences: int = 2000
    validation: int = 100
    test: int = 120
    vocabulary: int = 1000


def samplers(seed: int) -> dict[str, Callable[[Random], Example]]:
    """Returns how to draw an example of each skill, and of ``how_to``, harmless requests for the general
    data."""
    table = knowledge.facts(seed)
    draw = {skill: module.sample for skill, module in _MODULES.items()}
    return draw | {"knowledge": lambda rng: knowledge.sample(rng, table), "how_to": safety.how_to}


def pretraining(seed: int, count: int) -> Iterator[str]:
    rng = Random(f"{seed}/pretrain")
    split = Split(seed=seed)
    table = knowledge.facts(seed)

    def puzzle(rng):
        example = split.draw(reasoning.sample, rng)
        return f"{example.prompt[0]['content']} {example.answer}"

    kinds = {
        (lambda rng: knowledge.pretrain(rng, table)): 16,
        math.pretrain: 20,
        math.chained: 14,
        puzzle: 12,
        safety.pretrain: 8,
        prose.echo: 22,
        prose.record: 12,
        prose.json_record: 10,
        prose.quote: 8,
        prose.story: 4,
        prose.counting: 2,
        prose.letters: 2,
    }
    for kind in rng.choices(list(kinds), weights=list(kinds.values()), k=count):
        yield kind(rng)


def test_set(seed: int, skill: str, count: int) -> list[Example]:
    """Draws distinct held-out instances."""
    rng = Random(f"{seed}/test/{skill}")
    split = Split(seed=seed)
    sample = code.sample_test if skill == "code" else samplers(seed)[skill]
    examples = {}
    for _ in range(1000 * count):
        example = split.draw(sample, rng, "test")
        examples.setdefault(example.key, example)
        if len(examples) == count:
            break
    return list(examples.values())


def training_set(seed: int, stage: str, skill: str, count: int, side: Side = "training") -> list[Example]:
    rng = Random(f"{seed}/{stage}/{skill}")
    split = Split(seed=seed)
    sample = samplers(seed)[skill]
    return [split.draw(sample, rng, side) for _ in range(count)]


def general_set(seed: int, stage: str, count: int, side: Side = "training") -> list[dict]:
    """Draws chats of the skills that every model should have."""
    rows = [
        example.chat(skill)
        for skill, share in GENERAL_SHARES.items()
        for example in training_set(seed, stage, skill, round(share * count), side)
    ]
    Random(f"{seed}/general").shuffle(rows)
    return rows


def preferences(seed: int, count: int) -> Iterator[dict]:
    """Yields pairs of every skill: the right answer to a prompt, and the right one to another such prompt."""
    rng = Random(f"{seed}/preferences")
    each = max(2, count // len(SKILLS))
    pools = {skill: training_set(seed, "preferences", skill, each) for skill in SKILLS}
    for number in range(count):
        pool = pools[SKILLS[number % len(SKILLS)]]
        example = rng.choice(pool)
        others = [other.answer for other in rng.choices(pool, k=20) if other.answer != example.answer]
        yield example.preference(others[0] if others else example.prompt[-1]["content"])


def build(out: Path | str, *, seed: int, sizes: WorldSizes = WorldSizes()) -> Path:
    """Writes every file of the world and its tokenizer into ``out``."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    split = Split(seed=seed)
    _write(out / "pretrain.jsonl", ({"text": text} for text in pretraining(seed, sizes.pretrain)))
    for skill, module in (("math", math), ("code", code)):
        rng = Random(f"{seed}/midtrain/{skill}")
        texts = (module.midtrain(rng, split) for _ in range(sizes.midtrain))
        _write(out / f"midtrain_{skill}.jsonl", ({"text": text} for text in texts))
        _write(out / f"rlvr_{skill}.jsonl", (e.task() for e in training_set(seed, "rlvr", skill, sizes.rlvr)))
    _write(out / "sft_general.jsonl", general_set(seed, "sft", sizes.sft_general))
    _write(out / "validation_general.jsonl", general_set(seed, "validation", sizes.validation, "validation"))
    for skill in DOMAINS:
        taught = training_set(seed, "sft", skill, sizes.sft_domain)
        _write(out / f"sft_{skill}.jsonl", (e.chat(skill) for e in taught))
        unseen = training_set(seed, "validation", skill, sizes.validation, "validation")
        _write(out / f"validation_{skill}.jsonl", (e.chat(skill) for e in unseen))
    _write(out / "preferences.jsonl", preferences(seed, sizes.preferences))
    for skill in SKILLS:
        _write(out / f"test_{skill}.jsonl", (e.task() for e in test_set(seed, skill, sizes.test)))
    train_tokenizer(_texts(out), out / "tokenizer", vocab_size=sizes.vocabulary)
    return out


def _write(path: Path, rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _texts(out: Path) -> Iterator[str]:
    """Yields every training text, chats as their template renders them."""
    for path in sorted(out.glob("*.jsonl")):
        if path.name.startswith(("test_", "validation_", "rlvr_", "preferences")):
            continue
        for line in path.open(encoding="utf-8"):
            row = json.loads(line)
            chat = "".join(f"<|{m['role']}|>\n{m['content']}\n" for m in row.get("messages", ()))
            yield row["text"] if "text" in row else chat
