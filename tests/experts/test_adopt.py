"""Folders without a manifest, adopted: they merge and change as those that have one, and nothing is taken for
what it is not."""

import json
import shutil

import pytest
import torch
from folders import copy_with, edit_tensors, load_tensors, save_hf, seal, train_with

from megatron_bar.errors import BarError
from megatron_bar.experts.adopt import adopt_branched, adopt_expert, adopt_merged
from megatron_bar.experts.artifact import extract
from megatron_bar.experts.branch import branch
from megatron_bar.experts.merge import merge
from megatron_bar.experts.upgrade import Merged, replace_expert
from megatron_bar.weights.folder import SINGLE
from megatron_bar.weights.manifest import MANIFEST, TrainingRecord, read_manifest

NAMES = ("anchor", "math", "code", "tool")


def bare(source, target):
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns(MANIFEST, "README.md"))


def weights(folder) -> bytes:
    return (folder / SINGLE).read_bytes()


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def opened(seed: int, step: float = 1e-3):
    """Moves everything, the anchor's FFN and router row too, as RLVR without a freeze does."""
    generator = torch.Generator().manual_seed(seed)
    return lambda name, tensor: tensor + step * torch.randn(tensor.shape, generator=generator)


@pytest.fixture
def place(branched, experts, tmp_path):
    """The branched folder and its experts as others would publish them, adopted."""
    adopt_branched(bare(branched, tmp_path / "branched"))
    for name, path in experts.items():
        adopt_expert(bare(path, tmp_path / name), tmp_path / "branched", name)
    return tmp_path


def adopted(place):
    return {name: place / name for name in NAMES[1:]}


def test_adopted_folders_merge_to_the_same_bytes(place, branched, experts):
    ours = merge(branched, experts, place / "ours").path
    theirs = merge(place / "branched", adopted(place), place / "theirs").path
    assert weights(ours) == weights(theirs)
    assert (ours / "config.json").read_bytes() == (theirs / "config.json").read_bytes()
    assert read_manifest(ours).tensors == read_manifest(theirs).tensors
    for name, path in {"branched": branched, **experts}.items():
        assert read_manifest(place / name).tensors == read_manifest(path).tensors
        assert read_manifest(place / name).anchor_hash == read_manifest(path).anchor_hash
        assert weights(place / name) == weights(path)


def test_what_is_proven_and_what_is_only_said_is_told_apart(place, branched):
    manifest = read_manifest(place / "math")
    assert manifest.notes == (
        "proven: all 33 tensors are there, of config.json's shapes, and finite",
        "proven: the anchor's FFNs and router rows are those of branched, bit for bit",
        "proven: 19 of 19 shared tensors moved (embedding 1, lm_head 1, final_norm 1, attention 12, "
        "block_norm 4)",
        "said: trained from branched as math",
    )
    assert manifest.frozen.policy == "rlvr" and manifest.frozen.units == 8
    assert [(e.name, e.stages) for e in manifest.experts] == [("anchor", ()), ("math", ("adopted",))]
    assert read_manifest(place / "branched").notes[1].startswith("said: the branched folder of its experts")


@pytest.mark.parametrize(
    "groups, policy",
    [
        ((".experts.1.",), "midtrain"),
        ((".experts.1.", "lm_head", "embed_tokens"), "sft"),
        ((".experts.1.", "lm_head"), "sft"),
        ((".experts.1.", "self_attn"), "rlvr"),
        ((".experts.1.", ".experts.0."), "rlvr_open"),
    ],
)
def test_the_certificate_is_of_the_narrowest_policy_that_explains_the_folder(
    place, branched, tmp_path, groups, policy
):
    def change(name, tensor):
        return tensor * 1.01 if any(group in name for group in groups) else tensor

    path = bare(copy_with(branched, tmp_path / "made", change), tmp_path / "one")
    manifest = adopt_expert(path, place / "branched", "one")
    assert manifest.frozen.policy == manifest.experts[1].trained[0].policy == policy


