"""ZebraLogic (arXiv 2502.01100): grids of houses; an answer is right when every cell of its JSON is."""

import json
import re

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19.texts import fill, text_of
from megatron_bar.evaluation.benchmarks.benchmark import Grade, JudgeModel, PublishedBenchmark, once

PROMPT = text_of("zebralogic.txt")
EASY = ("2*2", "2*3", "2*4", "2*5", "2*6", "3*2", "3*3")


def table(row: dict) -> dict[tuple[str, str], str]:
    """Returns what is in each house's columns. Raises BarError where that is blanked out, as in the public
    copy of the set."""
    solution = row["solution"]
    try:
        cells = {
            (f"House {number}", column): cell.strip().lower()
            for number, house in enumerate(solution["rows"], 1)
            for column, cell in zip(solution["header"][1:], house[1:], strict=True)
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        cells = {}
    if not cells or not all(cell.strip("_") for cell in cells.values()):
        raise BarError(f"puzzle {row['id']}: expected a solution with all cells, found {solution!r:.100}")
    return cells


def prompt(row: dict) -> str:
    houses: dict[str, dict[str, str]] = {}
    for house, column in table(row):
        houses.setdefault(house, {})[column] = "___"
    template = json.dumps({"reasoning": "___", "solution": houses}, indent=4)
    return fill(PROMPT, puzzle=row["puzzle"], json_template=template)


def last_object(text: str) -> dict | None:
    """Returns the last object in braces, None if there is none or it is no JSON."""
    start, span, depth = 0, None, 0
    for brace in re.finditer("[{}]", text):
        if brace[0] == "{":
            start = start if depth else brace.start()
            depth += 1
        elif depth:
            depth -= 1
            span = span if depth else (start, brace.end())
    try:
        found = json.loads(text[slice(*span)].replace("\n", "")) if span else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def cell_of(value: object) -> str | None:
    """Returns what a cell says; of objects and lists the first that is in them."""
    while isinstance(value, dict) and value:
        value = next(iter(value.values()))
    value = value[0] if isinstance(value, list) and value else value
    return value.strip().lower() if isinstance(value, str) else None


def grade(row: dict, answers: list[str], judge: JudgeModel | None) -> Grade:
    cells = table(row)
    found = last_object(answers[0])
    houses = found.get("solution") if found else None
    right = 0
    for (house, column), cell in cells.items():
        said = houses.get(house) if isinstance(houses, dict) else None
        right += isinstance(said, dict) and cell_of(said.get(column)) == cell
    level = "easy" if row["size"] in EASY else "hard"
    return Grade(
        score=float(right == len(cells)),
        detail={"cells": right / len(cells), "parsed": found is not None, "level": level},
    )


BENCHMARK = PublishedBenchmark(
    name="zebralogic",
    category="reasoning",
    rows=1_000,
    columns=("id", "size", "puzzle", "solution"),
    ask=once(prompt),
    grade=grade,
    metric="puzzle accuracy",
)
