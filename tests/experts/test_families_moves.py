"""Branch, merge, artifacts and dense merges of every family: what they make is loaded by transformers' own
classes, and computes what it should."""

import pytest
import torch
from folders import CLASSES, copy_with, load_tensors, save_hf, train_with
from safetensors.torch import save_file

from megatron_bar.conversion.convert import export_checkpoint, import_folder
from megatron_bar.errors import BarError
from megatron_bar.experts.artifact import extract
from megatron_bar.experts.branch import branch
from megatron_bar.experts.btx import btx
from megatron_bar.experts.dense_merge import dense_merge
from megatron_bar.experts.merge import merge
from megatron_bar.experts.router_start import LOGIT_STD, hidden_states
from megatron_bar.experts.upgrade import Merged, remove, replace_expert
from megatron_bar.weights.folder import SINGLE, Folder

BEFORE = [family for family in CLASSES if family != "olmo2"]
IDS = torch.arange(18).view(2, 9)


def logits(folder):
    import transformers

    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        return model(IDS).logits


def largest(left, right) -> float:
    return float((left - right).abs().max()) / max(1.0, float(right.abs().max()))


def texts(tmp_path, domain="plus is plus is plus is one one"):
    given = {"general_text": "one two red blue is plus one two", "domain_text": domain}
    for name, text in given.items():
        (tmp_path / name).write_text(text)
    return {name: tmp_path / name for name in given}


@pytest.mark.parametrize("init", ["normal", "normal-measured", "zero", "hidden", "domain"])
@pytest.mark.parametrize("family", CLASSES)
def test_a_branch_of_equal_folders_is_the_dense_model(family, init, tmp_path):
    tied = {"tie_word_embeddings": True} if init == "zero" else {}
    dense = save_hf(tmp_path / "dense", family=family, **tied)
    init, _, measured = init.partition("-")
    given = texts(tmp_path) if measured or init in ("hidden", "domain") else {}
    before = family in BEFORE
    if (init == "domain" and before) or (measured and not before):
        with pytest.raises(BarError, match=r"router init 'domain' expected routers|texts are not used"):
            branch(dense, dense, tmp_path / "branched", router_init=init, **given)
        assert not (tmp_path / "branched").exists()
        return
    folder, notes = branch(dense, dense, tmp_path / "branched", router_init=init, seed=3, **given)
    assert largest(logits(folder.path), logits(dense)) <= 1e-5
    assert folder.config.norm_topk_prob == before
    assert any("tied" in note for note in notes) == bool(tied)


@pytest.mark.parametrize("init", ["normal", "hidden"])
@pytest.mark.parametrize("family", BEFORE)
def test_logits_of_a_new_router_deviate_little(family, init, tmp_path):
    """Norms of about 8 a value at hidden size 16: N(0, 0.02) would give 0.64."""
    dense = copy_with(
        save_hf(tmp_path / "m", family=family),
        tmp_path / "dense",
        lambda name, tensor: tensor * 8 if "post_attention_layernorm" in name else tensor,
    )
    given = texts(tmp_path)
    folder, _ = branch(dense, dense, tmp_path / "branched", router_init=init, **given)
    for row, text in enumerate(given.values()):
        for layer, seen in enumerate(hidden_states(Folder.open(dense), text)):
            rows = folder.read(f"model.layers.{layer}.mlp.gate.weight")
            assert float((seen @ rows[row]).std()) <= LOGIT_STD + 1e-5
    if init == "normal":  # by formula: about as much, on states whose directions are random
        by_formula, _ = branch(dense, dense, tmp_path / "formula", router_init="normal")
        rows = by_formula.read("model.layers.0.mlp.gate.weight").float()
        weight = by_formula.read("model.layers.0.post_attention_layernorm.weight")
        states = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
        states = weight * states / states.square().mean(-1, keepdim=True).sqrt()
        assert 0.1 < float((states @ rows.T).std()) < 2 * LOGIT_STD


@pytest.mark.parametrize("family", BEFORE)
def test_rows_of_hidden_states_point_to_the_text(family, tmp_path):
    dense = save_hf(tmp_path / "dense", family=family)
    given = texts(tmp_path)
    folder, _ = branch(dense, dense, tmp_path / "branched", router_init="hidden", **given)
    other, _ = branch(
        dense,
        dense,
        tmp_path / "other",
        router_init="hidden",
        **given | {"domain_text": given["general_text"]},
    )
    rows, others = (made.read("model.layers.1.mlp.gate.weight") for made in (folder, other))
    assert torch.equal(rows[0], others[0]) and not torch.equal(rows[1], others[1])
    means = [hidden_states(Folder.open(dense), text)[1].mean(0) for text in given.values()]
    for row, mean in zip(rows, means, strict=True):
        assert torch.cosine_similarity(row, mean, dim=0) > 1 - 1e-6


def changed(seed: int, *parts: str):
    def change(name, tensor):
        generator = torch.Generator().manual_seed(seed + len(name))
        moved = any(part in name for part in parts)
        return tensor + 0.05 * torch.randn(tensor.shape, generator=generator) * moved

    return change


@pytest.fixture(params=CLASSES)
def family_of_experts(request, tmp_path):
    """Family, branched folder, two experts of which one moved shared tensors too."""
    dense = save_hf(tmp_path / "dense", family=request.param)
    branched = branch(dense, dense, tmp_path / "branched", router_init="normal")[0].path
    own = (".experts.1.", "embed_tokens", "lm_head")
    shared = (*own, "self_attn", "layernorm", "model.norm")
    return (
        request.param,
        branched,
        {
            "math": train_with(branched, tmp_path / "math", "sft", changed(1, *own), expert="math"),
            "code": train_with(branched, tmp_path / "code", "rlvr", changed(2, *shared), expert="code"),
        },
    )


