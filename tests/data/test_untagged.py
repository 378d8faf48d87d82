"""The untagged domains: answers right, held-out instances in no training file, and nothing but meaning tells
them apart."""

import json
import re
from collections import Counter
from itertools import permutations

import pytest

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.data.untagged import (
    ASKS,
    DOMAINS,
    GOODS,
    NUMBERS,
    SKILLS,
    UntaggedSizes,
    build,
    drawn,
    some,
    tables,
)
from megatron_bar.data.world.lexicon import Split
from megatron_bar.verifiers import verify_many

SMALL = UntaggedSizes(pretrain=2000, sft_general=600, sft_domain=600, validation=60, test=60)
ROW, ANSWER = 128, 9
"""Tokens of a row and of the longest answer, as recipes/untagged.py has them."""
OVERLAP = 0.95


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("untagged") / "data", seed=3, sizes=SMALL)


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompts(folder, kind, skill):
    return [row["messages"][0]["content"] for row in rows(folder / f"{kind}_{skill}.jsonl")]


def test_files(folder):
    kinds = ("sft", "validation", "test")
    assert {path.stem for path in folder.glob("*.jsonl")} == {"pretrain"} | {
        f"{k}_{s}" for k in kinds for s in SKILLS
    }
    for skill in SKILLS:
        assert [len(rows(folder / f"{kind}_{skill}.jsonl")) for kind in kinds] == [600, 60, 60]


def test_the_seed_decides_everything(folder, tmp_path):
    same = build(tmp_path / "same", seed=3, sizes=SMALL)
    other = build(tmp_path / "other", seed=4, sizes=SMALL)
    for path in folder.rglob("*.json*"):
        name = path.relative_to(folder)
        assert (same / name).read_bytes() == path.read_bytes(), name
        if path.suffix == ".jsonl":
            assert (other / name).read_bytes() != path.read_bytes(), name


@pytest.mark.parametrize("skill", SKILLS)
def test_the_sides_share_no_instance(skill):
    trained, validated, held_out = (
        [e.key for e in drawn(0, stage, skill, count, side)]
        for stage, count, side in (
            ("sft", 3000, "training"),
            ("validation", 100, "validation"),
            ("test", 100, "test"),
        )
    )
    assert len(set(held_out)) == len(held_out)
    assert set(held_out).isdisjoint(trained + validated) and set(validated).isdisjoint(trained)


def test_pretraining_asks_about_no_held_out_instance(folder):
    """What its last line asks, and the goods and numbers before it, are the instance."""
    split, seen = Split(seed=3), 0
    for text in asked_in_pretraining(folder):
        last = text.rpartition("\n")[2]
        (kind,) = (kind for kind, asks in ASKS.items() if any(re.match(pattern(ask), last) for ask in asks))
        (x, a), (y, b) = instance(text)
        assert split.side(("untagged", kind, a, b, NUMBERS.index(x) + 1, NUMBERS.index(y) + 1)) == "training"
        seen += 1
    assert seen > 100


def asked_in_pretraining(folder):
    return {row["text"] for row in rows(folder / "pretrain.jsonl") if re.search("What|How|Say", row["text"])}


def pattern(ask):
    """The ask with any names, and nothing else in its sentence."""
    return re.sub(r"\\{\w+\\}", r"\\w+", re.escape(ask)) + "( |$)"


def test_no_held_out_prompt_in_any_training_text(folder):
    """On the written files, by their words alone; and not with other names either, by the goods, numbers and
    what is asked."""
    told = [row["text"] for row in rows(folder / "pretrain.jsonl")]
    told += [prompt for skill in SKILLS for prompt in prompts(folder, "sft", skill)]
    text, answered = "\n".join(told), set()
    for skill in SKILLS:
        answered |= {
            (skill, *instance(row["messages"][0]["content"])) for row in rows(folder / f"sft_{skill}.jsonl")
        }
    for skill in SKILLS:
        for prompt in prompts(folder, "test", skill) + prompts(folder, "validation", skill):
            assert prompt not in text
            assert (
                skill == "general" or (skill, *instance(prompt)) not in answered
            )  # general has two kinds of question


