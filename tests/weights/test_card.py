"""Model cards: what huggingface_hub reads in them, that equal folders have equal ones, and whose are kept."""

import re
import shutil

import pytest
from folders import save_hf, train_with
from huggingface_hub import ModelCard
from scripts import ROOT, refused, run_here

from megatron_bar.conversion.convert import export_checkpoint, import_folder
from megatron_bar.evaluation.results import new_results, write_results
from megatron_bar.experts.artifact import extract
from megatron_bar.experts.branch import branch
from megatron_bar.experts.merge import merge
from megatron_bar.weights.card import CARD, MARKER, known_of
from megatron_bar.weights.manifest import identity

FRONT = (
    "---\nlicense: apache-2.0\nlanguage:\n- en\ndatasets: [allenai/tulu-3-sft, ../x]\nextra: {a: [1]}\n---\n"
)


def made(root):
    """An anchor of the Hub with a card, and what is made from it."""
    snapshot = root / "models--allenai--BAR-7B" / "snapshots" / "0123abc"
    snapshot.parent.mkdir(parents=True)
    anchor = save_hf(snapshot, seed=1)
    (anchor / CARD).write_text(FRONT + "# Theirs\n")
    branched = branch(anchor, save_hf(root / "base", seed=2), root / "branched", router_init="normal")[0].path
    experts = {
        name: train_with(
            branched, root / name, "midtrain", lambda n, t, k=k: t + k * (".experts.1." in n), expert=name
        )
        for k, name in enumerate(("math", "code"), start=1)
    }
    merge(branched, experts, root / "merged")
    extract(root / "math", branched, root / "artifact")
    import_folder(root / "merged", root / "checkpoint")
    export_checkpoint(root / "checkpoint", root / "exported")
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return made(tmp_path_factory.mktemp("cards"))


@pytest.fixture
def card_tool(monkeypatch, capsys):
    return lambda *arguments: run_here(monkeypatch, capsys.readouterr, ROOT / "tools/card.py", *arguments)


@pytest.mark.parametrize("name", ["branched", "merged", "exported", "artifact"])
def test_the_hub_reads_what_is_known(place, name):
    card = ModelCard.load(place / name / CARD)
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0" and data["language"] == ["en"]
    assert data["datasets"] == ["allenai/tulu-3-sft"] and data["base_model"] == ["allenai/BAR-7B"]
    assert data.get("library_name") == (None if name == "artifact" else "transformers")
    kind = "merged" if name == "exported" else name
    assert data["tags"] == ["megatron_bar", "flex_olmo", kind, "moe"]
    assert card.text.strip().startswith(MARKER)
    assert not re.search(rf"{re.escape(str(place))}|\d{{4}}-\d\d-\d\d|seconds", card.content)


def test_it_says_what_the_folder_is(place):
    text = (place / "merged" / CARD).read_text()
    for said in (
        "# BAR model: anchor, math, code",
        "class FlexOlmoForCausalLM, model type flex_olmo, float32",
        ", 3 of 3 experts active",
        "| 1 | math | midtrain (policy midtrain, recipe tests) | not recorded |",
        "shared tensors: mean of 3 folders, the anchor included",
        "vllm serve THIS_FOLDER --dtype float32",
    ):
        assert said in text, said
    assert "# Expert math" in (place / "artifact" / CARD).read_text()
    assert "bar merge --anchor BRANCHED --expert math=THIS_FOLDER" in (place / "artifact" / CARD).read_text()


def test_its_python_runs(place, monkeypatch, capsys):
    code = (place / "merged" / CARD).read_text().split("```python\n")[1].split("```")[0]
    assert "64" in code
    exec(code.replace("64", "3").replace("THIS_FOLDER", str(place / "merged")), {})  # a path may hold "64"
    assert capsys.readouterr().out.strip()


def test_equal_folders_have_equal_cards_and_a_card_is_no_part_of_a_receipt(place, tmp_path):
    again = made(tmp_path / "again")
    for name in ("branched", "merged", "exported", "artifact"):
        assert (again / name / CARD).read_bytes() == (place / name / CARD).read_bytes()
    assert (place / "exported" / CARD).read_bytes() == (place / "merged" / CARD).read_bytes()
    before = identity(again / "merged")
    (again / "merged" / CARD).unlink()
    assert identity(again / "merged") == before


def evaluated(model, file):
    results = new_results(model, "toy")
    results["tests"] = {"math": {"hash": "00", "items": 4}}
    results["scores"] = {"math": [{"prompt": "", "answer": "", "score": score} for score in (1, 1, 1, 0)]}
    write_results(file, results)
    return file


def test_results_at_hand_are_told_and_those_of_another_model_are_not(place, tmp_path, card_tool):
    for name in ("math", "branched", "merged"):
        shutil.copytree(place / name, tmp_path / name)
    evaluated(tmp_path / "math", tmp_path / "evaluation/math.json")
    extract(tmp_path / "math", tmp_path / "branched", tmp_path / "artifact")
    assert "| math | 75.0 | 4 |" in (tmp_path / "artifact" / CARD).read_text()
    before = (tmp_path / "merged" / CARD).read_bytes()
    assert card_tool(tmp_path / "merged")[0] == 0  # nothing at hand: the same card again
    assert (tmp_path / "merged" / CARD).read_bytes() == before
    line = refused(card_tool(tmp_path / "merged", "--evaluation", tmp_path / "evaluation/math.json"))
    assert "expected results of" in line and "got those of math" in line
    assert (tmp_path / "merged" / CARD).read_bytes() == before
    evaluated(tmp_path / "math", tmp_path / "evaluation/merged.json")
    assert "no results in it" in card_tool(tmp_path / "merged")[1]
    evaluated(tmp_path / "merged", tmp_path / "evaluation/merged.json")
    status, out, _ = card_tool(tmp_path / "merged")
    assert status == 0 and "1 tests in it" in out
    data = ModelCard.load(tmp_path / "merged" / CARD).data.to_dict()
    assert data == ModelCard.load(place / "merged" / CARD).data.to_dict()
    assert "| math | 75.0 | 4 |" in (tmp_path / "merged" / CARD).read_text()


@pytest.mark.parametrize("text", [b"# Mine\n", b"", b"\xff\xfe"])
def test_another_s_card_is_left_alone(place, tmp_path, card_tool, text):
    shutil.copytree(place / "merged", tmp_path / "merged")
    (tmp_path / "merged" / CARD).write_bytes(text)
    assert "README.md: expected a card of ours" in refused(card_tool(tmp_path / "merged"))
    assert (tmp_path / "merged" / CARD).read_bytes() == text
    (tmp_path / "merged" / CARD).unlink()
    assert card_tool(tmp_path / "merged")[0] == 0
    assert MARKER in (tmp_path / "merged" / CARD).read_text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no front",
        "---\nlicense: [\n---\n",
        "---\n- a\n---\n",
        "---\nlicense: {a: b}\nlanguage: 3\n---\n",
        "---\nlicense: 'a\\nb: c'\nbase_model: ../../x\n---\n",
        f"---\nx: {'[' * 9000}\n---\n",
        "---\nwhen: 2026-13-45\n---\n",
        "---\nx: !!python/object/apply:os.getcwd []\n---\n",
    ],
)
def test_a_front_matter_that_says_nothing_says_nothing(tmp_path, text):
    (tmp_path / CARD).write_text(text)
    assert known_of(tmp_path) == {}
