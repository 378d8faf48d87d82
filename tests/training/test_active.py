"""Stages with fewer active experts, a dense router gradient, and steps in which the domain expert is
alone."""

import json
from dataclasses import replace

import pytest
import torch
from distributed import run_distributed
from folders import load_tensors, save_hf
from test_stages import stream

from megatron_bar.errors import BarError
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.training import flops
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import POLICIES
from megatron_bar.weights.manifest import Manifest, read_manifest

LAYOUTS = {
    "tp1": (ParallelConfig(), 1),
    "tp2": (ParallelConfig(tensor=2), 2),
    "ep2": (ParallelConfig(expert=2), 2),
}
ROUTE = Stage(
    name="route", policy="route", optim=OptimConfig(lr=1e-2), sequence=16, batch=4, router_z_loss=1e-3
)


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("five"), experts=5, vocab_size=61, intermediate_size=48, seed=2)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("two"), experts=2, vocab_size=61, seed=3)


def train(source, out, stage: Stage, steps: int) -> list[dict]:
    trainer = Trainer(source, stage, steps=steps)
    batch, values = stream(trainer), []
    for _ in range(steps):
        values.append(trainer.step(next(batch), LanguageModelling()) | {"flops": trainer.meter.spent.flops})
    manifest = Manifest(family="flex_olmo", kind="merged")
    trainer.save(out, manifest=lambda *_: manifest)
    return values


@pytest.mark.parametrize("gradient", ["selected", "dense"])
@pytest.mark.parametrize("active", [2, (5, 2), "sampled"], ids=str)
def test_a_step_is_the_same_on_every_layout(active, gradient, five, tmp_path):
    found = {}
    for name, (layout, processes) in LAYOUTS.items():
        stage = replace(ROUTE, active_experts=active, router_gradient=gradient, parallel=layout)
        values = run_distributed(train, processes, five, tmp_path / name, stage, 3)[0]
        found[name] = values, load_tensors(tmp_path / name)
    expected, tensors = found["tp1"]
    for values, others in found.values():
        for one, other in zip(expected, values, strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
            assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        for name, tensor in tensors.items():
            torch.testing.assert_close(others[name], tensor, atol=2e-4, rtol=1e-4)


def test_the_dense_gradient_is_another_one_from_the_same_loss(five, tmp_path):
    stages = {
        gradient: replace(ROUTE, active_experts=2, router_gradient=gradient)
        for gradient in ("selected", "dense")
    }
    selected, dense = (
        run_distributed(train, 1, five, tmp_path / name, stage, 1)[0][0] for name, stage in stages.items()
    )
    assert dense["loss"] == pytest.approx(selected["loss"], rel=1e-6)
    assert dense["grad_norm"] != pytest.approx(selected["grad_norm"], rel=1e-2)
    shape = Folder.open(five).config.with_active(2)
    experts = flops.forward(shape.with_active(5))(tokens=1, pairs=0, heads=0) - flops.forward(shape)(
        tokens=1, pairs=0, heads=0
    )
    assert dense["flops"] - selected["flops"] == pytest.approx(experts * dense["tokens"])


@pytest.mark.parametrize(
    "active, k, layers", [(2, 2, ()), ((5, 2), 5, (5, 2)), ("sampled", 5, ()), (None, 5, ())], ids=str
)
def test_the_folder_says_what_its_router_was_trained_for(active, k, layers, five, tmp_path):
    run_distributed(train, 1, five, tmp_path / "out", replace(ROUTE, active_experts=active), 1)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["num_experts_per_tok"], tuple(config.get("num_experts_per_layer", ()))) == (k, layers)
    assert read_manifest(tmp_path / "out").experts_per_layer == layers


def test_sampled_numbers_are_of_the_step_alone_and_are_2_to_all(five):
    shape, stage = Folder.open(five).config, replace(ROUTE, active_experts="sampled")
    drawn = [stage.active(shape, step) for step in range(200)]
    assert {layers[0] for layers in drawn} == {2, 3, 4, 5} and all(len(set(layers)) == 1 for layers in drawn)
    assert drawn == [stage.active(shape, step) for step in range(200)]
    assert drawn != [replace(stage, seed=1).active(shape, step) for step in range(200)]


def alone_and_not(source) -> tuple[list[float], list[bool]]:
    """Losses of steps that learn next to nothing, half of them with the domain expert alone."""
    stage = replace(ROUTE, policy="midtrain", alone=0.5, optim=OptimConfig(lr=1e-12), router_z_loss=0.0)
    trainer = Trainer(source, stage, steps=12)
    first = next(stream(trainer))
    losses, alone = [], []
    for step in range(12):
        alone.append(stage.is_alone(step))
        losses.append(trainer.step(first, LanguageModelling())["loss"])
    return losses, alone


