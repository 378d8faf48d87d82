"""The merge against a computation with the safetensors library and numpy, and everything it must refuse."""

import json
import re
import shutil
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from folders import copy_with, edit_json, load_tensors, save_hf, train_with, whole
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from megatron_bar.errors import BarError
from megatron_bar.experts.branch import branch
from megatron_bar.experts.merge import merge, parse_experts
from megatron_bar.experts.shared import Combination
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hashes import folder_hash, hash_units
from megatron_bar.weights.manifest import MANIFEST, Cost, read_manifest
from megatron_bar.weights.writer import WriteOptions

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def mean(tensors: list[torch.Tensor]) -> torch.Tensor:
    return Combination()("x", tensors)


def test_it_is_the_published_merge(branched, experts, tmp_path):
    out = merge(branched, experts, tmp_path / "out", options=WriteOptions(max_shard_bytes=4000)).path
    assert (config := whole(out).config).num_experts == config.experts_per_token == 4
    made, inputs = load_tensors(out), [load_tensors(path) for path in (branched, *experts.values())]
    for name in inputs[0]:
        stack = np.stack([tensors[name].numpy() for tensors in inputs])
        if ".experts.1." in name:
            for slot in (1, 2, 3):
                found = made.pop(name.replace(".experts.1.", f".experts.{slot}."))
                assert np.array_equal(found.numpy(), stack[slot])
            continue
        expected = stack.astype(np.float64).mean(axis=0).astype(np.float32)
        if name.endswith("mlp.gate.weight"):
            expected = np.stack([expected[0], *(stack[slot][1] for slot in (1, 2, 3))])
            assert np.array_equal(expected[0], stack[0][0])  # the experts' stages froze the row
        np.testing.assert_allclose(made.pop(name).numpy(), expected, rtol=1e-7, atol=0)
    assert not made


def test_anchor_ffn_and_row_that_moved_are_averaged(branched, experts, tmp_path):
    """RLVR without any freeze, as the authors' scripts ran it."""
    generator = torch.Generator().manual_seed(0)
    names = ("model.layers.0.mlp.experts.0.down_proj.weight", "model.layers.1.mlp.gate.weight")
    opened = train_with(
        branched,
        tmp_path / "opened",
        "rlvr_open",
        lambda n, t: t + torch.randn(t.shape, generator=generator) * (n in names),
        expert="x",
    )
    made = load_tensors(merge(branched, {"x": opened, "math": experts["math"]}, tmp_path / "out").path)
    inputs = [load_tensors(path) for path in (branched, opened, experts["math"])]
    for name, row in zip(names, (slice(None), 0), strict=True):
        expected = sum(tensors[name][row].double() for tensors in inputs) / 3
        assert (expected - inputs[0][name][row]).abs().max() > 0.1
        torch.testing.assert_close(made[name][row].double(), expected, rtol=1e-7, atol=1e-9)


def test_transformers_loads_it_and_the_manifest_tells_the_lineage(branched, experts, tmp_path):
    import transformers

    out = merge(branched, experts, tmp_path / "out").path
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert type(model).__name__ == "FlexOlmoForCausalLM"
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert (model.config.num_experts, model.config.num_experts_per_tok, model.config.norm_topk_prob) == (
        4,
        4,
        False,
    )
    manifest, root = read_manifest(out), read_manifest(branched)
    assert (manifest.kind, manifest.stage, manifest.anchor_hash) == ("merged", "merge", root.anchor_hash)
    assert [(e.index, e.name, e.stages, e.anchor_hash) for e in manifest.experts] == [
        (0, "anchor", (), root.anchor_hash),
        (1, "math", ("rlvr",), root.anchor_hash),
        (2, "code", ("rlvr",), root.anchor_hash),
        (3, "tool", ("rlvr",), root.anchor_hash),
    ]
    assert [(source.role, source.name, source.hash) for source in manifest.sources] == [
        (role, path.name, folder_hash(hash_units(Folder.open(path))))
        for role, path in {"anchor": branched, **experts}.items()
    ]


