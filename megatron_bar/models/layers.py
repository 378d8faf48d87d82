"""What OLMo 2 has and Megatron-Core lacks: its norms, its residual, its attention core, its loss.

Legend: s sequence, b batch, h hidden, n heads of this rank, d head width, t tokens, v vocabulary columns of this rank.
Source: transformers models/olmo2/modeling_olmo2.py; OLMo 2 (arXiv 2501.00656) section 3 for norm placement and QK-norm.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
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


class KVCache:
    """Keys and values of the sequences being sampled: ``[layers of this rank, rows + 1, heads of this rank, max_length, d]``.

    The last row belongs to no sequence: it takes what fills a pass up to a shape that all ranks share.
    """

    def __init__(self, *, layers: int, rows: int, heads: int, max_length: int, width: int, dtype: torch.dtype):
        self.rows = rows
        shape = (layers, rows + 1, heads, max_length, width)
        self.keys = torch.zeros(shape, dtype=dtype, device=torch.cuda.current_device())
        self.values = torch.zeros_like(self.keys)


@dataclass
class Sequences(PackedSeqParams):
    """Positions, documents and cache of a forward pass; travels to the attention core as Megatron's packed_seq_params.

    Training: positions ``[b, s]``; tokens attend to earlier ones of the same ``documents`` id ``[b, s]`` (None: one
    document per row). Sampling: the batch is laid out flat, ``[1, rows * new]``, so that sequence parallelism can cut
    it, and its rows are the rows ``slots`` ``[rows]`` of ``cache``; None: all of them.
    """

    positions: Tensor = None
    documents: Tensor | None = None
    cache: KVCache | None = None
    slots: Tensor | None = None
    cos: Tensor = field(init=False, default=None)
    sin: Tensor = field(init=False, default=None)
    mask: Tensor | None = field(init=False, default=None)

    @property
    def rows(self) -> int:
        """Sequences in the pass."""
        if self.cache is None:
            return len(self.positions)
        return self.cache.rows if self.slots is None else len(self.slots)

    def prepare(self, *, theta: float, width: int) -> "Sequences":
        """Computes once what every layer needs: RoPE's cosines and sines, ``[b, 1, s, d]`` in fp32, and the mask."""
        device = self.positions.device
        # As in transformers: every operation of the angle in fp32.
        frequencies = 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.float, device=device) / width))
        angles = self.positions[:, :, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        if self.cache is not None:
            angles = angles.view(self.rows, -1, width)
            reach = self.positions.view(self.rows, -1)
            slots = torch.arange(self.cache.keys.shape[3], device=device)[: int(reach.max()) + 1]
            self.mask = (slots <= reach[:, :, None])[:, None]
        elif self.documents is not None:
            s = self.positions.shape[1]
            causal = torch.ones(s, s, dtype=torch.bool, device=device).tril()
            self.mask = (causal & (self.documents[:, :, None] == self.documents[:, None, :]))[:, None]
        self.cos, self.sin = angles.cos()[:, None], angles.sin()[:, None]
        return self


def _rotate(x_bnsd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x_bnsd.chunk(2, dim=-1)
    return (x_bnsd * cos + torch.cat((-right, left), dim=-1) * sin).to(x_bnsd.dtype)


class CoreAttention(MegatronModule):
    """RoPE, cache, document mask and torch's scaled_dot_product_attention, in Megatron's core_attention slot."""

    def __init__(
        self, config, layer_number, attn_mask_type, attention_type, cp_comm_type=None, softmax_scale=None, pg_collection=None
    ):
        super().__init__(config)
        self.layer = None
        """Index of this layer among the layers of this pipeline rank: its row in the cache."""

    def forward(self, query, key, value, attention_mask, *, packed_seq_params: Sequences, **_) -> Tensor:
        """query ``[s, b, n, d]``, key and value ``[s, b, kv heads, d]`` -> ``[s, b, n * d]``."""
        seqs, (s, b, n, d) = packed_seq_params, query.shape

        def by_head(x):  # [s, b, n, d] -> [rows, n, tokens per row, d]
            return x.transpose(0, 1).reshape(seqs.rows, -1, x.shape[2], d).transpose(1, 2)

        query, key, value = by_head(query), by_head(key), by_head(value)
        query, key = _rotate(query, seqs.cos, seqs.sin), _rotate(key, seqs.cos, seqs.sin)
        if seqs.cache is not None:
            key, value = self._through_cache(key, value, seqs)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=seqs.mask, is_causal=seqs.mask is None, enable_gqa=key.shape[1] != n
        )
        return out.transpose(1, 2).reshape(b, s, n * d).transpose(0, 1).contiguous()

    def _through_cache(self, key: Tensor, value: Tensor, seqs: Sequences) -> tuple[Tensor, Tensor]:
        positions, slots, reach = seqs.positions.view(seqs.rows, -1), seqs.slots, seqs.mask.shape[-1]
        row = torch.arange(seqs.rows, device=positions.device) if slots is None else slots
        rows = slice(seqs.rows) if slots is None else slots  # a view, where all rows take part
        read = []
        for buffer, new in ((seqs.cache.keys[self.layer], key), (seqs.cache.values[self.layer], value)):
            buffer[row[:, None], :, positions] = new.transpose(1, 2)
            read.append(buffer[rows, :, :reach])
        return read[0], read[1]


def token_nll(logits_sbv: Tensor, labels_bs: Tensor, *, vocab_size: int, group) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood and log-sum-exp ``[b, s]`` in fp32, over a vocabulary cut across ``group``.

    Columns at or above ``vocab_size`` are padding and stay out of the softmax. A label below 0 gives an nll of 0.
    """
    logits = logits_sbv.transpose(0, 1).float()
    width = logits.shape[-1]
    start = group.rank() * width
    if start + width > vocab_size:
        columns = torch.arange(start, start + width, device=logits.device)
        logits = logits.masked_fill(columns >= vocab_size, float("-inf"))
    top = logits.detach().amax(-1, keepdim=True)
    if group.size() > 1:
        torch.distributed.all_reduce(top, op=torch.distributed.ReduceOp.MAX, group=group)
    total = reduce_from_tensor_model_parallel_region((logits - top).exp().sum(-1), group)
    lse = total.log() + top.squeeze(-1)
    mine = (labels_bs >= start) & (labels_bs < min(start + width, vocab_size))
    picked = logits.gather(-1, (labels_bs - start).clamp(0, width - 1)[..., None]).squeeze(-1)
    picked = reduce_from_tensor_model_parallel_region(picked.masked_fill(~mine, 0.0), group)
    return (lse - picked).masked_fill(labels_bs < 0, 0.0), lse
