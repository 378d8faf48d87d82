"""The results file: what is written is read back, everything else is refused by name."""

import json

import pytest
from folders import copy_with, save_hf, seal, train_with

from megatron_bar.errors import BarError
from megatron_bar.evaluation.results import (
    FORMAT,
    model_hash,
    read_results,
    require_of,
    require_same_tests,
    write_results,
)
from megatron_bar.experts.branch import branch
from megatron_bar.weights.manifest import read_manifest

ITEM = {"prompt": "Who?", "answer": "no", "score": 0.5}
GOOD = {
    "format": FORMAT,
    "suite": "toy",
    "model": "final",
    "model_hash": "ab" * 32,
    "active_experts": None,
    "limit": None,
    "tests": {"math": {"hash": "cd" * 32, "items": 2}, "code": {"hash": "ef" * 32, "items": 1}},
    "scores": {"math": [ITEM, ITEM], "code": [ITEM]},
}
BAD = {
    "no format": ({"format": None}, r"format expected 'megatron_bar\.evaluation/1', got None"),
    "the older format": ({"format": "megatron_bar.evaluation/0"}, r"format expected .*/1', got .*/0'"),
    "no model hash": ({"model_hash": None}, r"model_hash expected str, got None"),
    "limit as text": ({"limit": "5"}, r"limit expected int, got '5'"),
    "active experts as a share": ({"active_experts": 0.5}, r"active_experts expected int or list, got 0\.5"),
    "no tests": ({"tests": {}, "scores": {}}, r"scores expected of the tests \(none\)"),
    "scores of another test": (
        {"scores": {"math": [ITEM, ITEM], "chat": [ITEM]}},
        r"scores expected of .*math, code, got math, chat",
    ),
    "an item less": (
        {"scores": {"math": [ITEM], "code": [ITEM]}},
        r"scores\.math expected 2 items, at least one, got 1",
    ),
    "a score of 2": (
        {"scores": {"math": [ITEM, ITEM | {"score": 2}], "code": [ITEM]}},
        r"scores\.math\[1\] expected a score .*got 2",
    ),
    "a score of true": (
        {"scores": {"math": [ITEM, {"score": True}], "code": [ITEM]}},
        r"scores\.math\[1\] .*got True",
    ),
    "a test without a hash": (
        {"tests": GOOD["tests"] | {"code": {"items": 1}}},
        r"tests\.code expected hash and items",
    ),
}


def test_what_is_written_is_read_back(tmp_path):
    results = GOOD | {"routing": {"sft_math": [[0.5, 0.5]]}, "experts": ["anchor", "math"]}
    write_results(tmp_path / "deep" / "r.json", results)
    assert read_results(tmp_path / "deep" / "r.json") == results
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["r.json"]


@pytest.mark.parametrize("name", BAD)
def test_other_files_are_refused_by_name_and_not_written(name, tmp_path):
    changes, message = BAD[name]
    (tmp_path / "r.json").write_text(json.dumps(GOOD | changes))
    with pytest.raises(BarError, match=rf"r\.json: {message}"):
        read_results(tmp_path / "r.json")
    with pytest.raises(BarError, match=message):
        write_results(tmp_path / "new.json", GOOD | changes)
    assert not (tmp_path / "new.json").exists()


def test_what_is_no_json_object_is_refused(tmp_path):
    with pytest.raises(BarError, match=r"r\.json: not found; expected a results file"):
        read_results(tmp_path / "r.json")
    (tmp_path / "r.json").write_text("| model | overall |")
    with pytest.raises(BarError, match=r"r\.json: not readable as JSON"):
        read_results(tmp_path / "r.json")


def test_results_of_other_tests_are_not_compared():
    require_same_tests(GOOD, GOOD | {"model": "other", "model_hash": "0", "active_experts": 3})
    other = {"hash": "00" * 32, "items": 1}
    for changes, message in (
        ({"limit": 5}, r"final and final .*limit expected the same, got None and 5"),
        ({"suite": "bar19"}, r"suite expected the same, got toy and bar19"),
        (
            {"tests": GOOD["tests"] | {"code": other}},
            r"test code expected the same items, got 1 \(hash efef.*\) and 1 \(hash 0000",
        ),
        ({"tests": GOOD["tests"] | {"chat": other}}, r"test chat expected the same items, got none and 1"),
        ({"tests": {"math": GOOD["tests"]["math"]}}, r"test code expected the same items, got 1 .* and none"),
    ):
        with pytest.raises(BarError, match=message):
            require_same_tests(GOOD, GOOD | changes)


def test_results_belong_to_the_folder_they_were_measured_on(tmp_path):
    plain = save_hf(tmp_path / "plain", seed=1)
    other = copy_with(plain, tmp_path / "other", lambda name, tensor: tensor + (name == "model.norm.weight"))
    again = copy_with(plain, tmp_path / "again", lambda _, tensor: tensor)
    require_of(GOOD | {"model_hash": model_hash(plain)}, again)
    with pytest.raises(
        BarError, match=r"other: expected the model that the results are of \(final, .*got another"
    ):
        require_of(GOOD | {"model_hash": model_hash(plain)}, other)
    branched = branch(plain, plain, tmp_path / "branched", router_init="normal")[0].path
    trained = train_with(
        branched, tmp_path / "trained", "midtrain", lambda name, tensor: tensor + (".experts.1." in name)
    )
    assert model_hash(trained) != model_hash(branched)
    before = model_hash(trained)
    seal(trained, read_manifest(trained))
    assert model_hash(trained) == before
    (trained / "manifest.json").unlink()
    assert model_hash(trained) == before, "of the tensors, where there are no receipts"
