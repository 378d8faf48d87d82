"""SwiGLU and RoPE against their formulas in fp64: by torch's operations, by Triton on a GPU, by its
interpreter elsewhere."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from megatron_bar.models import kernels
from megatron_bar.parallel import cpu

LIMIT = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
DEVICES = ["cpu", pytest.param("device", marks=pytest.mark.gpu)]


def place(name: str) -> torch.device:
    return torch.device("cpu") if name == "cpu" else cpu.device()


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double().cpu() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("size", [(3, 5), (2, 3, 1030)], ids=["small", "over a block"])
@pytest.mark.parametrize("keep", [True, False])
def test_swiglu_and_its_gradient_are_the_formula(where, dtype, size, keep):
    generator = torch.Generator().manual_seed(0)
    *rows, width = size
    gate_up = (3 * torch.randn(*rows, 2 * width, generator=generator)).to(dtype)
    grad = torch.randn(size, generator=generator).to(dtype)
    exact = gate_up.double().requires_grad_()
    gate, up = exact.chunk(2, dim=-1)
    expected = F.silu(gate) * up
    expected.backward(grad.double())
    here, given = gate_up.to(place(where)), grad.to(place(where))
    assert worst(kernels.swiglu(here), expected.detach()) <= LIMIT[dtype]
    found, act = kernels.swiglu_backward(given, here, keep_act=keep)
    assert worst(found, exact.grad) <= LIMIT[dtype]
    assert torch.equal(given.cpu(), grad)
    assert (act is not None) == keep
    assert act is None or worst(act, expected.detach()) <= LIMIT[dtype]


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("heads, width", [(2, 8), (3, 6), (40, 128)])
@pytest.mark.parametrize("way", [1, -1])
def test_rope_turns_by_the_angle_and_back(where, dtype, heads, width, way):
    from megatron_bar.models.attention import rotate

    b, s = 2, 5
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(s, b, heads, width, generator=generator).to(dtype)
    angles = torch.randn(b, 1, s, width // 2, generator=generator).repeat(1, 1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    laid = x.transpose(0, 1).transpose(1, 2)  # [b, n, s, d], as the attention core has it
    left, right = laid.double().chunk(2, dim=-1)
    expected = laid.double() * cos.double() + way * torch.cat((-right, left), -1) * sin.double()
    found = rotate(laid.to(place(where)), cos.to(place(where)), sin.to(place(where)), way)
    assert found.dtype == dtype
    assert worst(found, expected) <= LIMIT[dtype]


def test_the_kernels_run_in_tritons_interpreter():
    """What is marked gpu above, on the CPU: a GPU never finds a typing error."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("they run on the GPU itself")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", __file__]
    ran = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
