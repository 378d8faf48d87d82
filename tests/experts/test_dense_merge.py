"""Dense models as one: their mean and BTX's mixture, against numpy and transformers, and what both refuse."""

import shutil

import numpy as np
import pytest
import torch
from folders import add_tokenizer, copy_with, edit_tensors, load_tensors, save_hf, seal, whole

from megatron_bar.errors import BarError
from megatron_bar.experts.artifact import extract
from megatron_bar.experts.btx import btx
from megatron_bar.experts.dense_merge import dense_merge
from megatron_bar.experts.inputs import open_inputs
from megatron_bar.experts.listing import listing
from megatron_bar.experts.shared import Combination
from megatron_bar.experts.upgrade import Merged
from megatron_bar.weights.describe import describe
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hashes import folder_hash, hash_units
from megatron_bar.weights.manifest import Expert, Manifest, TrainingRecord, read_manifest
from megatron_bar.weights.writer import WriteOptions

ROUTERS = [f"model.layers.{layer}.mlp.gate.weight" for layer in range(2)]


@pytest.fixture(scope="module")
def three(dense, other_dense, tmp_path_factory):
    return {
        "anchor": dense,
        "math": other_dense,
        "code": save_hf(tmp_path_factory.mktemp("third") / "third", seed=7),
    }


def float64_mean(tensors: list[torch.Tensor]) -> np.ndarray:
    return np.stack([tensor.numpy() for tensor in tensors]).astype(np.float64).mean(0).astype(np.float32)


def test_the_dense_merge_is_the_mean_of_every_tensor(three, tmp_path):
    out = dense_merge(three, tmp_path / "out", options=WriteOptions(max_shard_bytes=4000)).path
    assert len(list(out.glob("*.safetensors"))) > 1
    made, inputs = load_tensors(out), [load_tensors(path) for path in three.values()]
    whole(out)
    assert made.keys() == inputs[0].keys()
    for name, tensor in made.items():
        np.testing.assert_allclose(tensor.numpy(), float64_mean([t[name] for t in inputs]), rtol=1e-7, atol=0)
    manifest = read_manifest(out)
    assert (manifest.kind, manifest.stage) == ("dense", "dense_merge")
    hashes = [folder_hash(hash_units(Folder.open(path))) for path in three.values()]
    assert [(s.role, s.name, s.hash) for s in manifest.sources] == [
        (name, path.name, digest) for (name, path), digest in zip(three.items(), hashes, strict=True)
    ]
    assert manifest.notes == ("every tensor: mean of anchor, math, code",)


def test_another_combination_takes_the_first_folder_as_its_base(three, tmp_path):
    out = dense_merge(three, tmp_path / "out", shared=Combination(method="task-arithmetic", scale=0.5)).path
    base, *others = (load_tensors(path) for path in three.values())
    for name, tensor in load_tensors(out).items():
        expected = base[name].double() + 0.5 * sum(
            other[name].double() - base[name].double() for other in others
        )
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)


def logits(path, config_class: str) -> torch.Tensor:
    import transformers

    model, told = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and type(model).__name__ == config_class
    with torch.no_grad():
        return model(torch.arange(18).view(2, 9)).logits


@pytest.mark.parametrize("way", [{}, {"shared_from": "two"}, {"router_init": "zero"}], ids=str)
def test_equal_models_mixed_compute_what_each_does(way, dense, tmp_path):
    copies = {name: shutil.copytree(dense, tmp_path / name) for name in ("one", "two", "three")}
    out = btx(copies, tmp_path / "out", **way).path
    # The probabilities sum to 1 whatever the router holds.
    difference = (logits(out, "FlexOlmoForCausalLM") - logits(dense, "Olmo2ForCausalLM")).abs().max()
    assert difference < 1e-5


@pytest.mark.parametrize("shared_from", [None, "anchor", "math"])
def test_btx_accounts_for_every_tensor(shared_from, three, tmp_path):
    out = btx(
        three, tmp_path / "out", shared_from=shared_from, options=WriteOptions(max_shard_bytes=4000)
    ).path
    config = whole(out).config
    assert (config.num_experts, config.experts_per_token, config.norm_topk_prob) == (3, 3, False)
    made, inputs = load_tensors(out), {name: load_tensors(path) for name, path in three.items()}
    for name in inputs["anchor"]:
        given = [tensors[name] for tensors in inputs.values()]
        if ".mlp." in name:
            for slot, tensor in enumerate(given):
                assert torch.equal(made.pop(name.replace(".mlp.", f".mlp.experts.{slot}.")), tensor)
        elif shared_from is None:
            np.testing.assert_allclose(made.pop(name).numpy(), float64_mean(given), rtol=1e-7, atol=0)
        else:
            assert torch.equal(made.pop(name), inputs[shared_from][name])
    assert sorted(made) == ROUTERS
    rows = torch.cat([made[name] for name in ROUTERS])
    assert rows.shape == (6, 16) and 0.01 < rows.std() < 0.03
    assert len({tuple(row.tolist()) for row in rows}) == 6