def test_the_order_of_the_slots_is_the_order_given(branched, experts, tmp_path):
    made = load_tensors(merge(branched, dict(reversed(experts.items())), tmp_path / "out").path)
    name = "model.layers.0.mlp.experts.{}.up_proj.weight"
    for slot, expert in enumerate(("tool", "code", "math"), start=1):
        assert torch.equal(made[name.format(slot)], load_tensors(experts[expert])[name.format(1)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_did_not_move_is_bit_equal(tmp_path, dtype):
    """Mid-training freezes all that is shared, so the merge must not touch it."""
    dense = save_hf(tmp_path / "dense", dtype=dtype)
    branched = branch(dense, dense, tmp_path / "branched", router_init="normal")[0].path
    experts = {
        f"e{n}": train_with(
            branched, tmp_path / f"e{n}", "midtrain", lambda name, t, n=n: t + n * (".experts.1." in name)
        )
        for n in (1, 2, 3, 4)
    }
    made, before = load_tensors(merge(branched, experts, tmp_path / "out").path), load_tensors(branched)
    for name, tensor in before.items():
        if ".experts.1." not in name:
            assert torch.equal(
                made[name][: len(tensor) - ("gate.weight" in name)],
                tensor[: len(tensor) - ("gate.weight" in name)],
            )


FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.integers(2, 7), st.sampled_from(DTYPES), st.lists(FINITE, min_size=1, max_size=20))
def test_the_mean_of_identical_inputs_is_bit_equal(count, dtype, values):
    tensor = torch.tensor(values).clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)
    bits = torch.int32 if dtype is torch.float32 else torch.int16
    assert torch.equal(mean([tensor] * count).view(bits), tensor.view(bits))


@given(
    st.integers(2, 7), arrays.arrays(np.float32, (7, 3), elements=st.floats(-(2.0**60), 2.0**60, width=32))
)
def test_the_mean_is_the_closest_float_to_the_exact_mean(count, values):
    """Fractions are exact; float64 sums may cost at most one rounding where terms cancel."""
    found = mean([torch.from_numpy(row.copy()) for row in values[:count]]).numpy()
    for column in range(3):
        exact = sum(Fraction(float(value)) for value in values[:count, column]) / count
        largest = max(abs(float(value)) for value in values[:count, column])
        error = abs(Fraction(float(found[column])) - exact)
        assert error <= abs(exact) * Fraction(1, 2**23) + Fraction(largest) * Fraction(1, 2**48) + Fraction(
            1, 2**149
        )


