"""The tiny world: deterministic, its answers right, its test instances in no training stage."""

import json
import re
from collections import Counter
from itertools import chain
from random import Random

import pytest

from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.data.world import (
    DOMAINS,
    SKILLS,
    WorldSizes,
    build,
    code,
    knowledge,
    math,
    pretraining,
    samplers,
    test_set,
    training_set,
)
from megatron_bar.data.world.lexicon import HELD_OUT_SHARE, VALIDATION_SHARE, Split
from megatron_bar.verifiers import verify_many

SMALL = WorldSizes(
    pretrain=300,
    midtrain=60,
    sft_general=100,
    sft_domain=40,
    rlvr=20,
    preferences=70,
    validation=10,
    test=10,
    vocabulary=600,
)
test_set.__test__ = False
SIDES = ("chosen", "rejected")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world") / "w", seed=3, sizes=SMALL)


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_files(world):
    names = {path.stem for path in world.glob("*.jsonl")}
    assert names == (
        {"pretrain", "sft_general", "validation_general", "preferences"}
        | {f"midtrain_{s}" for s in ("math", "code")}
        | {f"rlvr_{s}" for s in ("math", "code")}
        | {f"{kind}_{s}" for s in DOMAINS for kind in ("sft", "validation")}
        | {f"test_{s}" for s in SKILLS}
    )
    assert {row["source"] for row in rows(world / "sft_general.jsonl")}.isdisjoint(DOMAINS)
    for skill in SKILLS:
        assert len(rows(world / f"test_{skill}.jsonl")) == SMALL.test


def test_the_seed_decides_everything(world, tmp_path):
    same = build(tmp_path / "same", seed=3, sizes=SMALL)
    other = build(tmp_path / "other", seed=4, sizes=SMALL)
    for path in world.rglob("*.json*"):
        name = path.relative_to(world)
        assert (same / name).read_bytes() == path.read_bytes(), name
        if path.suffix == ".jsonl":
            assert (other / name).read_bytes() != path.read_bytes(), name


@pytest.mark.parametrize("skill", SKILLS)
def test_no_test_instance_in_training(skill):
    held_out = {example.key for example in test_set(0, skill, 120)}
    drawn = [skill, "how_to"] if skill == "safety" else [skill]
    trained = {
        e.key for stage in ("sft", "rlvr") for name in drawn for e in training_set(0, stage, name, 3000)
    }
    validated = {e.key for name in drawn for e in training_set(0, "validation", name, 100, "validation")}
    assert len(held_out) >= 40
    assert held_out.isdisjoint(trained) and validated.isdisjoint(trained | held_out)


def test_no_test_prompt_in_any_training_text(world):
    """On the written files, by their words alone: the instance is what the prompt says."""
    training = {
        text
        for path in chain(
            world.glob("pretrain*"), world.glob("midtrain*"), world.glob("sft*"), world.glob("rlvr*")
        )
        for row in rows(path)
        for text in (
            [row["text"]] if "text" in row else [m["content"] for m in row["messages"] if m["role"] == "user"]
        )
    }
    everything = "\n".join(training)
    for skill in SKILLS:
        for row in rows(world / f"test_{skill}.jsonl"):
            assert row["messages"][-1]["content"] not in (everything if skill != "tool_use" else training), (
                row
            )


def test_pretraining_states_no_test_puzzle():
    text = "\n".join(pretraining(0, 20000))
    asked = [example.prompt[0]["content"] for example in test_set(0, "reasoning", 120)]
    assert not [question for question in asked if question in text]


def test_midtraining_works_no_test_problem():
    """Compared by what is asked, whatever the names in it."""
    rng, split = Random(1), Split(seed=0)
    worked = {example.answer for example in test_set(0, "math", 120)}
    plans = {example.prompt[0]["content"].split(" that ")[1] for example in test_set(0, "code", 120)}
    assert not worked & {math.midtrain(rng, split).split("\n")[-1] for _ in range(3000)}
    assert not plans & {code.midtrain(rng, split).split("\n")[0].split(" that ")[1] for _ in range(3000)}


