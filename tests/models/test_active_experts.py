"""Fewer active experts, of all layers or layer by layer: against transformers, a formula, and a finite
difference."""

import json
from dataclasses import replace

import pytest
import torch
from distributed import run_distributed
from folders import edit_json, save_hf
from test_moe import formula, inputs

from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import load_model
from megatron_bar.models.moe import WeightedFFN
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hf_config import Active, ModelConfig

IDS = torch.randint(1, 19, (2, 12), generator=torch.Generator().manual_seed(1))
LAYERS = 3
ROWS = torch.tensor([0, 3, 4])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_hf(
        tmp_path_factory.mktemp("five"), experts=5, num_hidden_layers=LAYERS, intermediate_size=48, seed=4
    )


# One expert for some of the tokens.
def masked(given: list[torch.Tensor]) -> list[torch.Tensor]:
    """With weight 0 for the tokens that are not in ROWS."""
    keep = torch.zeros_like(given[3]).index_fill(0, ROWS, 1.0)
    return [*given[:3], given[3] * keep, given[4]]


def sparse(x, gate_up, down, weight, total, dense=False):
    return WeightedFFN.apply(x, gate_up, down, weight, None if total is None else total * 1, ROWS, dense)


@pytest.mark.parametrize("total", [False, True])
def test_of_some_rows_an_expert_is_its_formula_with_the_others_weighted_zero(total):
    results = []
    for way in (lambda given: formula(*masked(given)), lambda given: sparse(*given)):
        given = [t.requires_grad_() for t in inputs()]
        if not total:
            given[4] = torch.zeros_like(given[4]) if not results else None
        out = way(given)
        out.backward(torch.arange(out.numel(), dtype=out.dtype).view_as(out))
        results.append([out.detach(), *(t.grad for t in given[: 4 + total])])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_dense_gradient_is_the_formulas_and_moves_nothing_else():
    def straight_through(given):
        keep = torch.zeros_like(given[3]).index_fill(0, ROWS, 1.0)
        return formula(*given[:3], given[3] * keep + (1 - keep) * (given[3] - given[3].detach()), given[4])

    def ours(given):
        keep = torch.zeros_like(given[3]).index_fill(0, ROWS, 1.0)
        return sparse(
            *given[:3], torch.where(keep > 0, given[3], given[3] - given[3].detach()), given[4], dense=True
        )

    results = []
    for way in (straight_through, ours):
        given = [t.requires_grad_() for t in inputs()]
        out = way(given)
        out.backward(torch.arange(out.numel(), dtype=out.dtype).view_as(out))
        results.append([out.detach(), *(t.grad for t in given)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert results[1][4].abs().min() > 0


def test_a_dense_gradient_costs_the_forward_products_of_the_other_rows_and_no_more():
    """By torch's own count; the experts are frozen, as in router training."""
    from torch.utils.flop_counter import FlopCounterMode

    def flops(dense: bool) -> int:
        x, gate_up, down, weight, _ = inputs()
        with FlopCounterMode(display=False) as counter:
            sparse(
                x.requires_grad_(), gate_up, down, weight.requires_grad_(), None, dense=dense
            ).sum().backward()
        return counter.get_total_flops()

    x, gate_up, down, *_ = inputs()
    others = (len(x) - len(ROWS)) * 2 * (gate_up.numel() + down.numel())
    assert flops(dense=True) - flops(dense=False) == others


# Whole models against transformers.
@torch.no_grad()
def theirs(folder, active: tuple[int, ...]) -> torch.Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for layer, k in zip(model.model.layers, active, strict=True):
        layer.mlp.gate.top_k = k
    return model(IDS).logits


@torch.no_grad()
def ours(folder, layout: ParallelConfig, active: Active | None) -> torch.Tensor | None:
    model = load_model(folder, layout, active_experts=active)
    ids = IDS.reshape(1, -1).repeat(1, 1)
    documents = torch.arange(len(IDS)).repeat_interleave(IDS.shape[1])[None]
    positions = torch.arange(IDS.shape[1]).repeat(len(IDS))[None]
    return model(ids, positions, documents=documents).view(*IDS.shape, -1)


@pytest.mark.parametrize("tensor, expert, processes", [(1, 1, 1), (2, 1, 2), (1, 2, 2), (2, 2, 4)])
@pytest.mark.parametrize("active", [1, 2, 4, 5, (5, 2, 2), (1, 3, 2)], ids=str)
def test_logits_are_transformers(active, tensor, expert, processes, folder):
    expected = theirs(folder, active if isinstance(active, tuple) else (active,) * LAYERS)
    layout = ParallelConfig(tensor=tensor, expert=expert)
    found = run_distributed(ours, processes, folder, layout, active)[0]
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


def test_a_folder_that_says_it_by_layer_is_read_so(folder, tmp_path):
    import shutil

    import transformers

    path = shutil.copytree(folder, tmp_path / "by_layer")
    edit_json(path / "config.json", num_experts_per_tok=4, num_experts_per_layer=[4, 2, 3])
    opened = Folder.open(path)
    assert (opened.config.experts_per_token, opened.config.active) == (4, (4, 2, 3))
    assert ModelConfig.from_hf(opened.config.to_hf()) == opened.config
    found = run_distributed(ours, 1, path, ParallelConfig(), None)[0]
    expected = theirs(folder, (4, 2, 3))
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    # transformers reads the folder, with the global number.
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert model.config.num_experts_per_tok == 4 and {
        layer.mlp.gate.top_k for layer in model.model.layers
    } == {4}
    assert json.loads((path / "config.json").read_text())["num_experts_per_layer"] == [4, 2, 3]


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"num_experts_per_layer": [4, 2]},
            r"config.json: num_experts_per_layer must be 3 numbers from 1, got \[4, 2\]",
        ),
        ({"num_experts_per_layer": [4, 0, 1]}, r"must be 3 numbers from 1, got \[4, 0, 1\]"),
        ({"num_experts_per_layer": [4, True, 1]}, r"must be 3 numbers from 1, got \[4, True, 1\]"),
        ({"num_experts_per_layer": 4}, r"num_experts_per_layer must be a list of numbers, got 4"),
        (
            {"num_experts_per_layer": [3, 2, 2]},
            r"num_experts_per_tok must be 3, the most of num_experts_per_layer, got 5",
        ),
        ({"num_experts_per_layer": [6, 2, 2]}, r"num_experts_per_tok must be 6, the most of"),
    ],
    ids=lambda value: str(value),
)
def test_a_folder_that_says_it_wrongly_is_refused(changes, message, folder, tmp_path):
    import shutil

    path = shutil.copytree(folder, tmp_path / "wrong")
    edit_json(path / "config.json", **changes)
    with pytest.raises(BarError, match=message):
        Folder.open(path)