def test_the_routers_rows_follow_the_seed(three, tmp_path):
    made = [
        load_tensors(btx(three, tmp_path / str(n), seed=seed).path)[ROUTERS[0]]
        for n, seed in enumerate((1, 1, 2))
    ]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_btx_keeps_what_trained_its_experts_and_goes_on_to_the_router_stage(three, tmp_path):
    sft = TrainingRecord(stage="sft", policy="dense_all")
    math = copy_with(three["math"], tmp_path / "math", lambda name, tensor: tensor)
    seal(
        math,
        Manifest(family="olmo2", kind="dense", experts=(Expert(index=0, name="anchor", trained=(sft,)),)),
    )
    out = btx(three | {"math": math}, tmp_path / "out").path
    manifest = read_manifest(out)
    assert [(e.name, e.folder, e.stages) for e in manifest.experts] == [
        ("anchor", "dense", ()),
        ("math", "math", ("sft",)),
        ("code", "third", ()),
    ]
    routed = manifest.after(TrainingRecord(stage="route", policy="route"), sources=())
    assert routed.kind == "routed" and [e.name for e in routed.experts] == ["anchor", "math", "code"]
    assert any(
        line.startswith("note: BTX of independent dense models; shared tensors: mean of all")
        for line in describe(out)
    )


def test_nobody_takes_a_mixture_for_a_merge_of_branched_experts(three, branched, experts, tmp_path):
    out = btx(dict(list(three.items())[:2]), tmp_path / "out").path
    with pytest.raises(
        BarError, match=r"out: was made of independent dense models, .*make it anew with bar merge-dense"
    ):
        Merged.open(out, [])
    with pytest.raises(
        BarError, match=r"out/manifest\.json: expected an anchor hash and 2 experts, got None and 2"
    ):
        open_inputs(out, experts)
    with pytest.raises(
        BarError, match=r"out/manifest\.json: expected an anchor hash and 2 experts, got None and 2"
    ):
        open_inputs(branched, {"math": out})
    with pytest.raises(BarError, match=r"expected a trained expert of the branched folder"):
        extract(out, branched, tmp_path / "artifact")
    # What is listed says nothing of an anchor's shared tensors.
    assert [line.split() for line in listing(out)[1:3]] == [
        ["0", "anchor", "none", "dense", read_manifest(out).sources[0].hash[:16]],
        ["1", "math", "none", "other_dense", read_manifest(out).sources[1].hash[:16]],
    ]


def other_tokenizer(path) -> None:
    add_tokenizer(path, ("<|pad|>", "<|endoftext|>", "three"))


def changed_since(path) -> None:
    seal(path, Manifest(family="olmo2", kind="dense"))
    edit_tensors(path, lambda tensors: tensors["model.norm.weight"].add_(1))


BAD = {
    "another tokenizer": (
        other_tokenizer,
        r"bad/tokenizer\.json: expected the same tokenizer as .*dense/tokenizer\.json",
    ),
    "no tokenizer": (
        lambda p: (p / "tokenizer.json").unlink(),
        r"bad/tokenizer\.json: expected the same tokenizer",
    ),
    "not its receipts": (
        changed_since,
        r"tensor 'model\.norm\.weight' changed since its manifest was written",
    ),
    "not finite": (
        lambda p: edit_tensors(p, lambda t: t["model.norm.weight"].fill_(float("nan"))),
        r"'model\.norm\.weight': expected finite values",
    ),
}


@pytest.mark.parametrize("make", [dense_merge, btx])
@pytest.mark.parametrize("spoil, message", BAD.values(), ids=BAD)
def test_a_bad_folder_is_refused(make, spoil, message, dense, other_dense, tmp_path):
    shutil.copytree(other_dense, tmp_path / "bad")
    spoil(tmp_path / "bad")
    with pytest.raises(BarError, match=message):
        make({"anchor": dense, "math": tmp_path / "bad"}, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


@pytest.mark.parametrize("make", [dense_merge, btx])
def test_bad_sets_are_refused(make, dense, other_dense, branched, tmp_path):
    wide = save_hf(tmp_path / "wide", intermediate_size=32)
    for given, message in (
        ({"anchor": dense}, "expected at least two models NAME=FOLDER, got anchor"),
        (
            {"anchor": dense, "math": branched},
            "branched: expected a dense folder, got one of 2 experts",
        ),
        ({"anchor": dense, "math": wide}, "wide: intermediate_size expected 24 as in .*dense, got 32"),
        (
            {"anchor": dense, "math": dense},
            "dense: expected one folder per model, got the same one as 'anchor' and as 'math'",
        ),
        ({"anchor": dense, "../x": other_dense}, r"model name expected letters, .*got '\.\./x'"),
    ):
        with pytest.raises(BarError, match=message):
            make(given, tmp_path / "out")
    both = {"anchor": dense, "math": other_dense}
    for shared, message in (
        (Combination(method="first"), "shared: 'first' expected in a merge of branched experts only"),
        (Combination(method="weighted", weights=(1.0,)), "shared: expected 2 weights"),
    ):
        with pytest.raises(BarError, match=message):
            make(both, tmp_path / "out", shared=shared)
    with pytest.raises(
        BarError,
        match="shared_from expected one of anchor, math and no other way to combine, got 'code' with me",
    ):
        btx(both, tmp_path / "out", shared_from="code")
    with pytest.raises(BarError, match="router init expected normal or zero, got 'domain'"):
        btx(both, tmp_path / "out", router_init="domain")
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]
