"""Norms and RoPE, whose gradients are written by hand: against torch's own operations in fp64, on whatever
device is there."""

import pytest
import torch
import torch.nn.functional as F

from megatron_bar.models.attention import _Rotated
from megatron_bar.models.layers import _Normalised
from megatron_bar.parallel import cpu

TOKENS, HEADS, WIDTH = (5, 3), 2, 8
LIMIT = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
DEVICES = ["cpu", pytest.param("device", marks=pytest.mark.gpu)]


def device(name: str) -> torch.device:
    return torch.device("cpu") if name == "cpu" else cpu.device()


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(
        (found.detach().double().cpu() - expected.detach()).abs().max() / expected.detach().abs().max()
    )


def both(ours, theirs, given: list[torch.Tensor], where: torch.device, dtype: torch.dtype) -> list[float]:
    """Errors of the output and of every gradient over its largest value; ``given`` in fp64."""
    rounded = [t.to(dtype) for t in given]
    here = [t.double().requires_grad_() for t in rounded]
    there = [t.to(where).requires_grad_() for t in rounded]
    expected, found = theirs(*here), ours(*there)
    assert found.dtype == dtype
    direction = torch.randn(
        expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).to(dtype)
    expected.backward(direction.double())
    found.backward(direction.to(where))
    return [worst(found, expected), *(worst(a.grad, b.grad) for a, b in zip(there, here, strict=True))]


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0], ids=["near epsilon", "one", "large"])
def test_a_norm_is_torchs(where, dtype, scale):
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(*TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    found = both(
        lambda x, w: _Normalised.apply(x, w, 1e-6, WIDTH, None),
        lambda x, w: F.rms_norm(x, (WIDTH,), w, 1e-6),
        [x, weight],
        device(where),
        dtype,
    )
    assert max(found) <= LIMIT[dtype], found


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["x", "weight"])
def test_what_is_frozen_gets_no_gradient(needs):
    x, weight = torch.randn(*TOKENS, WIDTH), torch.randn(WIDTH)
    for tensor, wanted in zip((x, weight), needs, strict=True):
        tensor.requires_grad_(wanted)
    _Normalised.apply(x, weight, 1e-6, WIDTH, None).sum().backward()
    assert [tensor.grad is not None for tensor in (x, weight)] == list(needs)


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("dtype", LIMIT)
def test_rope_is_the_formula(where, dtype):
    """Of transformers: x cos + rotate_half(x) sin."""
    from transformers.models.olmo2.modeling_olmo2 import rotate_half

    x = torch.randn(2, HEADS, 5, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    angles = torch.randn(2, 1, 5, WIDTH // 2, generator=torch.Generator().manual_seed(3)).repeat(1, 1, 1, 2)
    cos, sin, place = angles.cos(), angles.sin(), device(where)
    found = both(
        lambda x: _Rotated.apply(x, cos.to(place), sin.to(place)),
        lambda x: x * cos.double() + rotate_half(x) * sin.double(),
        [x],
        place,
        dtype,
    )
    assert max(found) <= LIMIT[dtype], found
