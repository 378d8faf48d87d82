"""ZebraLogic: cells of the last JSON; invented puzzles of the published shape."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19 import zebralogic


def puzzle(number: int, houses: int = 3, columns: int = 3) -> dict:
    draw = random.Random(number)
    header = ["House", "Name", "Drink", "Pet", "Food", "Hair", "Car"][: columns + 1]
    drawn = [draw.sample([f"{name} {at}" for at in range(houses)], houses) for name in header[1:]]
    rows = [[str(at + 1), *(values[at] for values in drawn)] for at in range(houses)]
    solution = {"header": header, "rows": rows}
    size = f"{houses}*{columns}"
    return {"id": f"lgp-{number}", "size": size, "puzzle": "?", "solution": solution, "index": number}


def answered(row: dict) -> dict:
    header, rows = row["solution"]["header"], row["solution"]["rows"]
    return {f"House {house[0]}": dict(zip(header[1:], house[1:], strict=True)) for house in rows}


def graded(row: dict, solution: object, form: str = "{}"):
    text = json.dumps({"reasoning": "so {", "solution": solution})
    return zebralogic.grade(row, [form.replace("{}", text.replace("so {", "so"))], None)


ROWS = [puzzle(number, 2 + number % 5, 2 + number % 4) for number in range(40)]


def test_gold_and_another_items_answer():
    for form in ("{}", "```json\n{}\n```", 'First {"a": 1}.\n{}\nThat is all.'):
        grades = [graded(row, answered(row), form) for row in ROWS]
        assert zebralogic.BENCHMARK.combine(ROWS, grades) == 1
        assert {grade.detail["level"] for grade in grades} == {"easy", "hard"}
    wrong = [
        graded(row, answered(puzzle(row["index"] + 100, *map(int, row["size"].split("*"))))) for row in ROWS
    ]
    assert zebralogic.BENCHMARK.combine(ROWS, wrong) == 0
    assert 0 < sum(grade.detail["cells"] for grade in wrong) / len(ROWS) < 0.6


ROW = puzzle(5, 2, 2)
GOLD = answered(ROW)
NAME = GOLD["House 2"]["Name"]


@pytest.mark.parametrize(
    "name, right",
    [
        (NAME, 1), (f" {NAME.upper()} ", 1), ([NAME], 1), ({"is": NAME}, 1), ({"is": [NAME]}, 1), ("", 0), (None, 0),
        ([], 0), ({}, 0), (7, 0), ([[NAME]], 0), ([None], 0), (f"{NAME}!", 0), ("Name 9", 0), (True, 0),
    ],
)  # fmt: skip
def test_forms_of_a_cell(name, right):
    grade = graded(ROW, GOLD | {"House 2": GOLD["House 2"] | {"Name": name}})
    assert (grade.score, grade.detail["cells"]) == (right, 1 if right else 3 / 4)


@pytest.mark.parametrize(
    "solution",
    [None, [], "House 1", {}, {"House 1": GOLD["House 1"]}, GOLD | {"House 2": NAME}, [GOLD], {"x": GOLD}],
)
def test_other_shapes_are_wrong(solution):
    assert graded(ROW, solution).score == 0


@pytest.mark.parametrize(
    "text, parsed",
    [
        ("", False), ("no JSON", False), ("{" * 200_000, False), ("{}" * 1000, True), ("}" + "{}", True), ("[]", False),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, False), ('{"solution": ' + "9" * 10_000 + "}", False),
        ("{'a': 1}", False), ('{"a": 1} {"b": ', True),
    ],
)  # fmt: skip
def test_what_is_parsed(text, parsed):
    grade = zebralogic.grade(ROW, [text], None)
    assert (grade.score, grade.detail["parsed"]) == (0, parsed)


def test_the_last_object_decides():
    good, bad = (json.dumps({"solution": solution}) for solution in (GOLD, {}))
    assert zebralogic.grade(ROW, [bad + good], None).score == 1
    assert zebralogic.grade(ROW, [good + bad], None).score == 0
    lines = good.replace('{"sol', '{"reasoning": "one\ntwo", "sol', 1)
    assert "\n" in lines and zebralogic.grade(ROW, [lines], None).score == 1
    assert (
        zebralogic.grade(ROW, [f"{{{good}"], None).score == 0
    )  # a brace that stays open holds all behind it


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_is_found_behind_any_words(value):
    text = json.dumps({"solution": value})
    if text.count("{") == text.count("}") == sum(1 for _ in _opened(value)) + 1:
        assert zebralogic.last_object(f"words }} words {text} words") == {"solution": value}


def _opened(value):
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _opened(inner)


@pytest.mark.parametrize(
    "solution",
    [
        None, {}, {"header": ["House", "Name"], "rows": [["1", "___"]]}, {"header": ["House", "Name"], "rows": []},
        {"header": ["House", "Name"], "rows": [["1", "Ann", "cat"]]}, {"header": ["House"], "rows": [["1"]]},
        {"header": ["House", "Name"], "rows": [["1", None]]},
    ],
)  # fmt: skip
def test_blank_solutions_are_told_before_anything_is_asked(solution):
    row = ROW | {"solution": solution}
    for use in (lambda: zebralogic.BENCHMARK.ask(row, []), lambda: zebralogic.grade(row, ["{}"], None)):
        with pytest.raises(BarError, match="puzzle lgp-5: expected a solution with all cells, found"):
            use()
