"""The attention core: RoPE, the KV cache, and attention that stays inside packed documents.

Documents are attended to by kernels for sequences of many lengths: Transformer Engine's where the stage asks
for it, torch's varlen flash attention on a CUDA device in 16 bit; elsewhere they are laid out as a batch of
documents, or masked, whichever computes less. All compute the same.

Legend: s sequence, b batch, n query heads of this rank, k its key and value heads, d head width, t = b * s
tokens, r rows (sequences in a pass), 1 a dimension of one.
Source: transformers models/olmo2/modeling_olmo2.py and models/llama/modeling_llama.py.
"""

import inspect
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_bar.conversion.parameters import DTYPES
from megatron_bar.errors import BarError
from megatron_bar.models import kernels as fused
from megatron_bar.weights.hf_config import ModelConfig
from megatron_bar.weights.rope import Llama3Rope, inverse_frequencies

varlen_attn = None
if torch.cuda.is_available():  # no other device has it, and it loads torch's compiler
    from torch.nn.attention.varlen import varlen_attn
VARLEN_TAKES = frozenset(() if varlen_attn is None else inspect.signature(varlen_attn).parameters)
"""Its parameters, which differ between versions of torch: ``enable_gqa`` came with 2.12."""

Kernels = Literal["torch", "transformer_engine"]
MOVING = 256
"""Tokens that take as long to attend to as one takes to move into a batch and back (measured on a CPU)."""


class KVCache:
    """Keys and values of the sequences being sampled, ``[layers of this rank, rows + 1, k, max_length, d]``.

    The last row belongs to no sequence: it takes what fills a pass up to a shape that all ranks share.
    """

    def __init__(
        self, *, layers: int, rows: int, heads: int, max_length: int, width: int, dtype: torch.dtype
    ):
        self.rows = rows
        shape = (layers, rows + 1, heads, max_length, width)
        self.keys = torch.zeros(shape, dtype=dtype, device=torch.cuda.current_device())
        self.values = torch.zeros_like(self.keys)


@dataclass
class Sequences(PackedSeqParams):
    """Positions, documents and cache of a forward pass; travels to the attention core as Megatron's
    packed_seq_params.

    Training: positions ``[b, s]``; tokens attend to earlier ones of the same ``documents`` id ``[b, s]``,
    whose tokens lie together (None: one document per row). ``documents`` may lie on the host, as a batch has
    them: kernels want their borders as numbers, and to ask a GPU for them would be to wait for it. Sampling:
    the batch is laid out flat, ``[1, rows * new]``, so that sequence parallelism can cut it, and its rows are
    the rows ``slots`` ``[r]`` of ``cache``; None: all of them.
    """

    positions: Tensor = None
    documents: Tensor | None = None
    cache: KVCache | None = None
    slots: Tensor | None = None
    reach: int | None = None
    """Length of the cache attended to, above all positions; None: just that, for which a GPU is asked."""
    cos: Tensor = field(init=False, default=None)
    sin: Tensor = field(init=False, default=None)
    mask: Tensor | None = field(init=False, default=None)
    borders: PackedSeqParams | None = field(init=False, default=None)
    """Documents of the whole batch laid out flat, where their borders describe them and not ``mask``. Apart
    from ``self``, whose batch Megatron would take for flat already."""
    offsets: Tensor | None = field(init=False, default=None)
    """Place of each token, ``[t]``, in ``[documents, longest]``; None for a kernel that takes the borders as
    they are."""

    @property
    def rows(self) -> int:
        """Returns how many sequences are in the pass."""
        if self.cache is None:
            return len(self.positions)
        return self.cache.rows if self.slots is None else len(self.slots)

    def prepare(
        self, *, rope: "Rope", kernels: Kernels, dtype: torch.dtype, moving: int = MOVING
    ) -> "Sequences":
        """Computes once what every layer needs: RoPE's cosines and sines, ``[b, 1, s, d]``, and borders or
        mask.

        ``moving``: what it costs to move a token into a batch of documents and back, in tokens attended to.
        """
        device = self.positions.device
        positions_rs = self.positions
        if self.cache is not None:
            positions_rs = positions_rs.view(self.rows, -1)
            reach = int(positions_rs.max()) + 1 if self.reach is None else self.reach
            self.mask = (torch.arange(reach, device=device) <= positions_rs[:, :, None])[:, None]
        elif self.documents is not None or kernels == "transformer_engine":
            self._mark_documents(kernels == "transformer_engine" or has_varlen(device, dtype), moving)
        self.cos, self.sin = rope.turn(positions_rs)
        return self

    def _mark_documents(self, kernel: bool, moving: int) -> None:
        """Fills borders, and offsets where no kernel takes them, or the mask.

        ``kernel``: whether there is one for sequences of many lengths.
        """
        b, s = self.positions.shape
        device = self.positions.device
        # All of this on the host where the documents are there: each number taken from a GPU would wait for
        # it.
        host = "cpu" if self.documents is None else self.documents.device
        starts_bs = torch.zeros(b, s, dtype=torch.bool, device=host)
        starts_bs[:, 0] = True
        if self.documents is not None:
            starts_bs[:, 1:] = self.documents[:, 1:] != self.documents[:, :-1]
        borders = F.pad(starts_bs.flatten().nonzero().squeeze(-1), (0, 1), value=b * s)
        longest = int(borders.diff().max())
        # Tokens that each one attends to: as a batch of documents filled up to the longest, against all of a
        # row.
        if kernel or (len(borders) - 1) * longest**2 / (b * s) + moving < s:
            ends = upload(borders.int(), device)
            self.borders = PackedSeqParams(
                qkv_format="thd",
                cu_seqlens_q=ends,
                cu_seqlens_kv=ends,
                max_seqlen_q=longest,
                max_seqlen_kv=longest,
            )
            if not kernel:
                document_t = starts_bs.flatten().cumsum(0) - 1
                offsets = torch.arange(b * s, device=host) + document_t * longest - borders[document_t]
                self.offsets = upload(offsets, device)
        else:
            causal = torch.ones(s, s, dtype=torch.bool, device=device).tril()
            documents = upload(self.documents, device)
            self.mask = (causal & (documents[:, :, None] == documents[:, None, :]))[:, None]


