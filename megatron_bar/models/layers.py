"""What the families' blocks have and Megatron-Core lacks: norms and residuals (their attention core:
attention.py).

Legend: s sequence, b batch, h hidden (of q and k: this rank's part of it), n heads of this rank, d head
width, f FFN columns of this rank, g = 2f gate and up, 1 a single column. Source: transformers models/olmo2,
models/llama and models/qwen3; OLMo 2 (arXiv 2501.00656) section 3 for norms behind blocks and QK-norm over
the full width.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_bar.models import kernels as fused


class _Normalised(torch.autograd.Function):
    """``w * x / rms(x)``, of which the backward pass keeps ``x`` as it is and a number per token.

    Composed of torch's operations it takes twice the passes over memory, and in 16 bit keeps fp32 copies.
    """

    @staticmethod
    def forward(
        ctx, x_sbh: Tensor, weight_h: Tensor, eps: float, width: int, group, casts_first: bool = False
    ) -> Tensor:
        """Normalises in fp32. ``group``: whose ranks have parts of a ``width``, or None. ``casts_first``: see
        `RMSNorm`."""
        out, scale_sb1 = _normalise(x_sbh, weight_h, eps, width, group, casts_first)
        ctx.save_for_backward(x_sbh, weight_h, scale_sb1)
        ctx.width = width
        ctx.group = group
        return out

    @staticmethod
    def backward(ctx, grad_sbh: Tensor) -> tuple[Tensor | None, ...]:
        x_sbh, weight_h, scale_sb1 = ctx.saved_tensors
        wide = x_sbh.float()
        grad = grad_sbh.float()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = ((wide * scale_sb1).mul_(grad)).flatten(0, -2).sum(0).to(weight_h.dtype)
        if ctx.needs_input_grad[0]:
            # With u = grad * w and y = x / rms(x): (u - y * mean(u * y)) / rms(x). What lies along x has no
            # effect on y.
            scaled = grad * weight_h
            along_sb1 = torch.linalg.vecdot(scaled, wide).unsqueeze(-1)
            if ctx.group is not None:
                dist.all_reduce(along_sb1, group=ctx.group)
            along_sb1.mul_(scale_sb1.square()).mul_(-1 / ctx.width)
            grad_x = scaled.addcmul_(wide, along_sb1).mul_(scale_sb1).to(x_sbh.dtype)
        return grad_x, grad_weight, None, None, None, None


def _normalise(
    x_sbh: Tensor, weight_h: Tensor, eps: float, width: int, group, casts_first: bool
) -> tuple[Tensor, Tensor]:
    """Returns what is normalised, and ``1 / rms(x)`` ``[s, b, 1]``."""
    wide = x_sbh.float()
    # By way of the norm: the sum of squares without a tensor of squares.
    squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
    if group is not None:
        dist.all_reduce(squares, group=group)
    scale_sb1 = squares.div_(width).add_(eps).rsqrt_()
    normalised = wide * scale_sb1
    if casts_first:
        return normalised.to(x_sbh.dtype).mul_(weight_h), scale_sb1
    return normalised.mul_(weight_h).to(x_sbh.dtype), scale_sb1


def rms_norm(
    x_sbh: Tensor, weight_h: Tensor, eps: float, width: int, group, casts_first: bool = False
) -> Tensor:
    """Normalises as `_Normalised` does; on a GPU by torch's one kernel, where a rank has all of the width."""
    if group is None and x_sbh.is_cuda:
        if casts_first and x_sbh.dtype is not torch.float32:
            return F.rms_norm(x_sbh, (width,), None, eps) * weight_h
        return F.rms_norm(x_sbh, (width,), weight_h, eps)
    if not torch.is_grad_enabled():  # what an autograd function costs is more than a small norm does
        return _normalise(x_sbh, weight_h, eps, width, group, casts_first)[0]
    return _Normalised.apply(x_sbh, weight_h, eps, width, group, casts_first)


class RMSNorm(torch.nn.Module):
    """``w * x / rms(x)`` over the last dimension, in fp32; Megatron's own refuses sequence parallelism.

    ``casts_first``: ``x / rms(x)`` is cast to the model's dtype, and then multiplied (Llama, Qwen); else the
    product is cast (OLMo 2).
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, *, casts_first: bool):
        super().__init__()
        self.eps = eps
        self.casts_first = casts_first
        device = torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        # Each TP rank sees its own part of the sequence; Megatron sums the gradients of parameters so marked.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x_sbh: Tensor) -> Tensor:
        return rms_norm(x_sbh, self.weight, self.eps, x_sbh.shape[-1], None, self.casts_first)


class _QKNorm(torch.nn.Module):
    """RMSNorm over the full width of q or k, before the heads part; right under tensor parallelism.

    The mean square is summed over the TP ranks, forward and backward. The weight is whole on every rank and
    sliced in the forward pass: Megatron sums over TP the gradient of every parameter named q_layernorm or
    k_layernorm, which is right for a whole weight of which each rank uses a slice, and wrong for a sharded
    one.
    """

    def __init__(self, config: TransformerConfig, heads: int, eps: float):
        super().__init__()
        self.eps = eps
        self.group = ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp"]).tp
        self.width = heads * config.kv_channels
        device = torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(self.width, dtype=config.params_dtype, device=device))

    def forward(self, x_sbnd: Tensor) -> Tensor:
        local_h = self.weight
        group = None
        if self.group.size() > 1:
            # Sums forwards and backwards: the norm of every rank's slice depends on every rank's input.
            local_h = local_h.chunk(self.group.size())[self.group.rank()]
            group = self.group
        return rms_norm(x_sbnd.flatten(2), local_h, self.eps, self.width, group).view_as(x_sbnd)


class QNorm(_QKNorm):
    """The norm of all query heads together."""

    def __init__(self, *, config: TransformerConfig, hidden_size: int, eps: float):
        super().__init__(config, config.num_attention_heads, eps)


class KNorm(_QKNorm):
    """The norm of all key heads together."""

    def __init__(self, *, config: TransformerConfig, hidden_size: int, eps: float):
        super().__init__(config, config.num_query_groups, eps)


class _SwiGLU(torch.autograd.Function):
    """``silu(gate) * up``, of which only the input stays; both gradients are made in one tensor."""

    @staticmethod
    def forward(ctx, gate_up_sbg: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_sbg)
        return fused.swiglu(gate_up_sbg)

    @staticmethod
    def backward(ctx, grad_sbf: Tensor) -> Tensor:
        return fused.swiglu_backward(grad_sbf, *ctx.saved_tensors)[0]


class SwiGLU(torch.nn.Module):
    """A dense block's activation ``[s, b, g]`` -> ``[s, b, f]``, built by spec."""

    def __init__(self, config: TransformerConfig):
        super().__init__()

    def forward(self, gate_up_sbg: Tensor) -> Tensor:
        return _SwiGLU.apply(gate_up_sbg)


class PlainResidual(MegatronModule):
    """``residual + x`` in the slot where Megatron adds bias, dropout and residual."""

    def __init__(self, config: TransformerConfig, norm: torch.nn.Module | None = None):
        super().__init__(config)
        self.norm = norm or torch.nn.Identity()

    def forward(self, training: bool, fused: bool):
        # Megatron gives (x, bias); these models have no biases here and no dropout.
        return lambda x_with_bias, residual, dropout: residual + self.norm(x_with_bias[0])


class PostNormResidual(PlainResidual):
    """``residual + norm(x)`` in the same slot."""

    def __init__(self, config: TransformerConfig, *, casts_first: bool):
        norm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon, casts_first=casts_first)
        super().__init__(config, norm)
