"""BIG-Bench Hard: an invented row of each of the 27 tasks, texts that part the rules, lm-eval's extraction.

Of the 6,511 published rows 18 have no answer that the published patterns read: 15 lists to be sorted with an
apostrophe or another sign in a word, 3 choices whose target is no letter.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval_filters import extracted

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19 import bbh

TARGETS = {
    "boolean_expressions": ("True", "False"),
    "causal_judgement": ("Yes", "No"),
    "dyck_languages": ("] )", "> ) }"),
    "formal_fallacies": ("valid", "invalid"),
    "multistep_arithmetic_two": ("-24", "24"),
    "navigate": ("Yes", "No"),
    "object_counting": ("7", "12"),
    "sports_understanding": ("yes", "no"),
    "web_of_lies": ("Yes", "No"),
    "word_sorting": ("apple pear", "pear apple"),
}
ROWS = [
    {"task": task, "input": "?", "target": target, "other": other}
    for task in bbh.TASKS
    for target, other in (TARGETS.get(task, ("(A)", "(B)")), TARGETS.get(task, ("(C)", "(R)"))[::-1])
]
GOLD = "Let us see.\nSo the answer is {}."


def score(task: str, target: str, answer: str) -> float:
    return bbh.grade({"task": task, "input": "?", "target": target}, [answer], None).score


def test_gold_and_another_items_answer():
    assert len(bbh.TASKS) == 27
    for form in (GOLD, "{}", "Answer: **{}**", "The answer is {}", "ANSWER IS {}.\n\nDone."):
        # The published patterns of these two take a space for an answer.
        spaced = () if form == GOLD else ("dyck_languages", "word_sorting")
        right = [row for row in ROWS if row["task"] not in spaced]
        assert [row for row in right if not bbh.grade(row, [form.format(row["target"])], None).score] == []
    assert [row for row in ROWS if bbh.grade(row, [GOLD.format(row["other"])], None).score] == []
    assert [row for row in ROWS if bbh.grade(row, ["~"], None).score] == []


@pytest.mark.parametrize(
    "task, target, answer, right",
    [
        ("date_understanding", "(B)", "Not (A). So the answer is (B). Or is it (C)?", 1),
        ("date_understanding", "(B)", "(A) or (B)", 1),
        ("date_understanding", "(B)", "The answer is (b).", 1),
        ("date_understanding", "(B)", "The answer is B.", 0),
        ("date_understanding", "(B)", "The answer is (A). Wait, the answer is (B).", 1),
        ("navigate", "No", "Answer: we come back, so no\nYes?", 1),
        ("navigate", "Yes", "The answer\nyes", 1),
        ("multistep_arithmetic_two", "-24", "So the answer is 24.", 0),
        ("multistep_arithmetic_two", "24", "So the answer is -24.", 0),
        ("object_counting", "12", "So the answer is 12 apples.", 1),
        ("object_counting", "12", "The answer is twelve, 1 more than 11.", 0),
        ("word_sorting", "apple pear", "So the answer is APPLE PEAR.", 1),
        ("word_sorting", "apple pear", "So the answer is apple, pear.", 0),
        ("word_sorting", "can't won't", "So the answer is can't won't.", 0),
        ("dyck_languages", "] )", "So the answer is ] ) .", 1),
        ("dyck_languages", "] )", "So the answer is ])", 0),
        ("formal_fallacies", "valid", "So the answer is invalid.", 0),
        ("web_of_lies", "No", "", 0),
    ],
)
def test_published_rules(task, target, answer, right):
    assert score(task, target, answer) == right


def test_as_lm_eval_extracts_it():
    """The asked-for sentence is read alike in all 27 tasks."""
    for task in bbh.TASKS:
        rows = [row for row in ROWS if row["task"] == task]
        answers = [GOLD.format(row["target"]) for row in rows]
        theirs = extracted(f"bbh/cot_zeroshot/{task}.yaml")(
            answers, [{"input": "Options:\n(A) x\n(B) y\nList: pear apple"}] * 2
        )
        ours = [bbh.extract(answer, bbh.TASKS[task]["answer"]) for answer in answers]
        assert ours == [row["target"] for row in rows]
        assert [text.strip().lower() for text in theirs] == [text.lower() for text in ours]


texts = st.lists(
    st.sampled_from(
        ("So the answer is ", "answer is ", "Answer:", "answer", "(A)", "(b)", "7", "-3", "yes", "\n", " x ")
    )
).map("".join)


@given(texts, st.sampled_from(sorted(bbh.TASKS)))
def test_the_asked_for_sentence_decides_last(before, task):
    target = TARGETS.get(task, ("(A)",))[0]
    assert score(task, target, f"{before}\n{GOLD.format(target)}") == 1


@given(st.one_of(texts, st.text()), st.sampled_from(sorted(bbh.TASKS)))
def test_an_answer_is_a_part_of_the_text(text, task):
    found = bbh.extract(text, bbh.TASKS[task]["answer"])
    assert found is None or found in text


def test_an_unknown_task_is_told():
    with pytest.raises(BarError, match=r"task: expected one of boolean_expressions, .*, found 'sums'"):
        score("sums", "1", "1")
