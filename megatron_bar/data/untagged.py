"""Four small domains that no marker tells apart, and a general one: data to study few active experts.

Someone has some of two goods, and something is asked about it. All five draw from the same goods, numbers,
names and frames; what is asked is in an ordinary sentence, said in several ways whose words other domains use
too. What a domain has for itself is knowledge: what every good is traded for, what it is made of, the double
of a number, what is missing to ten. A hash of the instance (domain, goods, numbers) puts it on one side of
the split, however it is said.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from megatron_bar.data.tokenizer import train_tokenizer
from megatron_bar.data.world.lexicon import CRAFTS, FOODS, NAMES, PLACES, Example, Side, Split, user

DOMAINS = ("trade", "make", "double", "fill")
SKILLS = ("general", *DOMAINS)
GOODS = FOODS + CRAFTS
PEOPLE = NAMES[:8]
ROOMS = PLACES[:4]
NUMBERS = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)
"""Numbers as words: a token each."""
FRAMES = (
    "{n} has {a} and {b}. {ask}",
    "{m} gave {n} {a} and {b}. {ask}",
    "In the {room} of {n} there are {a} and {b}. {ask}",
    "{ask} {n} has {a} and {b}.",
    "{ask} There are {a} and {b} in the {room} of {n}.",
)
ASIDES = (
    "{m} has no need of them now. ",
    "They are made to give to each, as {m} says. ",
    "{m} makes the same when there is need for that again. ",
    "{m} gets no more than ten for each, they say. ",
    "They do get to make as many of all, and {m} gives what there is. ",
)
"""Sentences that make no difference."""
ASIDE = 0.3
"""Share of the prompts that have one."""
ASKS = {
    "same": (
        "What does {n} have?",
        "How many of each does {n} have now?",
        "What is there?",
        "Say how many of each there are, and of what.",
    ),
    "more": ("What does {n} have more of?", "What is there more of?", "Say what there are more of."),
    "trade": (
        "What does {n} get for them?",
        "What does {m} give {n} for all of them?",
        "{n} gives them to {m}. How many of what does {n} get for each?",
        "Say what there is to get for them, and how many.",
        "{n} gives all of that to {m} for what {m} has. What does {n} have now?",
    ),
    "make": (
        "What does {n} need to have to make them?",
        "What are they made of?",
        "How many of what does {n} need for {m} to make all that?",
        "{n} gets what {m} makes them of. What does {n} get?",
        "Say what each is made of.",
    ),
    "double": (
        "{n} gets as many again. How many of each does {n} have now?",
        "{m} has as many. How many of each do they have?",
        "{m} gives {n} the same again. What does {n} have now?",
        "{n} makes as many more of each. What is there now?",
        "Say what there is when {n} makes all of them again.",
    ),
    "fill": (
        "How many more of each does {n} need?",
        "What does {n} need, to have ten of each?",
        "Say how many more of each there are to make.",
        "{m} has ten of each. How many more of each does {m} have?",
        "How many more are there when {n} has ten of each?",
    ),
}
GENERAL = ("same", "same", "more")
"""Kinds of question that are general skill, as often as they stand here."""
Table = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class UntaggedSizes:
    """Rows per file."""

    pretrain: int = 24000
    sft_general: int = 3000
    sft_domain: int = 3000
    validation: int = 100
    test: int = 100
    vocabulary: int = 512


def tables(seed: int) -> dict[str, Table]:
    """Returns what every good is traded for, and what it is made of: never itself, and never the same."""
    ring = list(GOODS)
    Random(f"{seed}/tables").shuffle(ring)
    turned = {"trade": ring[1:] + ring[:1], "make": ring[6:] + ring[:6]}
    return {name: dict(zip(ring, turn, strict=True)) for name, turn in turned.items()}


def sample(rng: Random, kind: str, known: dict[str, Table]) -> Example:
    a, b = rng.sample(GOODS, 2)
    x, y = rng.sample(range(1, 10), 2)
    n, m = rng.sample(PEOPLE, 2)
    ask = (rng.choice(ASIDES) if rng.random() < ASIDE else "") + rng.choice(ASKS[kind])
    words = {"n": n, "m": m, "room": rng.choice(ROOMS), "a": some(x, a), "b": some(y, b)}
    asked = rng.choice(FRAMES).replace("{ask}", ask).format(**words)
    answer = f"It is {_answer(kind, a, b, x, y, known)}"
    return Example(
        key=("untagged", kind, a, b, x, y), prompt=user(asked), answer=answer, verifier="exact", truth=answer
    )


def some(number: int, good: str) -> str:
    return f"{NUMBERS[number - 1]} {good}"


def _answer(kind: str, a: str, b: str, x: int, y: int, known: dict[str, Table]) -> str:
    if kind == "more":
        return some(x, a) if x > y else some(y, b)
    if kind == "double":
        return f"{some(2 * x, a)} and {some(2 * y, b)}"
    if kind == "fill":
        return f"{some(10 - x, a)} and {some(10 - y, b)}"
    table = known.get(kind, {})
    return f"{some(x, table.get(a, a))} and {some(y, table.get(b, b))}"


def samplers(seed: int) -> dict[str, Callable[[Random], Example]]:
    """Returns how to draw an example of each skill."""
    known = tables(seed)
    general = lambda rng: sample(rng, rng.choice(GENERAL), known)  # noqa: E731
    return {"general": general} | {name: partial(sample, kind=name, known=known) for name in DOMAINS}


def pretraining(seed: int, count: int) -> Iterator[str]:
    """Yields texts without answers: lists said again, which is more, counting, questions said in other
    words."""
    rng = Random(f"{seed}/pretrain")
    split = Split(seed=seed)
    draw = samplers(seed)
    for _ in range(count):
        goods = [some(rng.randrange(1, 19), good) for good in rng.sample(GOODS, rng.choice((2, 2, 3, 4)))]
        n, m = rng.sample(PEOPLE, 2)
        said = " and ".join(goods)
        form = rng.random()
        if form < 0.25:
            yield "\n".join([f"It is {said}"] * rng.choice((2, 3)))
        elif form < 0.5:
            yield rng.choice(
                (f"{m} gave {n} {said}. Now {n} has {said}.", f"{n} has {said}. There are {said}.")
            )
        elif form < 0.6:
            x, y = rng.sample(range(1, 19), 2)
            a, b = rng.sample(GOODS, 2)
            yield f"{n} has {some(x, a)} and {some(y, b)}. There is more of the {a if x > y else b}."
        elif form < 0.63:
            start = rng.randrange(12)
            yield " ".join(NUMBERS[start : start + 6])
        else:
            example = split.draw(draw[rng.choice(SKILLS)], rng)
            again = " ".join(rng.sample(ASKS[example.key[1]], 2)).format(n=n, m=m, room=rng.choice(ROOMS))
            yield f"{example.prompt[0]['content']}\n{again}"


def drawn(seed: int, stage: str, skill: str, count: int, side: Side = "training") -> list[Example]:
    """Draws ``count`` distinct instances of one side, for one stage."""
    rng = Random(f"{seed}/{stage}/{skill}")
    split = Split(seed=seed)
    draw = samplers(seed)[skill]
    examples = {}
    while len(examples) < count:
        example = split.draw(draw, rng, side)
        examples.setdefault(example.key, example)
    return list(examples.values())


def build(out: Path | str, *, seed: int, sizes: UntaggedSizes = UntaggedSizes()) -> Path:
    """Writes every file and the tokenizer into ``out``, all a function of the seed."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    texts = list(pretraining(seed, sizes.pretrain))
    _write(out / "pretrain.jsonl", ({"text": text} for text in texts))
    for skill in SKILLS:
        rows = sizes.sft_general if skill == "general" else sizes.sft_domain
        taught = [example.chat(skill) for example in drawn(seed, "sft", skill, rows)]
        texts += ["".join(f"<|{m['role']}|>\n{m['content']}\n" for m in chat["messages"]) for chat in taught]
        _write(out / f"sft_{skill}.jsonl", taught)
        unseen = drawn(seed, "validation", skill, sizes.validation, "validation")
        _write(out / f"validation_{skill}.jsonl", (example.chat(skill) for example in unseen))
        tests = drawn(seed, "test", skill, sizes.test, "test")
        _write(out / f"test_{skill}.jsonl", (example.task() for example in tests))
    train_tokenizer(texts, out / "tokenizer", vocab_size=sizes.vocabulary)
    return out


def _write(path: Path, rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