def test_in_its_share_of_the_steps_the_expert_is_the_dense_model(two, tmp_path):
    """Which is a folder whose FFN is the expert's, in transformers."""
    import transformers

    losses, alone = run_distributed(alone_and_not, 1, two)[0]
    assert 2 <= sum(alone) <= 10
    model = transformers.AutoModelForCausalLM.from_pretrained(two).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()
    batches = run_distributed(first_batch, 1, two)[0]

    def loss(weights) -> float:
        total = count = 0.0
        for ids, labels, documents, positions in batches:
            for document in documents.unique().tolist():
                here = documents[0] == document
                logits = weights(ids[:, here], positions[:, here])
                nll = torch.nn.functional.cross_entropy(
                    logits[0], labels[0, here].clamp(min=0), reduction="none"
                )
                total += float(nll[labels[0, here] >= 0].sum())
                count += int((labels[0, here] >= 0).sum())
        return total / count

    @torch.no_grad()
    def second_alone(ids, positions):
        # Both experts the same, at 1/2 each: the domain expert alone at weight 1.
        for layer in model.model.layers:
            experts = layer.mlp.experts
            for matrices in (experts.gate_up_proj, experts.down_proj):
                matrices[0] = matrices[1]
        return model(ids).logits

    expected = loss(second_alone)
    for value, is_alone in zip(losses, alone, strict=True):
        assert (value == pytest.approx(expected, rel=1e-5)) == is_alone


def first_batch(source) -> list[tuple]:
    trainer = Trainer(source, replace(ROUTE, policy="midtrain"), steps=1)
    return [(b.ids, b.labels, b.documents, b.positions) for b in next(stream(trainer))]


@pytest.mark.parametrize("lr", [1e-2])
def test_alone_or_not_nothing_frozen_moves(lr, two, tmp_path):
    stage = replace(ROUTE, name="sft", policy="sft", alone=0.5, optim=OptimConfig(lr=lr))
    run_distributed(train, 1, two, tmp_path / "out", stage, 6)
    before, after = load_tensors(two), load_tensors(tmp_path / "out")
    for name, tensor in before.items():
        if POLICIES["sft"].freezes(name):
            assert torch.equal(tensor, after[name]), name
        elif ".gate." in name:
            assert torch.equal(tensor[0], after[name][0])
        else:
            assert not torch.equal(tensor, after[name]), name


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"active_experts": 0}, "^stage route: active experts expected from 1 to 5, got 0"),
        ({"active_experts": 6}, "^stage route: active experts expected from 1 to 5, got 6"),
        (
            {"active_experts": (5, 2, 2)},
            "stage route: active experts expected one number or 2, one per layer, got 3",
        ),
        (
            {"active_experts": 1},
            "stage route: with 1 active expert the norm behind the block cancels its weight.* got 1",
        ),
        ({"active_experts": (5, 1)}, "to train a router expected at least 2, got 5,1"),
        ({"active_experts": 1, "router_gradient": "dense"}, "to train a router expected at least 2, got 1"),
        ({"alone": 0.3}, "stage route: alone expected an anchor and one expert, got 5 experts"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused(changes, message, five):
    with pytest.raises(BarError, match=message):
        replace(ROUTE, **changes).check(Folder.open(five).config, 1)


def test_a_folder_with_one_active_expert_is_not_routed(five):
    with pytest.raises(BarError, match="to train a router expected at least 2, got 1,1"):
        ROUTE.check(Folder.open(five).config.with_active(1), 1)


def test_options_of_experts_are_refused_of_a_dense_model_and_of_a_normalised_router(five):
    shape = Folder.open(five).config
    with pytest.raises(BarError, match="expect a model with experts, got a dense one"):
        replace(ROUTE, policy="dense_all", alone=0.1).check(
            replace(shape, num_experts=0, experts_per_token=0), 1
        )
    with pytest.raises(
        BarError, match="dense router_gradient expected a model with norm_topk_prob false, got true"
    ):
        replace(ROUTE, router_gradient="dense", active_experts=2).check(
            replace(shape, norm_topk_prob=True), 1
        )
    with pytest.raises(BarError, match="alone must be a share of the steps, from 0 to below 1, got 1"):
        replace(ROUTE, alone=1)
