"""The experts of a merged model by command line: extract, list, remove, add, replace, and what each
refuses."""

import shutil

import pytest
from folders import load_tensors, train_with
from scripts import refused

from megatron_bar.weights.manifest import read_manifest


@pytest.fixture
def place(branched, expert, tmp_path, inline):
    """A branched folder, two artifacts and the model merged from them."""
    shutil.copytree(branched, tmp_path / "branched")
    code = train_with(
        branched, tmp_path / "code", "midtrain", lambda n, t: t + 2 * (".experts.1." in n), expert="code"
    )
    for name, folder in (("math", expert), ("code", code)):
        extracted = inline(
            "expert",
            "extract",
            "--expert",
            folder,
            "--anchor",
            branched,
            "--out",
            tmp_path / f"{name}-artifact",
        )
        assert (
            extracted[0] == 0
            and f"{name}-artifact: expert {name}, " in extracted[1]
            and "verified" in extracted[1]
        )
    shutil.rmtree(code)
    artifacts = ("--expert", f"math={tmp_path}/math-artifact", "--expert", f"code={tmp_path}/code-artifact")
    assert (
        inline("merge_experts", "--anchor", tmp_path / "branched", *artifacts, "--out", tmp_path / "merged")[
            0
        ]
        == 0
    )
    return tmp_path


def test_there_and_back_is_the_same_model(inline, place):
    status, out, _ = inline("expert", "list", "--model", place / "merged")
    assert status == 0 and [line.split()[:2] for line in out.splitlines()[1:4]] == [
        ["0", "anchor"],
        ["1", "math"],
        ["2", "code"],
    ]
    assert out.endswith("router: not trained since the merge\n")
    assert (
        inline("expert", "remove", "--model", place / "merged", "--name", "code", "--out", place / "less")[0]
        == 0
    )
    add = (
        "add",
        "--model",
        place / "less",
        "--expert",
        f"code={place}/code-artifact",
        "--out",
        place / "more",
    )
    status, out, err = inline("expert", *add)
    assert status == 0 and out.endswith(" bytes, verified\n"), err
    one, other = load_tensors(place / "merged"), load_tensors(place / "more")
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    assert read_manifest(place / "merged").tensors == read_manifest(place / "more").tensors
    # A copy under another name is what is in the slot already, so replacing by it changes nothing either.
    same = (
        "replace",
        "--model",
        place / "more",
        "--expert",
        f"code={place}/code-artifact",
        "--out",
        place / "same",
    )
    assert inline("expert", *same, "--verify", "none")[1].endswith(" bytes, not verified\n")
    assert read_manifest(place / "same").tensors == read_manifest(place / "more").tensors


def test_an_artifact_can_be_looked_at(inline, place):
    status, out, _ = inline("inspect_model", place / "math-artifact")
    assert status == 0
    assert "math-artifact: artifact of an expert" in out and "expert 1: math, stages: midtrain" in out
    assert "✓ domain_expert" in out and "equals its receipt" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("remove --model {}/merged --name law --out {}/out", "expert expected one of math, code, got 'law'"),
        (
            "add --model {}/merged --expert math={}/math-artifact --out {}/out",
            "expected no expert called 'math' yet",
        ),
        ("add --model {}/merged --expert law --out {}/out", "expert expected as NAME=FOLDER, got 'law'"),
        (
            "add --model {}/branched --expert law={}/math-artifact --out {}/out",
            "expected a merged model with a manifest",
        ),
        ("add --model {}/merged --expert law={}/nowhere --out {}/out", "config.json: not found; expected"),
        (
            "remove --model {}/merged --name math --out {}/merged",
            "expected a new or empty folder to write to",
        ),
        (
            "extract --expert {}/math-artifact --anchor {}/branched --out {}/out",
            "config.json: not found; expected",
        ),
        ("list --model {}/nowhere", "manifest.json: not found; expected"),
    ],
)
def test_what_cannot_be_is_one_line(inline, place, arguments, message):
    before = sorted(place.rglob("*"))
    assert message in refused(inline("expert", *arguments.format(*[place] * 3).split()))
    assert sorted(place.rglob("*")) == before


def test_help_shows_examples(inline):
    status, out, err = inline("expert", "--help")
    assert (status, err) == (
        0,
        "",
    ) and "python tools/expert.py extract --expert math-rlvr --anchor branched" in out
