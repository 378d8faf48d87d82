"""IFEval's score against lm-eval's prompt_level_loose_acc, and its rows' shape."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ifeval_cases import arguments, cases, lm_evals, text

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19 import ifeval
from megatron_bar.verifiers.ifeval import IFEVAL
from megatron_bar.verifiers.text import says_something

ROW = {"key": 1000, "prompt": "Write two lines. No commas.", "instruction_id_list": ["punctuation:no_comma"]}
ROW |= {"kwargs": [{"num_words": None, "relation": None, "keywords": None}]}
KEYS = sorted({key for name in IFEVAL for key in arguments(name, "a b", random.Random(0))})


@pytest.fixture(scope="module")
def theirs():
    with lm_evals() as grader:
        yield grader


def test_the_same_scores_as_lm_eval(theirs):
    """On answers between phrases and in stars, of which the loose forms take off one or the other. Those
    without a letter or digit follow nothing here."""
    seen = set()
    for number, (answer, names, kwargs) in enumerate(cases(600)):
        draw = random.Random(number)
        around = draw.choice(
            ("{}", "Sure, here it is:\n{}", "{}\nI hope, it helps.", "Sure, so:\n**{}**\nBye, bye.", "*{}*")
        )
        answer = around.format(answer if draw.random() < 0.7 else text(draw))
        nulls = dict.fromkeys(KEYS)
        row = {"key": number, "prompt": "?", "instruction_id_list": names}
        row["kwargs"] = [nulls | (given or {}) for given in kwargs]
        result = theirs.process_results(row, [answer])
        grade = ifeval.grade(row, [answer], None)
        if not says_something(answer):
            assert grade.score == 0
            continue
        assert grade.detail["followed"] == result["inst_level_loose_acc"], (answer, row)
        assert grade.score == result["prompt_level_loose_acc"]
        seen.add((result["prompt_level_strict_acc"], result["prompt_level_loose_acc"]))
    assert seen == {(True, True), (False, True), (False, False)}


@pytest.mark.parametrize(
    "answer, right",
    [
        ("One line.\nAnother.", 1), ("Sure, here:\nOne line.", 1), ("One, line.\nA, b.\nc", 0), ("", 0), (" \n ", 0),
        ("\u200b", 0), ("...", 0), ("a" * 65_536, 1), ("a" * 65_537, 0), ("**One**", 1),
    ],
)  # fmt: skip
def test_gold_and_others(answer, right):
    assert ifeval.grade(ROW, [answer], None).score == right


def test_each_instruction_may_be_followed_by_another_form():
    row = ROW | {"instruction_id_list": ["punctuation:no_comma", "keywords:existence"]}
    row |= {"kwargs": [None, {"keywords": ["sure"]}]}
    grade = ifeval.grade(row, ["Sure, so:\nOne."], None)
    assert grade.score == 1 and grade.detail == {"followed": [True, True]}


@given(st.text())
def test_eight_forms_at_most_and_none_without_text(answer):
    forms = ifeval.forms(answer)
    assert (
        len(forms) <= 8
        and all(form.strip() for form in forms)
        and (answer in forms) == (answer.strip() != "")
    )


@pytest.mark.parametrize(
    "row",
    [
        ROW | {"kwargs": []}, ROW | {"instruction_id_list": ["punctuation:none"]}, ROW | {"instruction_id_list": []},
        ROW | {"kwargs": None}, ROW | {"kwargs": [{"num_words": 3}]},
        {"instruction_id_list": ["count:numbers"], "kwargs": [{"N": 3}]},
    ],
)  # fmt: skip
def test_a_wrong_row_is_told(row):
    with pytest.raises(BarError, match=r"instruction truth: |instruction_id_list: expected the published 25"):
        ifeval.grade(row, ["a"], None)