def test_an_anchor_that_moved_is_said_and_averaged(place, branched, experts, tmp_path):
    moved = copy_with(branched, tmp_path / "made", opened(7))
    path = bare(moved, tmp_path / "free")
    note = adopt_expert(path, place / "branched", "free").notes[1]
    assert note.startswith(
        "proven: 8 of 8 tensors of the anchor's FFNs and router rows moved from branched, "
    )
    assert note.endswith(" of its norm; a merge averages them")
    out = merge(place / "branched", {"math": place / "math", "free": path}, tmp_path / "out").path
    assert read_manifest(out).notes[1].startswith("expert free moved 8 of the anchor's own tensors")
    inputs = [load_tensors(one) for one in (branched, experts["math"], moved)]
    for name, tensor in load_tensors(out).items():
        if ".experts.0." in name or name.endswith("gate.weight"):
            rows = slice(0, 1) if name.endswith("gate.weight") else slice(None)
            mean = sum(one[name][rows].double() for one in inputs) / 3
            assert torch.equal(tensor[rows], mean.float()), name


def test_an_adopted_expert_is_extracted_and_a_model_changed_by_it(place, branched, experts, tmp_path):
    extract(place / "math", place / "branched", tmp_path / "artifact")
    model = merge(place / "branched", adopted(place), tmp_path / "model").path
    better = bare(copy_with(experts["code"], tmp_path / "b", opened(3)), tmp_path / "better")
    adopt_expert(better, place / "branched", "code")
    made = replace_expert(Merged.open(model, [place]), "code", better, tmp_path / "made").path
    fresh = merge(
        place / "branched",
        adopted(place) | {"code": better, "math": tmp_path / "artifact"},
        tmp_path / "fresh",
    ).path
    assert weights(made) == weights(fresh)


def test_a_merged_model_is_known_by_its_contents_and_can_be_changed(place, experts, tmp_path):
    ours = merge(place / "branched", adopted(place), tmp_path / "ours").path
    model = bare(ours, tmp_path / "model")
    manifest = adopt_merged(model, NAMES, place / "branched")
    assert manifest.kind == "merged" and not manifest.router_stale
    assert manifest.notes[2:] == (
        "proven: expert 1, math, has the FFNs of math, bit for bit",
        "proven: expert 2, code, has the FFNs of code, bit for bit",
        "proven: expert 3, tool, has the FFNs of tool, bit for bit",
        "proven: anchor and shared tensors are the mean of branched, math, code, tool, bit for bit",
        "proven: the router is the merge's, bit for bit",
        "said: the names anchor, math, code, tool",
    )
    better = train_with(place / "code", tmp_path / "better", "rlvr", opened(3), policy="rlvr_open")
    made = [
        replace_expert(Merged.open(one, []), "code", better, tmp_path / f"made-{one.name}").path
        for one in (ours, model)
    ]
    assert weights(made[0]) == weights(made[1])


def test_a_trained_router_and_a_mean_that_was_rounded_are_seen(place, tmp_path):
    ours = merge(place / "branched", adopted(place), tmp_path / "ours").path

    def change(name, tensor):
        return (
            tensor + 1 if name.endswith("gate.weight") else tensor * (1 + 1e-7) if "norm" in name else tensor
        )

    model = bare(copy_with(ours, tmp_path / "routed", change), tmp_path / "model")
    manifest = adopt_merged(model, NAMES, place / "branched")
    assert manifest.kind == "routed" and manifest.shared is not None
    assert "up to rounding (model." in manifest.notes[5]
    assert manifest.notes[6] == "proven: the router was trained since the merge"
    other = bare(
        copy_with(ours, tmp_path / "other", lambda n, t: t * 1.01 if "norm" in n else t),
        tmp_path / "weighted",
    )
    manifest = adopt_merged(other, NAMES, place / "branched")
    assert manifest.shared is None and "9 anchor and shared tensors are not the mean of" in manifest.notes[5]
    with pytest.raises(BarError, match="expected the hash of what each expert was merged from, got none"):
        Merged.open(other, [])


