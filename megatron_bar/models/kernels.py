"""Element-wise work in one pass over memory: SwiGLU and RoPE, by Triton on a CUDA device, by torch elsewhere;
and products on a CPU.

SwiGLU and RoPE are computed in fp32 and round once, where torch's operations round each product; on a GPU,
which moves bytes more slowly than it multiplies, they take 2 to 3 times the bytes of these kernels. Triton
comes with torch's CUDA builds and is found at run time; its interpreter (TRITON_INTERPRET=1) runs the kernels
on a CPU, slowly.

Legend: b batch, n heads, s sequence, d head width, t tokens (any leading dimensions), f FFN columns, g = 2f
gate and up, o columns that come out and i that go in, 1 a dimension of one.
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


def few_sizes(count: int) -> int:
    """Returns ``count`` rounded up by at most an eighth, so that there are eight sizes from a power of 2 to
    the next: oneDNN makes its kernels anew for each number of rows, and keeps them."""
    unit = 1 << max(0, count.bit_length() - 4)
    return -(-count // unit) * unit


def usable(x: Tensor) -> bool:
    """Returns whether the kernels can work on ``x``."""
    return triton is not None and (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


class Matrix:
    """A matrix ``[o, i]`` for many products with few tokens each.

    On a CPU in fp32, or in bf16 where it has instructions for that, it is a copy that lies as oneDNN wants
    it. torch multiplies fp32 by MKL, which takes AVX-512 on Intel's processors alone: on AMD's, oneDNN is 2.4
    times as fast, and as exact. In bf16 torch takes oneDNN itself, which lays the matrix out anew for each
    product: of 64 tokens that is a fifth of it, of 16 two fifths.
    """

    def __init__(self, weight_oi: Tensor):
        weight_oi = weight_oi.detach()
        self.packed = torch.backends.mkldnn.is_available() and (
            weight_oi.dtype is torch.float32
            or (weight_oi.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
        # Laid out for about so many tokens as are sampled at once; it serves any number.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_oi, 64) if self.packed else weight_oi

    def __call__(self, x_ti: Tensor) -> Tensor:
        """Returns ``x_ti`` times the matrix, ``[t, o]``."""
        if not self.packed:
            return F.linear(x_ti, self.weight)
        return torch.ops.mkldnn._linear_pointwise.default(x_ti, self.weight, None, "none", [], "")


def swiglu(gate_up_tg: Tensor) -> Tensor:
    """Returns ``silu(gate) * up`` ``[t, f]``; the gate is the first half of ``gate_up_tg``."""
    if not usable(gate_up_tg):
        gate, up = gate_up_tg.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)
    gate_up_tg = gate_up_tg.contiguous()
    width = gate_up_tg.shape[-1] // 2
    out = gate_up_tg.new_empty(*gate_up_tg.shape[:-1], width)
    _launch(_swiglu_kernel, out.numel() // width, width, gate_up_tg, out)
    return out


def swiglu_backward(
    grad_tf: Tensor, gate_up_tg: Tensor, *, overwrite: bool = False, keep_act: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Returns the gradient of ``gate_up_tg`` from that of `swiglu`'s output, and that output once more if
    ``keep_act``.

    ``overwrite``: ``grad_tf`` may be used for something else.
    """
    if not usable(gate_up_tg):
        gate, up = gate_up_tg.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up_tg)
        act = F.silu(gate)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad_tf, act, out=grad_up)
        grad_act = torch.mul(grad_tf, up, out=grad_tf if overwrite else None)
        torch.ops.aten.silu_backward.grad_input(grad_act, gate, grad_input=grad_gate)
        return grad_gate_up, act.mul_(up) if keep_act else None
    grad_tf = grad_tf.contiguous()
    gate_up_tg = gate_up_tg.contiguous()
    width = grad_tf.shape[-1]
    grad_gate_up = torch.empty_like(gate_up_tg)
    # The kernel wants a tensor for the activations in any case; it writes them only if they are kept.
    act = torch.empty_like(grad_tf) if keep_act else grad_tf
    _launch(
        _swiglu_backward_kernel,
        grad_tf.numel() // width,
        width,
        grad_tf,
        gate_up_tg,
        grad_gate_up,
        act,
        keep_act,
    )
    return grad_gate_up, act if keep_act else None


def rotate(x_bnsd: Tensor, cos_b1sd: Tensor, sin_b1sd: Tensor, way: int) -> Tensor:
    """Turns ``x_bnsd`` by RoPE's angles, backwards where ``way`` is -1.

    Cosines and sines are fp32, both halves of each the same. The result lies in memory as ``[b, s, n, d]``,
    as attention takes it.
    """
    b, n, s, d = x_bnsd.shape
    out = x_bnsd.new_empty(b, s, n, d).transpose(1, 2)
    half = triton.next_power_of_2(d // 2)
    heads = max(1, min(triton.next_power_of_2(n), BLOCK // half))
    grid = (b * s, triton.cdiv(n, heads))
    _rotate_kernel[grid](
        x_bnsd,
        cos_b1sd.contiguous(),
        sin_b1sd.contiguous(),
        out,
        s,
        n,
        *x_bnsd.stride(),
        *out.stride(),
        way,
        D=d,
        HALF=half,
        HEADS=heads,
    )
    return out


def _launch(kernel, rows: int, width: int, *tensors) -> None:
    if rows:  # a grid without programs is an error; an expert may have no token
        kernel[(rows, triton.cdiv(width, BLOCK))](*tensors, width, BLOCK=BLOCK)


if triton is not None:

    @triton.jit
    def _swiglu_kernel(gate_up, out, width, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)  # row * width may exceed 32 bits
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        here = at < width
        gate = tl.load(gate_up + row * 2 * width + at, mask=here).to(tl.float32)
        up = tl.load(gate_up + row * 2 * width + width + at, mask=here).to(tl.float32)
        tl.store(out + row * width + at, gate * tl.sigmoid(gate) * up, mask=here)

    @triton.jit
    def _swiglu_backward_kernel(
        grad, gate_up, grad_gate_up, act, keep_act: tl.constexpr, width, BLOCK: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        here = at < width
        gate = tl.load(gate_up + row * 2 * width + at, mask=here).to(tl.float32)
        up = tl.load(gate_up + row * 2 * width + width + at, mask=here).to(tl.float32)
        g = tl.load(grad + row * width + at, mask=here).to(tl.float32)
        # The derivative of silu is sigmoid + silu (1 - sigmoid).
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        tl.store(grad_gate_up + row * 2 * width + at, g * up * (sigmoid + silu * (1 - sigmoid)), mask=here)
        tl.store(grad_gate_up + row * 2 * width + width + at, g * silu, mask=here)
        if keep_act:
            tl.store(act + row * width + at, silu * up, mask=here)

    @triton.jit
    def _rotate_kernel(
        x,
        cos,
        sin,
        out,
        s,
        n,
        xb,
        xn,
        xs,
        xd,
        ob,
        on,
        os,
        od,
        way,
        D: tl.constexpr,
        HALF: tl.constexpr,
        HEADS: tl.constexpr,
    ):
        # xb to xd and ob to od: strides. A program turns one token's HEADS heads; HALF is a power of 2, d / 2
        # need not be.
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
