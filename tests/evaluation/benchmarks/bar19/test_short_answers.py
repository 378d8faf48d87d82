"""PopQA by the names of its answers, SimpleQA by a grader; rows of the published shape."""

import json

import pytest

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19 import popqa, simpleqa

JOBS = ("painter", "Physicist", "sailor", "poet", "judge", "nurse", "baker", "spy", "monk", "chef")
PEOPLE = [
    {
        "id": n,
        "question": f"What is person {n}'s occupation?",
        "possible_answers": json.dumps([job, f"{job} at sea"]),
    }
    for n, job in enumerate(JOBS)
]


def test_popqas_gold_and_another_items_answer():
    forms = ("{}", "I believe it was {}.", "A: **{}**")
    for form in forms:
        answers = [form.format(job) for job in JOBS]
        right = [popqa.grade(row, [answer], None) for row, answer in zip(PEOPLE, answers, strict=True)]
        wrong = [
            popqa.grade(row, [answer], None)
            for row, answer in zip(PEOPLE, answers[1:] + answers[:1], strict=True)
        ]
        assert popqa.BENCHMARK.combine(PEOPLE, right) == 1
        assert popqa.BENCHMARK.combine(PEOPLE, wrong) == 0


@pytest.mark.parametrize(
    "names, answer, right",
    [
        (["New York"], "in new york", 1), (["New York"], "New york", 1), (["New York"], "in nEW york", 0),
        (["iPod"], "The Ipod", 1), (["iPod"], "The IPOD", 0), (["white", "ivory"], "Ivory", 1), (["white"], "", 0),
        (["", "  ", "white"], "grey", 0),
    ],
)  # fmt: skip
def test_names_as_they_are_lower_and_capitalised(names, answer, right):
    assert popqa.grade({"possible_answers": names}, [answer], None).score == right


@pytest.mark.parametrize("names", ["", "[", "[]", '""', "3", "null", None, [], [""], [3]])
def test_a_row_without_names_is_told(names):
    with pytest.raises(BarError, match="possible_answers: expected a list of names, found"):
        popqa.grade({"possible_answers": names}, ["a"], None)


class Grader:
    """Replies one after another, the last again and again."""

    def __init__(self, *replies: str):
        self.replies, self.asked = list(replies), []

    def chat(self, messages, *, max_tokens):
        self.asked.append(messages)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


YEARS = [{"problem": f"In which year was X{n} founded?", "answer": str(1900 + n)} for n in range(10)]


class Reader:
    """A grader that looks for the gold in the predicted answer."""

    def chat(self, messages, *, max_tokens):
        lines = messages[0]["content"].splitlines()
        gold, said = (
            [line for line in lines if line.startswith(start)][-1] for start in ("Gold", "Predicted")
        )
        return "A" if gold.split()[-1] in said else "C" if "know" in said else "B: INCORRECT"


def test_simpleqas_f1():
    def f1(answers):
        grades = [simpleqa.grade(row, [answer], Reader()) for row, answer in zip(YEARS, answers, strict=True)]
        return simpleqa.BENCHMARK.combine(YEARS, grades)

    gold = [f"In {row['answer']}." for row in YEARS]
    assert f1(gold) == 1
    assert f1(gold[1:] + gold[:1]) == 0
    # 4 right of 6 attempted and of 10: the harmonic mean of 2/3 and 2/5
    assert f1(gold[:4] + ["In 1850."] * 2 + ["I do not know."] * 3 + [" \n"]) == pytest.approx(1 / 2)
    assert f1(["I do not know."] * 10) == 0


@pytest.mark.parametrize(
    "reply, verdict",
    [
        ("A", "correct"), ("b", "incorrect"), (" (C)\n", "not attempted"), ("**A**", "correct"), ("B: INCORRECT", "incorrect"),
        ("CORRECT", "correct"), ("Incorrect.", "incorrect"), ("NOT_ATTEMPTED", "not attempted"), ("C: NOT ATTEMPTED", "not attempted"),
        ("<think>A or B?</think>\nB", "incorrect"),
    ],
)  # fmt: skip
def test_verdicts(reply, verdict):
    grader = Grader(reply)
    grade = simpleqa.grade(YEARS[0], ["1900"], grader)
    assert (
        grade.detail == {"verdict": verdict}
        and grade.score == (verdict == "correct")
        and len(grader.asked) == 1
    )


NONSENSE = (
    "",
    "D",
    "A correct answer would be 1900.",
    "not correct",
    "A B",
    "A: INCORRECT",
    "BC",
    "I am A model",
    "🤷",
    "<think>A",
)


@pytest.mark.parametrize("reply", NONSENSE)
def test_nonsense_is_asked_about_twice_and_never_a_score(reply):
    grader = Grader(reply)
    with pytest.raises(BarError, match=r"judge grader: expected A, B or C, found .* in 3 tries"):
        simpleqa.grade(YEARS[0], ["1900"], grader)
    assert [len(messages) for messages in grader.asked] == [1, 3, 5]
    grader = Grader(reply, "B")
    assert simpleqa.grade(YEARS[0], ["1900"], grader).score == 0
    assert grader.asked[1][1:] == [
        {"role": "assistant", "content": reply},
        {"role": "user", "content": 'Just return the letters "A", "B", or "C", with no text around it.'},
    ]


def test_no_judge_is_told():
    with pytest.raises(BarError, match="judge grader: expected one, found none; --judge grader=URL"):
        simpleqa.grade(YEARS[0], ["1900"], None)
