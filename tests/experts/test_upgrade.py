"""Experts as artifacts: bit for bit what a whole folder is, and a merged model changed by one expert is a
fresh merge."""

import re
import resource
import shutil
from dataclasses import replace

import pytest
import torch
from folders import copy_with, edit_json, edit_tensors, load_tensors, save_hf, seal, train_with

from megatron_bar.errors import BarError
from megatron_bar.experts.artifact import extract, open_artifact
from megatron_bar.experts.branch import branch
from megatron_bar.experts.listing import listing
from megatron_bar.experts.merge import merge
from megatron_bar.experts.shared import Combination
from megatron_bar.experts.upgrade import Merged, add, remove, replace_expert
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import ParamGroup, classify
from megatron_bar.weights.hashes import hash_units
from megatron_bar.weights.manifest import MANIFEST, Cost, TrainingRecord, read_manifest
from megatron_bar.weights.writer import WriteOptions

ROUTERS = ["model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate.weight"]


def same(left, right) -> bool:
    a, b = load_tensors(left), load_tensors(right)
    return a.keys() == b.keys() and all(
        torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a
    )


@pytest.fixture(scope="module")
def place(branched, experts, tmp_path_factory):
    """Where a user keeps the branched folder, artifacts of three experts, and the model merged from them."""
    root = tmp_path_factory.mktemp("place")
    shutil.copytree(branched, root / "branched")
    for name, path in experts.items():
        extract(path, branched, root / f"{name}-artifact", options=WriteOptions(max_shard_bytes=6000))
    merge(root / "branched", {name: root / f"{name}-artifact" for name in experts}, root / "merged")
    return root


NUMBERS = {"tokens": 1, "loss_tokens": 1, "generated": 0, "flops": 1.0, "seconds": 1.0, "devices": 1}
ROUTED = Cost(step="routed", stage="route", device="x", **NUMBERS)


@pytest.fixture(scope="module")
def routed(place):
    """The merged model with a trained router."""

    def trained(name, tensor):
        return (
            tensor + torch.arange(1.0, len(tensor) + 1)[:, None]
            if classify(name) is ParamGroup.ROUTER
            else tensor
        )

    out = place / "routed"
    copy_with(place / "merged", out, trained)
    seal(
        out, read_manifest(out).after(TrainingRecord(stage="route", policy="route"), sources=(), cost=ROUTED)
    )
    return out


def midtrained(branched, target, step):
    return train_with(
        branched, target, "midtrain", lambda n, t: t + step * (".experts.1." in n), expert=target.name
    )


def test_an_artifact_is_what_the_branch_has_not(branched, experts, place):
    stored, whole, base = (
        load_tensors(path) for path in (place / "math-artifact", experts["math"], branched)
    )
    for name, tensor in whole.items():
        kept = classify(name) in (ParamGroup.DOMAIN_EXPERT, ParamGroup.ROUTER) or not torch.equal(
            tensor, base[name]
        )
        assert kept == (name in stored), name
        assert not kept or torch.equal(stored[name], tensor)
    assert hash_units(open_artifact(place / "math-artifact", Folder.open(branched))) == hash_units(
        Folder.open(experts["math"])
    )
    card = (place / "math-artifact" / "README.md").read_text()
    assert "# Expert math" in card and "| 1 | math | rlvr (policy rlvr, recipe tests) |" in card


def test_an_artifact_of_midtraining_holds_no_shared_tensor(branched, tmp_path):
    extract(midtrained(branched, tmp_path / "x", 1), branched, tmp_path / "artifact")
    groups = {classify(name) for name in load_tensors(tmp_path / "artifact")}
    assert groups == {ParamGroup.DOMAIN_EXPERT, ParamGroup.ROUTER}


def test_a_merge_of_artifacts_is_the_merge_of_folders(branched, experts, place, tmp_path):
    assert same(merge(branched, experts, tmp_path / "out").path, place / "merged")
    assert read_manifest(tmp_path / "out").tensors == read_manifest(place / "merged").tensors


def fresh(branched, experts, names, out):
    return merge(branched, {name: experts[name] for name in names}, out).path


def test_what_is_removed_and_added_again_is_a_fresh_merge(branched, experts, place, tmp_path):
    model = Merged.open(place / "merged", [])
    less = remove(model, "code", tmp_path / "less").path
    assert same(less, fresh(branched, experts, ("math", "tool"), tmp_path / "fresh-less"))
    more = add(Merged.open(less, [place]), "code", place / "code-artifact", tmp_path / "more").path
    assert same(more, fresh(branched, experts, ("math", "tool", "code"), tmp_path / "fresh-more"))
    assert [(e.name, e.index) for e in read_manifest(more).experts[1:]] == [
        ("math", 1),
        ("tool", 2),
        ("code", 3),
    ]
    assert not read_manifest(more).router_stale


