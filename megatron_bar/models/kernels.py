"""Element-wise work in one pass over memory: SwiGLU and RoPE, by Triton on a CUDA device, by torch's operations elsewhere.

Both compute in fp32 and round once, where torch's operations round each product; on a GPU, which moves bytes more slowly than it
multiplies, they take 2 to 3 times the bytes of these kernels. Triton comes with torch's CUDA builds and is found at run time; its
interpreter (TRITON_INTERPRET=1) runs the kernels on a CPU, slowly.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    from triton import language as tl
except ImportError:
    triton = None

BLOCK = 1024
"""Values of a row that one program of a kernel takes."""


def usable(x: Tensor) -> bool:
    """Whether the kernels can work on ``x``."""
    return triton is not None and (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up``: ``[..., 2f]``, the gate first -> ``[..., f]``."""
    if not usable(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)
    gate_up, width = gate_up.contiguous(), gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], width)
    _launch(_swiglu_kernel, out.numel() // width, width, gate_up, out)
    return out


def swiglu_backward(
    grad: Tensor, gate_up: Tensor, *, overwrite: bool = False, keep_act: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The gradient of ``gate_up`` ``[..., 2f]`` from that of `swiglu`'s output ``[..., f]``, and that output once more if
    ``keep_act``. ``overwrite``: ``grad`` may be used for something else."""
    if not usable(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up, act = torch.empty_like(gate_up), F.silu(gate)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, act, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(torch.mul(grad, up, out=grad if overwrite else None), gate, grad_input=grad_gate)
        return grad_gate_up, act.mul_(up) if keep_act else None
    grad, gate_up, width = grad.contiguous(), gate_up.contiguous(), grad.shape[-1]
    grad_gate_up, act = torch.empty_like(gate_up), torch.empty_like(grad) if keep_act else grad
    _launch(_swiglu_backward_kernel, grad.numel() // width, width, grad, gate_up, grad_gate_up, act, keep_act)
    return grad_gate_up, act if keep_act else None


def rotate(x: Tensor, cos: Tensor, sin: Tensor, way: int) -> Tensor:
    """RoPE: ``x`` ``[b, n, s, d]`` turned by the angles of ``cos`` and ``sin`` ``[b, 1, s, d]``, fp32, of which both halves are
    the same; backwards where ``way`` is -1. The result lies in memory as ``[b, s, n, d]``, as attention takes it."""
    b, n, s, d = x.shape
    out = x.new_empty(b, s, n, d).transpose(1, 2)
    cos, sin = cos.contiguous(), sin.contiguous()
    half = triton.next_power_of_2(d // 2)
    heads = max(1, min(triton.next_power_of_2(n), BLOCK // half))
    grid = (b * s, triton.cdiv(n, heads))
    _rotate_kernel[grid](x, cos, sin, out, s, n, *x.stride(), *out.stride(), way, D=d, HALF=half, HEADS=heads)
    return out


def _launch(kernel, rows: int, width: int, *tensors) -> None:
    if rows:
        kernel[(rows, triton.cdiv(width, BLOCK))](*tensors, width, BLOCK=BLOCK)


if triton is not None:

    @triton.jit
    def _swiglu_kernel(gate_up, out, width, BLOCK: tl.constexpr):
        row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        here = at < width
        gate = tl.load(gate_up + row * 2 * width + at, mask=here).to(tl.float32)
        up = tl.load(gate_up + row * 2 * width + width + at, mask=here).to(tl.float32)
        tl.store(out + row * width + at, gate * tl.sigmoid(gate) * up, mask=here)

    @triton.jit
    def _swiglu_backward_kernel(grad, gate_up, grad_gate_up, act, keep_act: tl.constexpr, width, BLOCK: tl.constexpr):
        row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        here = at < width
        gate = tl.load(gate_up + row * 2 * width + at, mask=here).to(tl.float32)
        up = tl.load(gate_up + row * 2 * width + width + at, mask=here).to(tl.float32)
        g = tl.load(grad + row * width + at, mask=here).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        tl.store(grad_gate_up + row * 2 * width + at, g * up * (sigmoid + silu * (1 - sigmoid)), mask=here)
        tl.store(grad_gate_up + row * 2 * width + width + at, g * silu, mask=here)
        if keep_act:
            tl.store(act + row * width + at, silu * up, mask=here)

    @triton.jit
    def _rotate_kernel(
        x, cos, sin, out, s, n, xb, xn, xs, xd, ob, on, os, od, way, D: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr
    ):
        token = tl.program_id(0).to(tl.int64)
        head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
        at = tl.arange(0, HALF)[None, :]
        here = (head < n) & (at < D // 2)
        c = tl.load(cos + token * D + at, mask=at < D // 2)
        w = tl.load(sin + token * D + at, mask=at < D // 2) * way
        start = x + token // s * xb + token % s * xs + head * xn
        left = tl.load(start + at * xd, mask=here).to(tl.float32)
        right = tl.load(start + (at + D // 2) * xd, mask=here).to(tl.float32)
        end = out + token // s * ob + token % s * os + head * on
        tl.store(end + at * od, left * c - right * w, mask=here)
        tl.store(end + (at + D // 2) * od, right * c + left * w, mask=here)