@given(st.permutations(range(5)))
def test_the_mean_does_not_depend_on_the_order(order):
    tensors = [torch.randn(3, 4, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    torch.testing.assert_close(mean([tensors[n] for n in order]), mean(tensors), rtol=1e-7, atol=0)


def test_the_mean_crosses_blocks_of_rows_and_leaves_its_inputs_alone():
    tensors = [torch.randn(2500, 2) for _ in range(3)]
    before = [tensor.clone() for tensor in tensors]
    torch.testing.assert_close(
        mean(tensors).double(), sum(tensor.double() for tensor in tensors) / 3, rtol=1e-6, atol=1e-8
    )
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def in_domain(step: float):
    """A change of expert 1 alone."""
    return lambda name, tensor: tensor + step * (".experts.1." in name)


def edit_lineage(path, **changes):
    """Of expert 1, in the manifest."""
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["experts"][1] |= changes
    (path / MANIFEST).write_text(json.dumps(manifest))


def check_refused(tmp_path, message, anchor, experts, **options):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BarError, match=message) as caught:
        merge(anchor, experts, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_arguments_are_checked(branched, experts, tmp_path):
    math = experts["math"]
    check_refused(tmp_path, "at least one expert NAME=FOLDER, got none", branched, {})
    check_refused(tmp_path, "expert name expected .*got 'anchor'", branched, {"anchor": math})
    check_refused(tmp_path, "expert name expected .*got ''", branched, {"": math})
    check_refused(tmp_path, "expert name expected .*got 'a/b'", branched, {"a/b": math})
    check_refused(
        tmp_path,
        "got the same one as 'math' and as 'again'",
        branched,
        {"math": math, "again": math.parent / "." / math.name},
    )
    check_refused(tmp_path, "got the same one as 'anchor' and as 'x'", branched, {"x": branched})
    (tmp_path / "link").symlink_to(math)
    check_refused(
        tmp_path,
        "got the same one as 'math' and as 'again'",
        branched,
        {"math": math, "again": tmp_path / "link"},
    )


def test_names_and_folders_are_parsed_strictly():
    assert list(parse_experts(["b=x/y=z", "a=w"]).items()) == [
        ("b", parse_experts(["b=x/y=z"])["b"]),
        ("a", parse_experts(["a=w"])["a"]),
    ]
    assert str(parse_experts(["b=x/y=z"])["b"]) == "x/y=z"
    for argument in ("math", "math=", ""):
        with pytest.raises(BarError, match="expert expected as NAME=FOLDER"):
            parse_experts([argument])
    with pytest.raises(BarError, match="expert 'math' expected once, got a and b"):
        parse_experts(["math=a", "math=b"])


def test_a_copy_under_another_path_is_refused_by_its_content(branched, experts, tmp_path):
    """The shared tensors of the copy differ, its domain expert does not."""
    copied = copy_with(
        experts["math"], tmp_path / "copied", lambda name, tensor: tensor + ("self_attn" in name)
    )
    edit_lineage(copied, name="again")
    message = "copied: expected a domain expert of its own, got a copy of 'math' as 'again'"
    check_refused(
        tmp_path, message, branched, {"math": experts["math"], "code": experts["code"], "again": copied}
    )


def test_an_expert_of_another_anchor_is_refused(dense, other_dense, branched, experts, tmp_path):
    foreign = branch(dense, other_dense, tmp_path / "foreign", router_init="normal", seed=99)[0].path
    message = r"foreign: foreign anchor: expected anchor hash \w{64} as recorded in .*branched, got \w{64}"
    check_refused(tmp_path, message, branched, {"math": experts["math"], "code": foreign})


def test_another_branch_with_the_same_anchor_is_no_stranger(dense, branched, experts, tmp_path):
    """Tool use and safety started from another base than math: only the domain FFN differs."""
    sibling = branch(dense, dense, tmp_path / "sibling", router_init="normal", seed=3)[0].path
    trained = train_with(sibling, tmp_path / "trained", "midtrain", in_domain(1), expert="safety")
    made = load_tensors(merge(branched, {"math": experts["math"], "safety": trained}, tmp_path / "out").path)
    name = "model.layers.1.mlp.experts.{}.up_proj.weight"
    assert torch.equal(made[name.format(2)], load_tensors(trained)[name.format(1)])


def test_what_is_no_trained_expert_is_refused(branched, experts, tmp_path):
    untrained = copy_with(branched, tmp_path / "untrained", lambda name, tensor: tensor)
    check_refused(
        tmp_path,
        r"untrained: expected a trained expert of .*branched, got kind 'branched'",
        branched,
        {"x": untrained},
    )
    edit_json(untrained / MANIFEST, kind="expert")
    message = "untrained: expected a domain expert of its own, got a copy of 'anchor' as 'x'"
    check_refused(tmp_path, message, branched, {"x": untrained})
    merged = merge(branched, {"math": experts["math"]}, tmp_path / "merged").path
    check_refused(
        tmp_path, "merged: expected a trained expert of .*, got kind 'merged'", branched, {"x": merged}
    )


LIES = {
    "family": (
        {"family": "olmo2"},
        {},
        r"expected flex_olmo of 'anchor' and a domain expert, got olmo2 of 'anchor' and 'math'",
    ),
    "two anchors": (
        {},
        {"name": "anchor"},
        r"expected flex_olmo of 'anchor' and .*, got flex_olmo of 'anchor' and 'anchor'",
    ),
    "another branch": (
        {},
        {"anchor_hash": "00"},
        r"expected anchor hash \w{64} of expert 'math' too, got 00",
    ),
    "no branch": ({}, {"anchor_hash": None}, r"expected anchor hash \w{64} of expert 'math' too, got None"),
}


@pytest.mark.parametrize("changes, lineage, message", LIES.values(), ids=LIES)
def test_a_manifest_that_contradicts_itself_is_refused(
    branched, experts, tmp_path, changes, lineage, message
):
    liar = copy_with(experts["math"], tmp_path / "liar", lambda name, tensor: tensor)
    edit_json(liar / MANIFEST, **changes)
    edit_lineage(liar, **lineage)
    check_refused(tmp_path, rf"liar/manifest\.json: {message}", branched, {"math": liar})


def test_two_stages_of_one_expert_are_refused(branched, experts, tmp_path):
    later = train_with(experts["math"], tmp_path / "later", "rlvr", in_domain(1))
    message = r"later: expected one folder per expert, got 'math' in .*math-folder too"
    check_refused(tmp_path, message, branched, {"math": experts["math"], "other": later})


def test_experts_that_nobody_named_are_told_apart_by_their_content(branched, tmp_path):
    """A training that records no name leaves the branch's: 'domain'."""
    nameless = {
        name: train_with(branched, tmp_path / name, "midtrain", in_domain(n))
        for n, name in enumerate(("a", "b"), start=1)
    }
    manifest = read_manifest(merge(branched, nameless, tmp_path / "out").path)
    assert [expert.name for expert in manifest.experts] == ["anchor", "a", "b"]
    assert manifest.notes == ("shared tensors: mean of 3 folders, the anchor included",)


def test_another_name_than_the_recorded_one_is_noted(branched, experts, tmp_path):
    notes = read_manifest(merge(branched, {"code": experts["math"]}, tmp_path / "out").path).notes
    assert notes[1:] == ("expert code is called math by its own manifest",)


@pytest.mark.parametrize(
    "unit", ["model.layers.1.mlp.experts.0.up_proj.weight", "model.layers.0.mlp.gate.weight[0]"]
)
def test_an_anchor_that_moved_is_refused_where_no_stage_may_have_moved_it(branched, tmp_path, unit):
    def change(name, tensor):
        moved = in_domain(1)(name, tensor)
        if name == unit.removesuffix("[0]"):
            moved.view(-1)[3] += 1e-3
        return moved

    stages = {
        policy: train_with(branched, tmp_path / policy, policy, change, expert="x")
        for policy in ("rlvr", "rlvr_open")
    }
    message = (
        rf"rlvr: tensor '{re.escape(unit)}' is the anchor's, frozen in its stages \(rlvr\): expected "
        rf"the bits of .*branched"
    )
    check_refused(tmp_path, message, branched, {"x": stages["rlvr"]})
    notes = read_manifest(merge(branched, {"x": stages["rlvr_open"]}, tmp_path / "out").path).notes
    assert notes[1:] == ("expert x moved 1 of the anchor's own tensors, which its stages let train",)


def test_an_anchor_that_is_not_the_branched_folder_is_refused(branched, experts, tmp_path):
    check_refused(
        tmp_path,
        r"math-folder: the anchor expected is the branched folder .*got 'expert'",
        experts["math"],
        {"code": experts["code"]},
    )
    touched = copy_with(
        branched, tmp_path / "touched", lambda name, tensor: tensor + (name == "model.norm.weight")
    )
    check_refused(
        tmp_path,
        r"touched: changed since the branch: expected anchor hash \w{64}, got \w{64}",
        touched,
        experts,
    )


def test_without_a_manifest_it_says_how_to_get_one(branched, experts, tmp_path):
    bare = copy_with(experts["math"], tmp_path / "bare", lambda name, tensor: tensor)
    (bare / MANIFEST).unlink()
    message = r"bare/manifest\.json: not found; expected the manifest that bar branch writes"
    check_refused(tmp_path, message, branched, {"math": bare})
    check_refused(tmp_path, message, bare, experts)


def test_a_manifest_without_anchor_hash_is_refused(branched, experts, tmp_path):
    bare = copy_with(experts["math"], tmp_path / "bare", lambda name, tensor: tensor)
    edit_json(bare / MANIFEST, anchor_hash=None)
    check_refused(
        tmp_path,
        r"bare/manifest\.json: expected an anchor hash and 2 experts, got None and 2",
        branched,
        {"math": bare},
    )


def test_only_two_expert_folders_are_merged(dense, branched, experts, tmp_path):
    merged = merge(branched, experts, tmp_path / "merged").path
    check_refused(tmp_path, "merged: merge expected a folder with 2 experts, got 4", branched, {"x": merged})
    check_refused(tmp_path, "merged: merge expected a folder with 2 experts, got 4", merged, experts)
    check_refused(
        tmp_path,
        "dense: merge expected a folder with 2 experts, got a dense one",
        branched,
        {"x": dense},
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}, "rope_theta": 10.0},
            r"rope_theta expected 5000\.0 as in .*branched, got 10\.0",
        ),
        ({"norm_topk_prob": True}, r"norm_topk_prob expected False as in .*, got True"),
        ({"num_experts_per_tok": 1}, r"experts_per_token expected 2 as in .*, got 1"),
        ({"rms_norm_eps": 0.1}, r"rms_norm_eps expected 1e-06 as in .*, got 0\.1"),
    ],
    ids=["theta", "renormalised", "top-1", "eps"],
)
def test_another_config_is_refused(branched, experts, tmp_path, changes, message):
    other = copy_with(experts["math"], tmp_path / "other", lambda name, tensor: tensor)
    edit_json(other / "config.json", **changes)
    check_refused(tmp_path, f"other: {message}", branched, {"math": other, "code": experts["code"]})