def test_a_replaced_expert_takes_its_slot(branched, experts, place, tmp_path):
    better = train_with(
        experts["code"], tmp_path / "better", "rlvr", lambda n, t: t * 1.5 if ".experts.1." in n else t
    )
    made = replace_expert(Merged.open(place / "merged", []), "code", better, tmp_path / "out").path
    assert same(made, fresh(branched, {**experts, "code": better}, experts, tmp_path / "fresh"))


def test_trained_router_rows_of_those_that_stay_are_kept_and_the_router_is_stale(
    branched, experts, place, routed, tmp_path
):
    better = train_with(
        experts["code"], tmp_path / "better", "rlvr", lambda n, t: t * 1.5 if ".experts.1." in n else t
    )
    made = replace_expert(Merged.open(routed, []), "code", better, tmp_path / "out").path
    reference = load_tensors(fresh(branched, {**experts, "code": better}, experts, tmp_path / "fresh"))
    before, after, own = load_tensors(routed), load_tensors(made), load_tensors(better)
    for name, tensor in after.items():
        if name not in ROUTERS:
            assert torch.equal(tensor, reference[name])
            continue
        assert torch.equal(tensor[[0, 1, 3]], before[name][[0, 1, 3]])
        assert torch.equal(tensor[2], own[name][1])
    manifest = read_manifest(made)
    assert (manifest.kind, manifest.router_stale) == ("merged", True)
    steps = [
        ("math-folder", "math"),
        ("code-folder", "code"),
        ("better", "code"),
        ("tool-folder", "tool"),
        ("routed", None),
    ]
    assert [(cost.step, cost.expert) for cost in manifest.ledger] == steps
    assert listing(made)[-1] == "router: STALE, train it again"
    assert [line.split()[:4] for line in listing(routed)[1:3]] == [
        ["0", "anchor", "none", "branched"],
        ["1", "math", "rlvr", "math-artifact"],
    ]
    # Still stale, and still the trained rows, after a second change; trained, it is not.
    again = remove(Merged.open(made, [place, tmp_path]), "math", tmp_path / "again").path
    assert read_manifest(again).router_stale
    assert torch.equal(load_tensors(again)[ROUTERS[0]], after[ROUTERS[0]][[0, 2, 3]])
    assert not read_manifest(again).after(TrainingRecord(stage="route"), sources=()).router_stale