def instance(prompt):
    """The goods of a prompt, with their numbers."""
    return re.findall(rf"\b({'|'.join(NUMBERS)}) ({'|'.join(GOODS)})\b", prompt)


@pytest.mark.parametrize("one, other", list(permutations(SKILLS, 2)))
def test_words_are_shared(folder, one, other):
    """Nearly every word of a domain's prompts is one of the other's too, by kind and by use; capitals
    count."""
    used = [word for prompt in prompts(folder, "sft", one) for word in words(prompt)]
    known = {word for prompt in prompts(folder, "sft", other) for word in words(prompt)}
    assert sum(word in known for word in used) / len(used) >= OVERLAP
    assert len(set(used) & known) / len(set(used)) >= OVERLAP


@pytest.mark.parametrize("skill", SKILLS)
def test_no_word_marks_a_domain(folder, skill):
    own = [set(words(prompt)) for prompt in prompts(folder, "sft", skill)]
    others = set().union(
        *(words(prompt) for other in SKILLS if other != skill for prompt in prompts(folder, "sft", other))
    )
    assert set().union(*own) <= others, "a word that is this domain's alone"
    firsts = {prompt.split()[0] for prompt in prompts(folder, "sft", skill)}
    assert len(firsts) > 10
    assert set.intersection(*own) <= others


def words(prompt):
    return re.findall(r"\w+", prompt)


def test_answers_verify_and_are_right(folder):
    known = tables(3)
    for skill in SKILLS:
        tasks = rows(folder / f"test_{skill}.jsonl")
        assert verify_many([(row["verifier"], row["truth"], row["truth"]) for row in tasks]) == [1.0] * len(
            tasks
        )
        assert not any(
            verify_many([(row["verifier"], row["messages"][0]["content"], row["truth"]) for row in tasks])
        )
        for row in rows(folder / f"sft_{skill}.jsonl"):
            prompt, answer = (message["content"] for message in row["messages"])
            held = [(NUMBERS.index(number) + 1, good) for number, good in instance(prompt)]
            right = {
                "trade": [[(x, known["trade"][good]) for x, good in held]],
                "make": [[(x, known["make"][good]) for x, good in held]],
                "double": [[(x + x, good) for x, good in held]],
                "fill": [[(10 - x, good) for x, good in held]],
                "general": [held, [max(held)]],
            }[skill]
            assert answer in ["It is " + " and ".join(some(*one) for one in goods) for goods in right]


def test_the_tables_never_agree():
    for seed in range(20):
        trade, make = tables(seed)["trade"], tables(seed)["make"]
        for table in (trade, make):
            assert set(table) == set(table.values()) == set(GOODS)
        assert all(len({good, trade[good], make[good]}) == 3 for good in GOODS)


def test_pretraining_tells_no_answer(folder):
    """Every list of it has the goods and numbers that it began with."""
    texts = [row["text"] for row in rows(folder / "pretrain.jsonl")]
    asked = asked_in_pretraining(folder)
    assert asked and all(len(instance(text)) == 2 for text in asked)
    assert all(len(set(Counter(instance(text)).values())) <= 1 for text in set(texts) - asked)


def test_rows_fit_and_words_are_tokens(folder):
    tokenizer = load_tokenizer(folder / "tokenizer")
    chats = ChatFormat(tokenizer, "tulu")
    for skill in SKILLS:
        for row in rows(folder / f"sft_{skill}.jsonl"):
            asked = chats.prompt(row["messages"][:1])
            answer = tokenizer.encode_text(row["messages"][1]["content"])
            assert len(answer) < ANSWER and len(asked) + len(answer) < ROW
    assert all(len(tokenizer.encode_text(f" {word}")) == 1 for word in (*GOODS, *NUMBERS))
    assert set(DOMAINS) < set(SKILLS)