@dataclass(frozen=True, kw_only=True)
class Rope:
    """How positions turn the queries and keys of a head of ``width``."""

    theta: float
    width: int
    scaling: Llama3Rope | None = None
    dtype: torch.dtype = torch.float32
    """Dtype of cosines and sines: the model's where the family multiplies by it, else fp32."""

    def turn(self, positions_rs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the cosines and sines of the angles, each ``[r, 1, s, d]``, both halves the same."""
        frequencies = inverse_frequencies(self.theta, self.scaling, self.width, positions_rs.device)
        # As in transformers: every operation of the angle in fp32.
        angles = positions_rs[:, None, :, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def rope_of(shape: ModelConfig) -> Rope:
    """Returns the RoPE of a model."""
    dtype = DTYPES[shape.dtype] if shape.block.casts_first else torch.float32
    return Rope(theta=shape.rope_theta, width=shape.head_dim, scaling=shape.rope_scaling, dtype=dtype)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns ``tensor`` on ``device``; from the host to a GPU without waiting for it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Returns whether torch's flash attention for sequences of many lengths can be used."""
    return device.type == "cuda" and dtype.itemsize == 2


def varlen(query_tnd: Tensor, key_tkd: Tensor, value_tkd: Tensor, ends: Tensor, longest: int) -> Tensor:
    """Attends to documents between ``ends`` -> ``[t, n, d]``, by the torch that is there."""
    # A window of all before and none after is causal attention by its newer name.
    options = {"window_size": (-1, 0)} if "window_size" in VARLEN_TAKES else {"is_causal": True}
    heads = query_tnd.shape[1]
    if key_tkd.shape[1] != heads:
        if "enable_gqa" in VARLEN_TAKES:
            options["enable_gqa"] = True
        else:
            key_tkd, value_tkd = (
                x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key_tkd, value_tkd)
            )
    return varlen_attn(query_tnd, key_tkd, value_tkd, ends, ends, longest, longest, **options)


class _Rotated(torch.autograd.Function):
    """RoPE; its gradient is turned back by the same angle."""

    @staticmethod
    def forward(ctx, x_bnsd: Tensor, cos_b1sd: Tensor, sin_b1sd: Tensor) -> Tensor:
        """Turns ``x_bnsd``; both halves of the cosines and of the sines are the same."""
        ctx.save_for_backward(cos_b1sd, sin_b1sd)
        return rotate(x_bnsd, cos_b1sd, sin_b1sd, 1)

    @staticmethod
    def backward(ctx, grad_bnsd: Tensor) -> tuple[Tensor, None, None]:
        return rotate(grad_bnsd, *ctx.saved_tensors, -1), None, None


def rotate(x_bnsd: Tensor, cos_b1sd: Tensor, sin_b1sd: Tensor, way: int) -> Tensor:
    """Turns ``x_bnsd`` by RoPE's angles, backwards where ``way`` is -1; without a gradient."""
    if fused.usable(x_bnsd):
        return fused.rotate(x_bnsd, cos_b1sd, sin_b1sd, way)
    # The halves of a head are turned against each other, as in transformers, and not neighbours.
    out = x_bnsd * cos_b1sd
    half = x_bnsd.shape[-1] // 2
    left, right = x_bnsd.chunk(2, dim=-1)
    sin = sin_b1sd[..., :half]
    if out.dtype.itemsize == 2:  # every product is rounded, as in transformers
        out[..., :half].sub_(right * sin, alpha=way)
        out[..., half:].add_(left * sin, alpha=way)
        return out
    out[..., :half].addcmul_(right, sin, value=-way)
    out[..., half:].addcmul_(left, sin, value=way)
    return out.to(x_bnsd.dtype)