def test_a_lost_artifact_is_refused_unless_the_shared_tensors_never_moved(branched, place, tmp_path):
    shutil.copytree(place / "branched", tmp_path / "branched")
    shutil.copytree(place / "merged", tmp_path / "merged")
    with pytest.raises(
        BarError,
        match=r"merged: 'math' expected as a folder or artifact with hash \w{64} in .*, got none: a mean",
    ):
        remove(Merged.open(tmp_path / "merged", []), "code", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    experts = {
        name: midtrained(branched, tmp_path / name, n) for n, name in enumerate(("a", "b", "c"), start=1)
    }
    merged = merge(branched, experts, tmp_path / "frozen").path
    for path in experts.values():
        path.rename(tmp_path / f".{path.name}-away")
    (tmp_path / "lost").mkdir()
    for path in tmp_path.glob(".*-away"):
        path.rename(tmp_path / "lost" / path.name)
    experts = {name: tmp_path / "lost" / f".{name}-away" for name in experts}
    made = remove(Merged.open(merged, []), "b", tmp_path / "less").path
    assert same(made, fresh(branched, experts, ("a", "c"), tmp_path / "fresh"))
    assert read_manifest(made).experts[2].folder_hash == read_manifest(merged).experts[3].folder_hash
    again = add(Merged.open(made, [tmp_path]), "b", experts["b"], tmp_path / "more").path
    assert same(again, fresh(branched, experts, ("a", "c", "b"), tmp_path / "fresh-more"))


def test_without_the_branched_folder_nothing_is_merged(place, tmp_path):
    shutil.copytree(place / "merged", tmp_path / "merged")
    with pytest.raises(
        BarError, match=r"'anchor' expected as a folder or artifact .* got none \(the branched folder\)"
    ):
        remove(Merged.open(tmp_path / "merged", []), "code", tmp_path / "out")


def test_what_cannot_be_is_refused(branched, experts, place, tmp_path):
    model = Merged.open(place / "merged", [])
    for call, message in (
        (
            lambda: add(model, "math", experts["math"], tmp_path / "out"),
            "expected no expert called 'math' yet, got it in slot 1",
        ),
        (
            lambda: remove(model, "law", tmp_path / "out"),
            "expert expected one of math, code, tool, got 'law'",
        ),
        (
            lambda: replace_expert(model, "law", experts["math"], tmp_path / "out"),
            "expert expected one of math, code, tool",
        ),
        (
            lambda: add(model, "law", experts["math"], tmp_path / "out"),
            "expected one folder per expert, got 'math'",
        ),
        (
            lambda: Merged.open(experts["math"], []),
            "expected a merged model with a manifest of its experts, got kind 'expert'",
        ),
        (
            lambda: extract(branched, branched, tmp_path / "out"),
            "expected a trained expert of the branched folder .* 'branched'",
        ),
        (
            lambda: extract(experts["math"], experts["code"], tmp_path / "out"),
            "expected a trained expert of the branched folder",
        ),
    ):
        with pytest.raises(BarError, match=message):
            call()
    one = merge(branched, {"math": experts["math"]}, tmp_path / "one").path
    with pytest.raises(BarError, match="expected an expert besides 'math' to stay, got none"):
        remove(Merged.open(one, [place]), "math", tmp_path / "out")
    weighted = Combination(method="weighted", weights=(1.0, 2.0))
    merge(branched, {"math": experts["math"]}, tmp_path / "weighted", shared=weighted)
    with pytest.raises(
        BarError, match=r"its inputs were weighted by \(1\.0, 2\.0\), which says nothing of another set"
    ):
        add(Merged.open(tmp_path / "weighted", [place]), "code", experts["code"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


SPOILED = {
    "a tensor less": (
        lambda p: edit_tensors(p, lambda t: t.pop("model.norm.weight")),
        "tensor 'model.norm.weight' expected, for it",
    ),
    "an expert's tensor less": (
        lambda p: edit_tensors(p, lambda t: t.pop("model.layers.0.mlp.experts.1.up_proj.weight")),
        r"experts\.1\.up_proj\.weight' expected, for it is not that of .*; got no such tensor",
    ),
    "a tensor more": (
        lambda p: edit_tensors(p, lambda t: t.update(evil=torch.ones(2))),
        "'evil': expected no such tensor",
    ),
    "another shape": (
        lambda p: edit_tensors(p, lambda t: t.update({"model.norm.weight": torch.ones(3)})),
        r"'model\.norm\.weight': expected float32 \[16\], got float32 \[3\]",
    ),
    "another value": (
        lambda p: edit_tensors(p, lambda t: t["model.norm.weight"].add_(1)),
        r"tensor 'model\.norm\.weight' changed since its manifest was written: expected hash \w{64}, got "
        r"\w{64}",
    ),
    "no config": (
        lambda p: edit_json(p / MANIFEST, config=None),
        "expected kind 'artifact' with a config, got 'artifact'",
    ),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), "expected model.safetensors or"),
}


@pytest.mark.parametrize("spoil, message", SPOILED.values(), ids=SPOILED)
def test_a_spoiled_artifact_is_refused(branched, experts, tmp_path, spoil, message):
    extract(experts["math"], branched, tmp_path / "artifact")
    spoil(tmp_path / "artifact")
    with pytest.raises(BarError, match=message):
        merge(branched, {"math": tmp_path / "artifact", "code": experts["code"]}, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_an_artifact_of_another_anchor_is_refused(dense, branched, experts, place, tmp_path):
    other = branch(dense, save_hf(tmp_path / "d", seed=9), tmp_path / "other", router_init="normal", seed=5)[
        0
    ].path
    with pytest.raises(BarError, match=r"foreign anchor|expected, for it is not that of"):
        merge(other, {"math": place / "math-artifact"}, tmp_path / "out")
    manifest = read_manifest(place / "merged")
    assert manifest == replace(
        manifest, shared={"method": "mean", "weights": [], "scale": 1.0, "density": 0.2, "seed": 0}
    )
    assert re.fullmatch(r"\w{64}", manifest.experts[0].shared_hash)


@pytest.mark.parametrize("limit", [0, 100, 5000, 15_000])
def test_an_artifact_that_the_disk_does_not_take_leaves_nothing(branched, experts, tmp_path, limit):
    """A file size limit stands in for the full disk: the same errors from the same calls."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(
            BarError, match=r"/\.out\.partial/.*: could not (write \d+ bytes|be written): File too large"
        ):
            extract(experts["math"], branched, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