@pytest.mark.parametrize(
    "active, message",
    [
        (0, "active experts expected from 1 to 5, got 0"),
        (6, "active experts expected from 1 to 5, got 6"),
        ((5, 2), "active experts expected one number or 3, one per layer, got 2"),
        ((5, 0, 2), "active experts expected from 1 to 5, got 0"),
    ],
    ids=str,
)
def test_what_the_model_cannot_do_is_refused(active, message, folder):
    with pytest.raises(BarError, match=f"{folder}: {message}"):
        Folder.open(folder).with_active(active)


# The dense router gradient of a whole model.
def gradient_and_difference(folder) -> list[tuple[float, float]]:
    """Of every router: the gradient's norm, and the slope along it by a central difference.

    What is differentiated is the loss with the chosen experts' weights p, and the others' p - p0, where the
    choice and p0 are those of the starting point: there it is the loss itself.
    """
    from megatron_bar.models.build import build_model
    from megatron_bar.models.shards import load_folder
    from megatron_bar.parallel.state import set_layout

    opened = Folder.open(folder)
    set_layout(ParallelConfig(), opened.config, seed=0)
    model = build_model(opened.config, ParallelConfig())
    load_folder(model, opened)
    model.requires_grad_(False)
    routers = model.routers()
    for router in routers:
        router.weight.requires_grad_()
    model.route(replace(model.routing, active=(2,) * len(routers), dense_gradient=True))
    positions = torch.arange(IDS.shape[1]).expand(IDS.shape)

    def loss() -> torch.Tensor:
        return model(IDS, positions, labels=IDS.roll(-1, 1))[0].double().sum()

    loss().backward()
    gradients = [router.weight.grad.clone() for router in routers]
    start = {}

    def surrogate(router):
        def forward(x, padding_mask=None):
            probs = torch.softmax(torch.nn.functional.linear(x, router.weight).flatten(0, -2).float(), -1)
            if router not in start:
                chosen = torch.zeros_like(probs, dtype=torch.bool).scatter(-1, probs.topk(2).indices, True)
                start[router] = probs.clone(), chosen
            first, chosen = start[router]
            return torch.where(chosen, probs, probs - first), torch.ones_like(chosen)

        return forward

    found = []
    with torch.no_grad():
        at_start = float(loss())
        model.route(replace(model.routing, active=(5,) * len(routers)))  # every expert's output is wanted
        for router in routers:
            router.forward = surrogate(router)
        assert abs(float(loss()) - at_start) <= 1e-5 * at_start
        for router, gradient in zip(routers, gradients, strict=True):
            direction, values = gradient / gradient.norm(), []
            step = 1e-3 * float(router.weight.norm())
            for sign in (1, -1):
                router.weight.add_(direction, alpha=sign * step)
                values.append(float(loss()))
                router.weight.add_(direction, alpha=-sign * step)
            found.append((float(gradient.norm()), (values[0] - values[1]) / (2 * step)))
    return found


def test_the_dense_router_gradient_is_the_finite_difference(tmp_path):
    two = save_hf(tmp_path / "two", experts=5, num_hidden_layers=2, seed=6)
    for gradient, difference in run_distributed(gradient_and_difference, 1, two)[0]:
        assert gradient > 1e-3
        assert difference == pytest.approx(gradient, rel=1e-3)