class CoreAttention(MegatronModule):
    """RoPE, cache, documents and torch's attention, in Megatron's core_attention slot."""

    def __init__(
        self,
        config,
        layer_number,
        attn_mask_type,
        attention_type,
        cp_comm_type=None,
        softmax_scale=None,
        pg_collection=None,
    ):
        super().__init__(config)
        self.layer = None
        """Index of this layer among the layers of this pipeline rank: its row in the cache."""

    def forward(self, query, key, value, attention_mask, *, packed_seq_params: Sequences, **_) -> Tensor:
        """Attends: query ``[s, b, n, d]``, key and value ``[s, b, k, d]`` -> ``[s, b, n * d]``."""
        seqs = packed_seq_params
        s, b, n, d = query.shape

        def by_head(x_sbnd):  # -> [r, n, tokens per row, d]
            return x_sbnd.transpose(0, 1).reshape(seqs.rows, -1, x_sbnd.shape[2], d).transpose(1, 2)

        query, key, value = (by_head(x_sbnd) for x_sbnd in (query, key, value))
        query, key = (_Rotated.apply(x, seqs.cos, seqs.sin) for x in (query, key))
        if seqs.borders is not None:
            out = self.attend_packed(*(x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)), seqs)
        else:
            if seqs.cache is not None:
                key, value = self._through_cache(key, value, seqs)
            causal = seqs.mask is None
            gqa = key.shape[1] != n
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask=seqs.mask, is_causal=causal, enable_gqa=gqa
            ).transpose(1, 2)
        # Not `contiguous`: of one row it would keep the transposed strides, by which torch multiplies token
        # by token.
        return out.reshape(b, s, n * d).transpose(0, 1).flatten(0, 1).view(s, b, n * d)

    def attend_packed(self, query_tnd: Tensor, key_tkd: Tensor, value_tkd: Tensor, seqs: Sequences) -> Tensor:
        """Attends inside the documents of ``seqs`` -> ``[t, n, d]``."""
        ends = seqs.borders.cu_seqlens_q
        longest = seqs.borders.max_seqlen_q
        documents = len(ends) - 1
        if seqs.offsets is None:
            return varlen(query_tnd, key_tkd, value_tkd, ends, longest)

        def by_document(
            x_tnd,
        ):  # -> [documents, n, longest, d]; what fills a document up comes after all its tokens
            _, n, d = x_tnd.shape
            padded = x_tnd.new_zeros(documents * longest, n, d).index_copy(0, seqs.offsets, x_tnd)
            return padded.view(documents, longest, n, d).transpose(1, 2)

        query, key, value = map(by_document, (query_tnd, key_tkd, value_tkd))
        gqa = key.shape[1] != query.shape[1]
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=gqa)
        return out.transpose(1, 2).flatten(0, 1).index_select(0, seqs.offsets)

    def _through_cache(self, key_rksd: Tensor, value_rksd: Tensor, seqs: Sequences) -> tuple[Tensor, Tensor]:
        """Writes the new keys and values, and returns those of the rows up to now, ``[r, k, reach, d]``."""
        positions_rs = seqs.positions.view(seqs.rows, -1)
        slots_r = seqs.slots
        reach = seqs.mask.shape[-1]
        row_r = torch.arange(seqs.rows, device=positions_rs.device) if slots_r is None else slots_r
        rows = slice(seqs.rows) if slots_r is None else slots_r  # a view, where all rows take part
        read = []
        for buffer, new in (
            (seqs.cache.keys[self.layer], key_rksd),
            (seqs.cache.values[self.layer], value_rksd),
        ):
            buffer[row_r[:, None], :, positions_rs] = new.transpose(1, 2)
            read.append(buffer[rows, :, :reach])
        return read[0], read[1]


class TransformerEngineAttention(CoreAttention):
    """The same with Transformer Engine's kernels where training attends; found at run time."""

    def __init__(self, config, layer_number, attn_mask_type, attention_type, **more):
        super().__init__(config, layer_number, attn_mask_type, attention_type, **more)
        try:
            from megatron.core.extensions.transformer_engine import HAVE_TE, TEDotProductAttention
        except ImportError:
            HAVE_TE = False
        if not HAVE_TE:
            raise BarError(
                "attention: transformer_engine is not installed (pip install 'megatron_bar[te]'), or built "
                "for another torch (bar doctor); torch needs nothing"
            )
        self.kernel = TEDotProductAttention(config, layer_number, attn_mask_type, attention_type, **more)

    def attend_packed(self, query_tnd: Tensor, key_tkd: Tensor, value_tkd: Tensor, seqs: Sequences) -> Tensor:
        """Attends as `CoreAttention.attend_packed` does; the kernel joins heads and width."""
        mask = AttnMaskType.padding_causal
        out = self.kernel(query_tnd, key_tkd, value_tkd, None, mask, packed_seq_params=seqs.borders)
        return out.view_as(query_tnd)


CORES = {"torch": CoreAttention, "transformer_engine": TransformerEngineAttention}