def test_without_its_branch_or_its_experts_a_merged_model_has_names_alone(place, tmp_path):
    ours = merge(place / "branched", adopted(place), tmp_path / "ours").path
    alone = bare(ours, tmp_path / "deep" / "alone")
    manifest = adopt_merged(alone, NAMES)
    assert [expert.name for expert in manifest.experts] == list(NAMES) and manifest.anchor_hash is None
    with pytest.raises(BarError, match=r"adopted without the branched folder .* bar adopt --of BRANCHED"):
        Merged.open(alone, [])
    (alone / MANIFEST).unlink()
    shutil.rmtree(place / "code")
    notes = adopt_merged(alone, NAMES, place / "branched").notes
    assert "said: expert 2 is code; no folder with its FFNs was found" in notes
    with pytest.raises(BarError, match="expected the hash of what each expert was merged from, got none"):
        Merged.open(alone, [place])


def as_expert(path, place):
    return adopt_expert(path, place / "branched", "x")


def nan(path):
    edit_tensors(path, lambda t: t["model.norm.weight"].__setitem__(3, torch.nan))


WRONG = {
    "a dense one as branched": (
        "dense",
        lambda p, _: adopt_branched(p),
        "expected a mixture of 2 experts, got a dense model",
    ),
    "a dense one as expert": ("dense", as_expert, "expected a mixture of 2 experts, got a dense model"),
    "a merged one as branched": ("merged", lambda p, _: adopt_branched(p), "of 2 experts, got 4"),
    "two experts as five": (
        "expert",
        lambda p, _: adopt_merged(p, ("anchor", "a", "b", "c", "d")),
        "expected a mixture of 5 experts, got 2",
    ),
    "too few names": ("merged", lambda p, _: adopt_merged(p, ("anchor", "a", "b")), "of 3 experts, got 4"),
    "a name twice": (
        "merged",
        lambda p, _: adopt_merged(p, ("anchor", "a", "b", "a")),
        "names expected once each, got 'a' 2 times",
    ),
    "no anchor among the names": (
        "merged",
        lambda p, _: adopt_merged(p, ("a", "b", "c", "d")),
        "names expected 'anchor' and then .*, got 'a, b, c, d'",
    ),
    "a name that climbs": (
        "merged",
        lambda p, _: adopt_merged(p, ("anchor", "../a", "b", "c")),
        r"expert name expected letters, .* got '\.\./a'",
    ),
    "an expert called anchor": (
        "expert",
        lambda p, place: adopt_expert(p, place / "branched", "anchor"),
        "expert name expected .* got 'anchor'",
    ),
    "an expert of another base": (
        "foreign",
        as_expert,
        r"tensor 'model\.layers\.0\.\S+' is the anchor's: expected within 0\.25 of that of .*branched, as far "
        r"as training moves it, got 1\.\d+ \(of another base\?\)",
    ),
    "a model of another base": (
        "foreign",
        lambda p, place: adopt_merged(p, ("anchor", "a"), place / "branched"),
        r"is the anchor's: expected within 0\.25 .* \(of another base\?\)",
    ),
    "the branched folder as expert": (
        "branched",
        as_expert,
        "expected a trained expert, got the one of .* as it was",
    ),
    "an expert of itself": (
        "expert",
        lambda p, _: adopt_expert(p, p, "x"),
        "expected one folder per expert, got the same one as 'anchor' and as 'x'",
    ),
    "an expert of an expert": (
        "expert",
        lambda p, place: adopt_expert(p, place / "math", "x"),
        "the anchor expected is the branched folder all experts started from, got 'expert'",
    ),
    "a tensor less": (
        "expert",
        lambda p, place: (edit_tensors(p, lambda t: t.pop("model.norm.weight")), as_expert(p, place)),
        r"tensor 'model\.norm\.weight' is missing: config\.json expected \[16\], got no such tensor",
    ),
    "not a number": (
        "expert",
        lambda p, place: (nan(p), as_expert(p, place)),
        r"tensor 'model\.norm\.weight': expected finite values, got NaN or infinity in row 3",
    ),
    "not a number in the branched folder": (
        "branched",
        lambda p, _: (nan(p), adopt_branched(p)),
        "expected finite values, got NaN or infinity in row 3",
    ),
    "not a number in a merged model": (
        "expert",
        lambda p, _: (nan(p), adopt_merged(p, ("anchor", "a"))),
        "expected finite values, got NaN or infinity in row 3",
    ),
    "another tokenizer": (
        "expert",
        lambda p, place: ((p / "tokenizer.json").write_text("{}"), as_expert(p, place)),
        "expected the same tokenizer as",
    ),
}


