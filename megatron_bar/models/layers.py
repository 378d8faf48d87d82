"""What OLMo 2 has and Megatron-Core lacks: its norms and its residual (its attention core: attention.py).

Legend: s sequence, b batch, h hidden, n heads of this rank, d head width.
Source: transformers models/olmo2/modeling_olmo2.py; OLMo 2 (arXiv 2501.00656) section 3 for norm placement and QK-norm.
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
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, width: int, group) -> Tensor:
        """x ``[..., h]``, weight ``[h]``; all in fp32, cast last. ``group``: whose ranks have parts of a ``width``, or None."""
        wide = x.float()
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        if group is not None:
            dist.all_reduce(squares, group=group)
        scale = squares.div_(width).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        ctx.width, ctx.group = width, group
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        wide, grad, grad_x, grad_weight = x.float(), grad.float(), None, None
        if ctx.needs_input_grad[1]:
            grad_weight = ((wide * scale).mul_(grad)).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            scaled = grad * weight
            along = torch.linalg.vecdot(scaled, wide).unsqueeze(-1)
            if ctx.group is not None:
                dist.all_reduce(along, group=ctx.group)
            along.mul_(scale.square()).mul_(-1 / ctx.width)
            grad_x = scaled.addcmul_(wide, along).mul_(scale).to(x.dtype)
        return grad_x, grad_weight, None, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, width: int, group) -> Tensor:
    """See `_Normalised`; on a GPU by torch's own kernel, where a rank has all of the width: one pass instead of five."""
    if group is None and x.is_cuda:
        return F.rms_norm(x, (width,), weight, eps)
    return _Normalised.apply(x, weight, eps, width, group)


class RMSNorm(torch.nn.Module):
    """``w * x / rms(x)`` in fp32, cast last, as OLMo 2 does. Megatron's own refuses sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device()))
        # Each TP rank sees its own part of the sequence; Megatron sums the gradients of parameters so marked.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x_sbh: Tensor) -> Tensor:
        return rms_norm(x_sbh, self.weight, self.eps, x_sbh.shape[-1], None)


class _QKNorm(torch.nn.Module):
    """RMSNorm over the full width of q or k, before the heads part; right under tensor parallelism.

    The mean square is summed over the TP ranks, forward and backward. The weight is whole on every rank and sliced in
    the forward pass: Megatron sums over TP the gradient of every parameter named q_layernorm or k_layernorm, which is
    right for a whole weight of which each rank uses a slice, and wrong for a sharded one.
    """

    def __init__(self, config: TransformerConfig, heads: int, eps: float):
        super().__init__()
        self.eps = eps
        self.group = ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp"]).tp
        self.width = heads * config.kv_channels
        self.weight = torch.nn.Parameter(torch.ones(self.width, dtype=config.params_dtype, device=torch.cuda.current_device()))

    def forward(self, x_sbnd: Tensor) -> Tensor:
        local, group = self.weight, None
        if self.group.size() > 1:
            # Sums forwards and backwards: the norm of every rank's slice depends on every rank's input.
            local, group = local.chunk(self.group.size())[self.group.rank()], self.group
        return rms_norm(x_sbnd.flatten(2), local, self.eps, self.width, group).view_as(x_sbnd)


class QNorm(_QKNorm):
    def __init__(self, *, config: TransformerConfig, hidden_size: int, eps: float):
        super().__init__(config, config.num_attention_heads, eps)


class KNorm(_QKNorm):
    def __init__(self, *, config: TransformerConfig, hidden_size: int, eps: float):
        super().__init__(config, config.num_query_groups, eps)


class _SwiGLU(torch.autograd.Function):
    """``silu(gate) * up``, of which only the input stays; the gradients of both halves are made in one tensor."""

    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return fused.swiglu(gate_up)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return fused.swiglu_backward(grad, *ctx.saved_tensors)[0]


class SwiGLU(torch.nn.Module):
    """A dense block's activation ``[..., 2f]`` -> ``[..., f]``, built by spec."""

    def __init__(self, config: TransformerConfig):
        super().__init__()

    def forward(self, gate_up: Tensor) -> Tensor:
        return _SwiGLU.apply(gate_up)


class PostNormResidual(MegatronModule):
    """``residual + norm(x)`` in the slot where Megatron adds bias, dropout and residual."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.norm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool):
        return lambda x_with_bias, residual, dropout: residual + self.norm(x_with_bias[0])
