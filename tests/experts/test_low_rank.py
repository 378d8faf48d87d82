"""Artifacts in low rank: against numpy's singular values, and a merge of one against the merge of the expert
that it says."""

import numpy as np
import pytest
import torch
from folders import copy_with, edit_json, load_tensors, save_hf, seal, train_with
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from megatron_bar.errors import BarError
from megatron_bar.experts.artifact import extract, open_artifact
from megatron_bar.experts.branch import branch
from megatron_bar.experts.low_rank import FILE, factorise
from megatron_bar.experts.merge import merge
from megatron_bar.experts.upgrade import Merged, replace_expert
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import RLVR, ParamGroup, classify
from megatron_bar.weights.manifest import MANIFEST, read_manifest

WIDE = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 4}


def moved(seed: int, rank: int):
    """A change of rank ``rank`` of each matrix that RLVR trains."""
    generator = torch.Generator().manual_seed(seed)

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not RLVR.trainable(name) or classify(name) is ParamGroup.ROUTER or tensor.dim() != 2:
            return tensor
        left, right = (
            torch.randn(shape, generator=generator)
            for shape in ((len(tensor), rank), (rank, tensor.shape[1]))
        )
        return (tensor + 0.02 * left @ right).to(tensor.dtype)

    return change


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A branch of a wider model, and two experts whose training had rank 4."""
    root = tmp_path_factory.mktemp("wide")
    dense = [save_hf(root / f"dense{seed}", seed=seed, **WIDE) for seed in (1, 2)]
    branched = branch(*dense, root / "branched", router_init="normal", seed=3)[0].path
    experts = {
        name: train_with(branched, root / name, "rlvr", moved(seed, 4), expert=name)
        for seed, name in enumerate(("math", "code"))
    }
    return root, branched, experts


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-6, 1e-3, 1.0, 300.0]),
)
def test_factors_are_those_of_the_singular_values(rows, columns, rank, seed, scale):
    matrix = scale * np.random.default_rng(seed).standard_normal((rows, columns))
    left, right = factorise(torch.from_numpy(matrix), rank)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    product = (left.double() @ right.double()).numpy()
    kept = min(rank, rows, columns)
    assert left.shape == (rows, kept) and right.shape == (kept, columns)
    least = np.linalg.norm(matrix - best)
    assert np.linalg.norm(matrix - product) <= least + 2e-3 * np.linalg.norm(matrix) + 2e-6


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(1e-5, 1e2))
def test_a_product_is_the_same_bits_in_any_order(seed, scale):
    generator = np.random.default_rng(seed)
    matrix = scale * generator.standard_normal((30, 24)) * np.exp(generator.standard_normal(24))
    left, right = (values.double().numpy() for values in factorise(torch.from_numpy(matrix), 16))
    whole = left @ right
    for order in (generator.permutation(16) for _ in range(4)):
        one_by_one = np.zeros_like(whole)
        for place in order:
            one_by_one += np.outer(left[:, place], right[place])
        assert np.array_equal(whole, one_by_one)


def said(path, branched) -> dict[str, torch.Tensor]:
    """What the matrices of an artifact are, by numpy from its file alone."""
    base = load_tensors(branched)
    factors = load_file(path / FILE)
    found = {}
    for key in factors:
        name, of, side = key.rsplit(".", 2)
        if side == "left":
            source = name.replace(".experts.1.", ".experts.0.") if of == "anchor" else name
            product = factors[key].astype(np.float64) @ factors[f"{name}.{of}.right"].astype(np.float64)
            found[name] = torch.from_numpy(base[source].double().numpy() + product).to(base[name].dtype)
    return found


@pytest.mark.parametrize("rank", [2, 4])
def test_a_merge_of_one_is_the_merge_of_what_it_says(wide, tmp_path, rank):
    _, branched, experts = wide
    extract(experts["math"], branched, tmp_path / "small", rank=rank)
    extract(experts["math"], branched, tmp_path / "exact")
    values = said(tmp_path / "small", branched)
    assert {classify(name) for name in values} >= {ParamGroup.DOMAIN_EXPERT}
    opened = open_artifact(tmp_path / "small", Folder.open(branched))
    whole = load_tensors(experts["math"])
    for name in opened.tensors:
        assert torch.equal(opened.read(name), values.get(name, whole[name])), name
        assert torch.equal(opened.slice(name)[1:3], values.get(name, whole[name])[1:3])
    near = tmp_path / "near"
    copy_with(experts["math"], near, lambda name, tensor: values.get(name, tensor))
    seal(near, read_manifest(experts["math"]))
    merged = [
        merge(branched, {"math": path, "code": experts["code"]}, tmp_path / f"merged{number}").path
        for number, path in enumerate((tmp_path / "small", near))
    ]
    left, right = map(load_tensors, merged)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    if rank == 4:  # that of the training
        for name, value in values.items():
            step = (whole[name] - load_tensors(branched)[name]).norm()
            assert (value - whole[name]).norm() < 2e-3 * step, name
    sizes = [
        sum(file.stat().st_size for file in (tmp_path / place).glob("*.safetensors"))
        for place in ("small", "exact")
    ]
    assert sizes[0] < 0.5 * sizes[1]


def test_it_takes_an_experts_place(wide, tmp_path):
    _, branched, experts = wide
    extract(experts["math"], branched, tmp_path / "small", rank=4)
    merge(branched, experts, tmp_path / "merged")
    model = Merged.open(tmp_path / "merged", [branched.parent])
    changed = replace_expert(model, "math", tmp_path / "small", tmp_path / "changed").path
    fresh = merge(branched, {"math": tmp_path / "small", "code": experts["code"]}, tmp_path / "fresh").path
    assert read_manifest(changed).tensors == read_manifest(fresh).tensors
    note = next(note for note in read_manifest(tmp_path / "small").notes if "rank 4" in note)
    assert note in (tmp_path / "small/README.md").read_text()


def drop(factors):
    factors.pop(next(key for key in factors if key.endswith(".right")))


def stretch(factors):
    key = next(key for key in factors if key.endswith(".right"))
    factors[key] = factors[key][:, 1:].copy()


def spoil(factors):
    key = next(iter(factors))
    factors[key] = factors[key] + np.float16(0.25)


def poison(factors):
    key = next(iter(factors))
    factors[key] = factors[key] * np.float16("inf")


def widen(factors):
    for key in factors:
        factors[key] = factors[key].astype(np.float32)


def surplus(factors):
    factors["model.norm.weight.own.left"] = next(iter(factors.values()))


@pytest.mark.parametrize(
    "change, message",
    [
        (drop, "expected the left and the right factor of a matrix"),
        (stretch, "expected factors of"),
        (spoil, "changed since its manifest was written"),
        (poison, "expected finite values"),
        (widen, "expected float16, got float32"),
        (surplus, "expected the left and the right factor of a matrix"),
    ],
)
def test_a_spoiled_one_is_refused(wide, tmp_path, change, message):
    _, branched, experts = wide
    extract(experts["math"], branched, tmp_path / "small", rank=2)
    factors = load_file(tmp_path / "small" / FILE)
    change(factors)
    save_file(factors, tmp_path / "small" / FILE)
    with pytest.raises(BarError, match=message):
        merge(branched, {"math": tmp_path / "small", "code": experts["code"]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lie_about_the_base_is_refused(wide, tmp_path):
    _, branched, experts = wide
    extract(experts["math"], branched, tmp_path / "small", rank=2)
    edit_json(tmp_path / "small" / MANIFEST, anchor_hash="0" * 64)
    with pytest.raises(BarError):
        merge(branched, {"math": tmp_path / "small", "code": experts["code"]}, tmp_path / "out")


@pytest.mark.parametrize("rank", [0, -3])
def test_a_rank_below_one_is_refused(wide, tmp_path, rank):
    _, branched, experts = wide
    with pytest.raises(BarError, match="rank expected at least 1"):
        extract(experts["math"], branched, tmp_path / "small", rank=rank)