@pytest.mark.parametrize("source, call, message", WRONG.values(), ids=WRONG)
def test_what_it_is_not_is_refused_and_nothing_is_written(
    place, dense, other_dense, branched, experts, tmp_path, source, call, message
):
    made = {"dense": dense, "branched": branched, "expert": experts["math"]}
    if source == "merged":
        made["merged"] = merge(branched, experts, tmp_path / "merged").path
    if source == "foreign":
        foreign = branch(other_dense, dense, tmp_path / "f", router_init="normal", seed=3)[0].path
        made["foreign"] = copy_with(foreign, tmp_path / "foreign", lambda n, t: t + (".experts.1." in n))
    path = bare(made[source], tmp_path / "given")
    before = {name: data for name, data in files(tmp_path).items() if not name.startswith("given/")}
    with pytest.raises(BarError, match=message) as caught:
        call(path, place)
    assert "\n" not in str(caught.value)
    assert not (path / MANIFEST).exists()
    assert {name: data for name, data in files(tmp_path).items() if not name.startswith("given/")} == before
    assert sorted(p.name for p in path.iterdir()) == sorted(
        p.name for p in made[source].iterdir() if p.name not in (MANIFEST, "README.md")
    )


def test_twice_is_refused_and_leaves_the_first_manifest(place):
    before = files(place)
    with pytest.raises(BarError, match=r"math/manifest\.json: expected none yet .* of kind 'expert'"):
        adopt_expert(place / "math", place / "branched", "maths")
    with pytest.raises(BarError, match=r"expected none yet .* of kind 'branched'"):
        adopt_branched(place / "branched")
    assert files(place) == before


@pytest.mark.parametrize("changed", ["branched", "code"])
def test_what_is_changed_after_its_adoption_is_found(place, tmp_path, changed):
    name = "model.layers.1.mlp.experts.1.down_proj.weight"
    edit_tensors(place / changed, lambda t: t[name].view(-1)[5].add_(1))
    with pytest.raises(BarError, match=rf"{changed}/model\.safetensors: tensor '{name}' changed since"):
        merge(place / "branched", adopted(place), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_further_than_usual_is_accepted_where_that_is_asked_for(place, branched, tmp_path):
    path = bare(copy_with(branched, tmp_path / "made", lambda n, t: t * 1.4), tmp_path / "far")
    with pytest.raises(BarError, match=r"expected within 0\.25 .* got 0\.4"):
        adopt_expert(path, place / "branched", "far")
    assert " by 0.4 of its norm" in adopt_expert(path, place / "branched", "far", moved=0.5).notes[1]


def test_a_half_precision_branch_is_adopted(tmp_path):
    two = save_hf(tmp_path / "two", experts=2, seed=4, dtype="bfloat16")
    adopt_branched(two)
    path = bare(
        copy_with(two, tmp_path / "made", lambda n, t: t * 1.25 if ".experts.1." in n else t), tmp_path / "x"
    )
    adopt_expert(path, two, "x")
    out = merge(two, {"x": path}, tmp_path / "out").path
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_adopted_folder_is_trained_on(place):
    """A stage carries its lineage on."""
    made = read_manifest(place / "math").after(TrainingRecord(stage="sft", policy="sft"), sources=())
    assert made.experts[1].stages == ("adopted", "sft") and made.kind == "expert"
    seal(place / "math", made)
    assert read_manifest(place / "math").stage == "sft"