def test_another_dtype_is_refused(branched, experts, tmp_path):
    half = copy_with(experts["math"], tmp_path / "half", lambda name, tensor: tensor.bfloat16())
    check_refused(tmp_path, r"half: dtype expected float32 as in .*, got bfloat16", branched, {"math": half})


def test_another_tokenizer_or_none_is_refused(branched, experts, tmp_path):
    other = copy_with(experts["math"], tmp_path / "other", lambda name, tensor: tensor)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(tokenizer) + " ")
    check_refused(
        tmp_path,
        r"other/tokenizer\.json: expected the same tokenizer as .*branched/tokenizer\.json",
        branched,
        {"math": other},
    )
    (other / "tokenizer.json").unlink()
    check_refused(tmp_path, r"other/tokenizer\.json: expected the same tokenizer", branched, {"math": other})
    bare = tmp_path / "bare"
    shutil.copytree(branched, bare, ignore=shutil.ignore_patterns("tokenizer.json"))
    check_refused(tmp_path, r"bare: no tokenizer", bare, {"math": experts["math"]})


def test_values_that_are_not_finite_are_refused(branched, experts, tmp_path):
    name = "model.layers.0.mlp.gate.weight"
    broken = copy_with(
        experts["code"],
        tmp_path / "broken",
        lambda n, t: t.index_fill(0, torch.tensor(1), torch.nan) if n == name else t,
    )
    check_refused(
        tmp_path,
        rf"broken/model\.safetensors: tensor '{name}': .*in row 1",
        branched,
        {"math": experts["math"], "code": broken},
    )


def test_the_ledger_has_every_stage_once_under_its_expert(branched, experts, tmp_path):
    numbers = {"tokens": 1, "loss_tokens": 1, "generated": 0, "flops": 1.0, "seconds": 1.0, "devices": 1}
    known = Cost(step="anchor", stage="pretrain", device="x", **numbers)
    places = {}
    for name, path in {"anchor": branched, **experts}.items():
        places[name] = shutil.copytree(path, tmp_path / name)
        manifest = read_manifest(path)
        replace(manifest, ledger=(known, *manifest.ledger)).write(places[name])
    out = merge(
        places.pop("anchor"), {"maths": places["math"], "code": places["code"]}, tmp_path / "out"
    ).path
    own = [
        replace(*read_manifest(experts[name]).ledger, expert=expert)
        for name, expert in (("math", "maths"), ("code", "code"))
    ]
    assert read_manifest(out).ledger == (known, *own)
