"""What OLMo 2 has and Megatron-Core lacks: its norms and its residual (its attention core: attention.py).

Legend: s sequence, b batch, h hidden, n heads of this rank, d head width.
Source: transformers models/olmo2/modeling_olmo2.py; OLMo 2 (arXiv 2501.00656) section 3 for norm placement and QK-norm.
"""

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class RMSNorm(torch.nn.Module):
    """``w * x / rms(x)`` in fp32, cast last, as OLMo 2 does. Megatron's own refuses sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device()))
        # Each TP rank sees its own part of the sequence; Megatron sums the gradients of parameters so marked.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x_sbh: Tensor) -> Tensor:
        x = x_sbh.float()
        if x.dtype == x_sbh.dtype == self.weight.dtype:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight.float() * x).to(x_sbh.dtype)


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
        x = x_sbnd.flatten(2).float()
        squares = x.pow(2).sum(-1, keepdim=True)
        local = self.weight.float()
        if self.group.size() > 1:
            # Forward sum and backward sum: the norm of every rank's slice depends on every rank's input.
            squares = copy_to_tensor_model_parallel_region(
                reduce_from_tensor_model_parallel_region(squares, self.group), self.group
            )
            local = local.chunk(self.group.size())[self.group.rank()]
        x = local * (x * torch.rsqrt(squares / self.width + self.eps))
        return x.to(x_sbnd.dtype).view_as(x_sbnd)


class QNorm(_QKNorm):
    def __init__(self, *, config: TransformerConfig, hidden_size: int, eps: float):
        super().__init__(config, config.num_attention_heads, eps)


class KNorm(_QKNorm):
    def __init__(self, *, config: TransformerConfig, hidden_size: int, eps: float):
        super().__init__(config, config.num_query_groups, eps)


class PostNormResidual(MegatronModule):
    """``residual + norm(x)`` in the slot where Megatron adds bias, dropout and residual."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.norm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool):
        return lambda x_with_bias, residual, dropout: residual + self.norm(x_with_bias[0])