def test_a_merge_and_its_upgrades(family_of_experts, tmp_path):
    family, branched, experts = family_of_experts
    merged = merge(branched, experts, tmp_path / "merged")
    assert (merged.config.num_experts, merged.config.norm_topk_prob) == (3, family != "olmo2")
    found, base = load_tensors(merged.path), load_tensors(branched)
    inputs = [base, *(load_tensors(path) for path in experts.values())]
    for name, tensor in found.items():
        if not any(part in name for part in (".experts.", "gate.weight", "shared_expert")):
            mean = sum(given[name].double() for given in inputs) / 3
            assert torch.allclose(tensor.double(), mean, atol=1e-6), name
    assert logits(merged.path).isfinite().all()
    # The whole folder, and what stands for it.
    small = tmp_path / "artifact"
    extract(experts["code"], branched, small)
    again = merge(branched, experts | {"code": small}, tmp_path / "again")
    assert same(again.path, merged.path)
    new = train_with(branched, tmp_path / "new", "sft", changed(5, ".experts.1."), expert="math")
    upgraded = replace_expert(Merged.open(merged.path, [tmp_path]), "math", new, tmp_path / "upgraded")
    wanted = merge(branched, {"math": new, "code": experts["code"]}, tmp_path / "wanted")
    assert same(upgraded.path, wanted.path)
    less = remove(Merged.open(merged.path, [tmp_path]), "code", tmp_path / "less")
    assert same(less.path, merge(branched, {"math": experts["math"]}, tmp_path / "one").path)


def same(left, right) -> bool:
    ours, theirs = load_tensors(left), load_tensors(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("experts", [0, 3])
@pytest.mark.parametrize("family", CLASSES)
def test_through_a_checkpoint_and_back(family, experts, tmp_path):
    source = save_hf(tmp_path / "m", family=family, experts=experts)
    import_folder(source, tmp_path / "checkpoint")
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "back")
    assert same(source, tmp_path / "back")


@pytest.mark.parametrize("family", CLASSES)
def test_dense_models_as_one_and_as_a_mixture(family, tmp_path):
    models = {name: save_hf(tmp_path / name, family=family, seed=n) for n, name in enumerate("ab")}
    mean = dense_merge(models, tmp_path / "mean")
    ours = load_tensors(mean.path)
    theirs = [load_tensors(path) for path in models.values()]
    for name in ours:
        assert torch.allclose(ours[name], (theirs[0][name] + theirs[1][name]) / 2, atol=1e-6)
    copies = {"a": models["a"], "b": copy_with(models["a"], tmp_path / "c", lambda _, tensor: tensor)}
    assert largest(logits(btx(copies, tmp_path / "mixture").path), logits(models["a"])) <= 1e-5


@pytest.mark.parametrize("family", CLASSES)
def test_an_expert_in_the_rank_of_its_training_is_the_expert(family, tmp_path):
    wide = {"hidden_size": 64, "intermediate_size": 160}
    dense = save_hf(tmp_path / "dense", family=family, **wide)
    branched = branch(dense, dense, tmp_path / "branched", router_init="normal")[0].path

    def moved(name, tensor):
        step = 0.1 * torch.outer(torch.randn(len(tensor)), torch.randn(tensor.shape[-1]))
        return tensor + step if ".experts.1." in name else tensor

    torch.manual_seed(0)
    whole = train_with(branched, tmp_path / "whole", "rlvr", moved, expert="math")
    extract(whole, branched, tmp_path / "small", rank=1)
    sizes = [
        sum(file.stat().st_size for file in at.glob("*.safetensors")) for at in (tmp_path / "small", whole)
    ]
    assert sizes[0] < 0.3 * sizes[1]  # Qwen2 has zeros beside its routers
    models = [merge(branched, {"math": tmp_path / n}, tmp_path / f"of_{n}").path for n in ("small", "whole")]
    near, exact = map(logits, models)
    assert largest(near, exact) < 2e-3 < largest(logits(branched), exact)


@pytest.mark.parametrize("name", ["block_sparse_moe.experts.1.up_proj", "mlp.experts.1.up_proj", "mlp.gate"])
def test_a_name_that_the_class_does_not_read_is_refused(name, tmp_path):
    """transformers would ignore the tensor, and draw another in its place."""
    dense = save_hf(tmp_path / "dense", family="llama")
    branched = branch(dense, dense, tmp_path / "branched", router_init="zero")[0].path
    tensors = load_tensors(branched)
    theirs = name.replace("mlp", "block_sparse_moe").replace("up_proj", "w3")
    tensors[f"model.layers.0.{name}.weight"] = tensors.pop(f"model.layers.0.{theirs}.weight")
    save_file(tensors, branched / SINGLE)
    with pytest.raises(BarError, match=rf"{name}.weight': expected a name of Mixtral.*{theirs}.weight'"):
        Folder.open(branched)


def test_families_are_not_mixed(tmp_path):
    llama = save_hf(tmp_path / "llama", family="llama")
    mistral = save_hf(tmp_path / "mistral", family="mistral")
    with pytest.raises(BarError, match=r"mistral: family expected llama as in .*llama, got mistral"):
        branch(llama, mistral, tmp_path / "out", router_init="zero")
    with pytest.raises(BarError, match=r"mistral: family expected llama as in .*llama, got mistral"):
        btx({"a": llama, "b": mistral}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
