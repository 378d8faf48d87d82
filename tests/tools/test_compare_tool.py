"""tools/compare.py: its table and status; results in the place of generation; every bad input one line."""

import json
import shutil

import pytest
from evaluation.tiny_chat import answers, save_chat_hf, write_world
from scripts import refused


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    for name, seed in (("old", 7), ("new", 8)):
        save_chat_hf(root / name, seed=seed)
    write_world(root / "world", answers(root / "old", new=64))
    return root


@pytest.fixture(scope="module")
def measured(place):
    """Results of both, as tools/evaluate.py writes them, by names."""
    from megatron_bar.evaluation.benchmarks.folder import evaluate_folder
    from megatron_bar.evaluation.results import write_results
    from megatron_bar.parallel.state import distributed

    found = {}
    with distributed():
        for name in ("old", "new"):
            found[name] = place / f"{name}.json"
            write_results(found[name], evaluate_folder(place / name, "toy"))
    return found


def test_a_worse_model_is_told_and_an_equal_one_passes(place, tmp_path, inline):
    status, out, err = inline(
        "compare",
        place / "old",
        place / "new",
        "--data",
        place / "world",
        "--changed",
        "math",
        "--json",
        tmp_path / "a.json",
    )
    said = (
        f"error: {place}/new: expected no domain to lose more than 0 points against {place}/old, got "
        f"knowledge"
    )
    assert status == 1 and err.startswith(said)
    assert err.count("\n") == 1 and out.count("REGRESSED") == 6 and "math" not in err
    assert json.loads((tmp_path / "a.json").read_text())["gains"]["math"]["mean"] == -100.0
    status, out, err = inline(
        "compare", place / "old", place / "old", "--data", place / "world", "--limit", 2
    )
    assert (
        (status, err) == (0, "")
        and "REGRESSED" not in out
        and out.endswith("no domain surely lost more than 0 points\n")
    )


def test_results_take_the_place_of_generation(place, measured, inline):
    given = ("--results-old", measured["old"], "--results-new", measured["new"])
    asked = ("compare", place / "old", place / "new", "--data", place / "world", "--changed", "math")
    assert inline(*asked, *given) == inline(*asked)
    assert inline(*asked, *given, "--tolerance", 100)[0] == 0


def test_results_of_another_suite_are_compared_by_themselves(place, measured, tmp_path, inline):
    files = [tmp_path / "old.json", tmp_path / "new.json"]
    settings = {"protocol": "published", "judges": {}}
    for name, file in zip(("old", "new"), files, strict=True):
        edited = json.loads(measured[name].read_text()) | {"suite": "bar19", "settings": settings}
        file.write_text(json.dumps(edited))
    given = ("--results-old", files[0], "--results-new", files[1])
    status, out, _err = inline("compare", place / "old", place / "new", *given, "--changed", "math")
    assert status == 1 and out.count("REGRESSED") == 6
    assert [line.split()[2] for line in out.splitlines() if line.startswith("math")] == ["-100.0"]
    edited["settings"]["protocol"] = "greedy"
    files[1].write_text(json.dumps(edited))
    line = refused(inline("compare", place / "old", place / "new", *given))
    assert "expected results of the protocol published, as of" in line and "got greedy" in line


BAD = {
    "neither data nor results": ("OLD NEW", "expected --data FOLDER, or results of both models"),
    "not there": ("OLD NOWHERE --data WORLD", r"nowhere/config.json: not found; expected"),
    "no data": ("OLD NEW --data NOWHERE", "nowhere: not found; expected a folder of test_SKILL.jsonl"),
    "unknown domain": (
        "OLD NEW --data WORLD --changed cooking",
        "changed domain cooking: expected one of knowledge, ",
    ),
    "all changed": (
        "OLD NEW --data WORLD --changed knowledge reasoning chat math code tool_use safety",
        "changed domains: expected one at least to stay as it was, got all of them",
    ),
    "limit 0": ("OLD NEW --data WORLD --limit 0", "limit expected at least 1, got 0"),
    "less than no tolerance": (
        "OLD NEW --data WORLD --tolerance -1",
        "tolerance expected at least 0, got -1.0",
    ),
    "one result": ("OLD NEW --data WORLD --results-old A", "expected both or neither, got one"),
    "results and a limit": (
        "OLD NEW --data WORLD --results-old A --results-new B --limit 2",
        "--limit 2: expected none where",
    ),
    "results of another model": (
        "OLD NEW --data WORLD --results-old A --results-new A",
        "new: expected the model that the",
    ),
    "results of other tests": (
        "OLD NEW --data WORLD --results-old A --results-new LESS",
        "limit expected the same, got None",
    ),
    "results of other data": (
        "OLD NEW --data OTHER --results-old A --results-new B",
        "test knowledge expected the items that",
    ),
    "results of another suite": (
        "OLD NEW --data WORLD --results-old SUITE --results-new B",
        "suite expected toy, got bar19",
    ),
    "another tokenizer": ("OLD FOREIGN --data WORLD", "foreign: expected the tokenizer of"),
    "two tensor ranks of one process": ("OLD NEW --data WORLD --tensor 2", "does not divide the 1 processes"),
}


@pytest.fixture(scope="module")
def paths(place, measured):
    shutil.copytree(place / "new", place / "foreign")
    (place / "foreign/tokenizer.json").write_text((place / "new/tokenizer.json").read_text() + "\n")
    write_world(place / "other", ["a", "b", "c", "d"])
    for name, changes in (("less", {"limit": 2}), ("suite", {"suite": "bar19"})):
        shutil.copy(measured["new" if name == "less" else "old"], place / f"{name}.json")
        edit_json_keeping_null(place / f"{name}.json", changes)
    files = {"A": "old.json", "B": "new.json", "LESS": "less.json", "SUITE": "suite.json"}
    folders = {name.upper(): name for name in ("old", "new", "world", "nowhere", "other", "foreign")}
    return {word: place / name for word, name in (files | folders).items()}


def edit_json_keeping_null(path, changes: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("words, message", BAD.values(), ids=BAD)
def test_what_cannot_be_compared_is_one_line(words, message, paths, inline):
    assert message in refused(inline("compare", *(paths.get(word, word) for word in words.split())))
