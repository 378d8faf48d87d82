"""The all-experts path: one expert's product against its formula, and the layer against Megatron's dispatcher
at every layout."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from distributed import run_distributed
from folders import save_hf

from megatron_bar.models.build import build_model
from megatron_bar.models.moe import WeightedFFN
from megatron_bar.models.shards import load_folder
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import ParallelConfig, set_layout
from megatron_bar.weights.folder import Folder

TOKENS, HIDDEN, WIDTH = 5, 4, 3


def inputs() -> list[torch.Tensor]:
    """x, gate_up, down, weight and total, in fp64."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((TOKENS, HIDDEN), (2 * WIDTH, HIDDEN), (HIDDEN, WIDTH), (TOKENS, 1), (TOKENS, HIDDEN))
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


def formula(x, gate_up, down, weight, total):
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return total + weight * F.linear(F.silu(gate) * up, down)


def ours(x, gate_up, down, weight, total):
    return WeightedFFN.apply(x, gate_up, down, weight, total * 1)  # it is overwritten


@pytest.mark.parametrize("needs", list(product((False, True), repeat=5))[1:])
def test_an_expert_is_its_formula_and_what_is_frozen_gets_no_gradient(needs):
    results = []
    for way in (formula, ours):
        given = [t.requires_grad_(n) for t, n in zip(inputs(), needs, strict=True)]
        out = way(*given)
        out.backward(torch.arange(out.numel(), dtype=out.dtype).view_as(out))
        results.append((out.detach(), [t.grad for t in given]))
    (wanted, gradients), (out, found) = results
    torch.testing.assert_close(out, wanted)
    for n, gradient, expected in zip(needs, found, gradients, strict=True):
        assert (gradient is not None) == n
        torch.testing.assert_close(gradient, expected)


def test_the_gradient_is_the_finite_difference():
    assert torch.autograd.gradcheck(ours, [t.requires_grad_() for t in inputs()])


def test_a_frozen_expert_computes_no_gradient_of_its_matrices():
    """By torch's own count: forward and, for the gradient of x, the same again."""
    from torch.utils.flop_counter import FlopCounterMode

    def flops(trains: bool) -> int:
        x, gate_up, down, weight, _ = inputs()
        given = [
            x.requires_grad_(),
            gate_up.requires_grad_(trains),
            down.requires_grad_(trains),
            weight.requires_grad_(),
            None,
        ]
        with FlopCounterMode(display=False) as counter:
            WeightedFFN.apply(*given).sum().backward()
        return counter.get_total_flops()

    forward = 2 * TOKENS * HIDDEN * WIDTH * 3
    assert (flops(trains=False), flops(trains=True)) == (2 * forward, 3 * forward)


def both_ways(folder, layout: ParallelConfig) -> float:
    """The largest difference of output and gradients, over the largest value of each."""
    from megatron.core.transformer.moe.moe_layer import MoELayer

    opened = Folder.open(folder)
    set_layout(layout, opened.config, seed=0)
    model = build_model(opened.config, layout)
    load_folder(model, opened)
    layer, found = model.decoder.layers[1].mlp, []
    shape = (8 // layout.tensor, 2, opened.config.hidden_size)
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(torch.distributed.get_rank()))
    for forward in (layer, lambda x: MoELayer.forward(layer, x)):
        x = tokens.clone().requires_grad_()
        out = forward(x)[0]
        out.backward(tokens.sin())
        found.append([out.detach(), x.grad, *(param.grad.clone() for param in layer.parameters())])
        layer.zero_grad()
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    "experts, tensor, expert, processes",
    [(2, 1, 1, 1), (5, 1, 1, 1), (5, 2, 1, 2), (2, 1, 2, 2), (5, 1, 2, 2), (5, 2, 2, 4), (5, 1, 4, 4)],
)
def test_the_layer_equals_megatrons(experts, tensor, expert, processes, tmp_path):
    folder = save_hf(tmp_path / "model", seed=experts, experts=experts, intermediate_size=48)
    for worst in run_distributed(both_ways, processes, folder, ParallelConfig(tensor=tensor, expert=expert)):
        assert worst <= 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("few", [False, True])
def test_on_a_gpu_an_expert_is_its_formula(dtype, limit, few):
    """At a size at which kernels differ; the formula in fp64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((512, 256), (2 * 192, 256), (256, 192), (512, 1), (512, 256))
    given = [torch.randn(size, generator=generator, dtype=torch.float64) / size[-1] ** 0.5 for size in sizes]
    rows = torch.arange(0, 512, 3) if few else None
    if few:
        given[3] = given[3] * torch.zeros(512, 1, dtype=torch.float64).index_fill(0, rows, 1.0)
    here = [t.requires_grad_() for t in given]
    there = [t.detach().to(cpu.device(), dtype).requires_grad_() for t in given]
    expected = formula(*here)
    found = WeightedFFN.apply(*there[:4], there[4] * 1, None if rows is None else rows.to(cpu.device()))
    expected.backward(expected.detach())
    found.backward(expected.detach().to(found))
    assert worst(found, expected) <= limit
    for index, (a, b) in enumerate(zip(there, here, strict=True)):
        gradient = b.grad
        if index == 3 and few:  # the weight of a token that is not in rows has none
            gradient = gradient * torch.zeros(512, 1, dtype=torch.float64).index_fill(0, rows, 1.0)
        assert worst(a.grad, gradient) <= limit


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(
        (found.detach().double().cpu() - expected.detach()).abs().max() / expected.detach().abs().max()
    )
