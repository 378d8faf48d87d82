"""BFCL's files to rows: those of v3, or v4's of the same categories, which the package bfcl-eval ships.

A row has id, category (v3's name), question (turns of messages), function (those the model is told of) and
ground_truth (per call, each argument's possible values; for conversations the calls of each turn). A
conversation also has initial_config, involved_classes, missed_function (turn to the functions that it
brings) and sources: BFCL's classes, which its calls are to be run on. They are packed, for 800 rows repeat
them.
"""

import base64
import functools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.bar19.bfcl.categories import CATEGORIES, Category

CLASSES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
"""Class to the name of its file, of functions (json) and of source (py)."""
LONG_CONTEXT = "long_context"
"""What the classes are filled with for multi_turn_long_context, a file beside theirs."""
LICENCE = "Apache-2.0"


def rows(folder: Path) -> Iterator[dict]:
    """Yields the rows of all categories. ``folder``: that of the package (bfcl_eval), with data/ and, for
    conversations that can be graded, eval_checker/."""
    for category in CATEGORIES:
        names = (category.name, category.v4 or category.name)
        paths = [path for name in names for path in (folder / "data").glob(f"BFCL_v[34]_{name}.json")]
        if not paths:
            raise BarError(f"{folder}: data/BFCL_v4_{names[1]}.json expected, not found")
        yield from _of_category(category, paths[0])


def packed(sources: dict[str, str]) -> str:
    return base64.b85encode(zlib.compress(json.dumps(sources).encode(), 9)).decode()


def unpacked(text: str) -> dict[str, str]:
    return json.loads(zlib.decompress(base64.b85decode(text)))


def _of_category(category: Category, path: Path) -> Iterator[dict]:
    asked = _lines(path)
    truths = (
        _lines(path.parent / "possible_answer" / path.name) if category.kind in ("calls", "turns") else []
    )
    if truths and len(truths) != len(asked):
        raise BarError(f"{path}: {len(asked)} possible answers expected, found {len(truths)}")
    for place, found in enumerate(asked):
        row = {"id": found["id"], "category": category.name, "question": found["question"]}
        row["ground_truth"] = truths[place]["ground_truth"] if truths else []
        if category.kind == "turns":
            row |= _conversation(found, path.parent, category.name == "multi_turn_long_context")
        else:
            row["function"] = found["function"]
        yield row


def _conversation(found: dict, data: Path, is_long: bool) -> dict:
    functions = [
        function
        for name in found["involved_classes"]
        for function in _lines(data / "multi_turn_func_doc" / f"{CLASSES[name]}.json")
    ]
    missed = found.get("missed_function", {})
    held_back = {name for names in missed.values() for name in names}
    by_name = {function["name"]: function for function in functions}
    row = {
        "function": [function for function in functions if function["name"] not in held_back],
        "initial_config": found["initial_config"],
        "involved_classes": found["involved_classes"],
        "missed_function": {turn: [by_name[name] for name in names] for turn, names in missed.items()},
    }
    names = (*found["involved_classes"], *([LONG_CONTEXT] if is_long else []))
    sources = _sources(data.parent / "eval_checker/multi_turn_eval/func_source_code", names)
    return row | ({"sources": sources} if sources else {})


@functools.lru_cache(64)
def _sources(folder: Path, names: tuple[str, ...]) -> str | None:
    """Returns the packed sources of classes; None where one is missing. Many rows have the same."""
    files = {name: folder / f"{CLASSES.get(name, name)}.py" for name in names}
    if not all(path.is_file() for path in files.values()):
        return None
    return packed({name: path.read_text(encoding="utf-8") for name, path in files.items()})


def _lines(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise BarError(f"{path}: a file of BFCL expected ({error.strerror})") from error
    except ValueError as error:
        raise BarError(f"{path}: lines of JSON expected ({error})") from error