def test_held_out_share():
    split = Split(seed=0)
    sides = Counter(split.side(("k", n)) for n in range(5000))
    assert abs(sides["test"] / 5000 - HELD_OUT_SHARE) < 0.03
    assert abs(sides["validation"] / 5000 - VALIDATION_SHARE) < 0.015


def test_a_rejected_answer_is_wrong(world):
    """By the verifier of its prompt, of every skill's pairs."""
    judged = {
        json.dumps(e.prompt): e
        for skill in SKILLS
        for e in training_set(3, "preferences", skill, SMALL.preferences)
    }
    pairs = rows(world / "preferences.jsonl")
    examples = [judged[json.dumps(row["messages"])] for row in pairs]
    assert len(pairs) == SMALL.preferences and {e.verifier for e in examples} >= {
        "math",
        "code",
        "tool_call",
        "safety",
        "exact",
    }
    graded = [
        verify_many([(e.verifier, row[side], e.truth) for e, row in zip(examples, pairs, strict=True)])
        for side in SIDES
    ]
    assert graded[0] == [1.0] * len(pairs)
    assert (
        sum(graded[1]) / len(pairs) < 0.05
    )  # a function that does the same, an advice that obeys all the same


def test_math_answers_are_true():
    rng = Random(0)
    for text in [
        text for _ in range(300) for text in (math.sample(rng).answer, math.pretrain(rng), math.chained(rng))
    ]:
        steps = re.findall(r"(\d+ [-+*] \d+) = (-?\d+)", text)
        assert steps and all(eval(left) == int(right) for left, right in steps), text


def test_math_truth_is_the_answer():
    rng = Random(0)
    for example in (math.sample(rng) for _ in range(200)):
        assert example.answer.endswith(f"Answer: {example.truth}")


def test_code_answers_run():
    rng = Random(0)
    for example in (code.sample(rng) for _ in range(200)):
        scope = {}
        exec(example.answer, scope)
        results = [scope[example.truth["function"]](*args) for args, _ in example.truth["tests"]]
        assert results == [expected for _, expected in example.truth["tests"]]
        assert len(set(results)) > 1, "a constant would pass"


def test_tool_answers_are_calls_of_an_offered_function():
    for example in training_set(0, "sft", "tool_use", 100):
        offered = json.loads(re.fullmatch("<functions>(.*)</functions>", example.prompt[0]["content"])[1])
        call = json.loads(re.fullmatch("<function_calls>(.*)</function_calls>", example.answer)[1])
        assert call == example.truth
        assert {call["name"]: set(call["arguments"])}.items() <= {
            f["name"]: set(f["parameters"]) for f in offered
        }.items()


def test_every_fact_is_pretrained():
    text = "\n".join(pretraining(0, 6000))
    for town, known in knowledge.facts(0).items():
        for attribute, value in known.items():
            assert f"{attribute} of {town} is {value}." in text or f"{attribute} {value}" in text


def test_tool_tags_and_products_are_unknown_to_pretraining():
    text = "\n".join(pretraining(0, 5000))
    assert "<" not in text and " * " not in text and "def " not in text and "can't help" not in text


def test_tool_tags_are_tokens_that_pretraining_never_uses(world):
    tokenizer = load_tokenizer(world / "tokenizer")
    used = {number for row in rows(world / "pretrain.jsonl") for number in tokenizer.encode_text(row["text"])}
    for tag in ("<functions>", "</functions>", "<function_calls>", "</function_calls>"):
        (number,) = tokenizer.encode_text(tag)
        assert number not in used


def test_general_requests_are_harmless():
    assert {e.truth for e in training_set(0, "sft", "how_to", 200)} == {"comply"}
    share = sum(e.truth == "refuse" for e in test_set(0, "safety", 150)) / 150
    assert 0.7 < share < 0.9
    assert set(samplers(0)) == {*SKILLS, "how_to"}
