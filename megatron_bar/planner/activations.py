"""Bytes of a micro-batch on one rank: what autograd keeps for the backward pass, and the temporaries.

Follows models/{attention,layers,moe,cross_entropy}.py operation by operation, and like flops.py from the
embedding up: an operation keeps its input for the gradient of a weight that trains, and what its input's
gradient takes only where something below it trains. So a frozen weight keeps nothing, and below the first
layer that trains nothing is kept at all. With recomputation every layer keeps its input alone, and only the
layer at work all of this; the embedding's output then always needs a gradient (models/build.py), as does what
a later pipeline rank receives.

Left out: a token's few numbers (labels, masks of the loss), fp32 copies of a norm's weight, and the dispatch
of tokens where not all experts are active: counted as if all were. Logits are counted as if all tokens were
learnt.
"""

from dataclasses import dataclass
from typing import Literal

from megatron_bar.conversion.parameters import DTYPES, VOCABULARY_UNIT
from megatron_bar.models.cross_entropy import BLOCK
from megatron_bar.parallel.state import padded_vocab_size
from megatron_bar.planner.memory import FP32, Place, Spread
from megatron_bar.weights.groups import ParamGroup
from megatron_bar.weights.hf_config import ModelConfig

Attention = Literal["kernel", "mask"]
"""Kind of attention. kernel: torch's flash or varlen attention, or Transformer Engine's, as on a GPU in 16
bit: queries, keys, values, outputs and a number for each token and head are kept. mask: as on a CPU, where
several documents share a row: besides, every layer keeps the mask in the model's dtype, a row of it for each
token."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of a step's activations on one rank."""

    kept: int
    """Bytes kept for the backward pass, the loss left out, of all micro-batches under way on this rank."""
    logits: int
    """Bytes of the logits and what the cross-entropy makes of them, at their peak; none before the last
    pipeline rank."""
    logits_kept: int
    """Bytes of these that stay for the backward pass."""
    working: int
    """Bytes of one layer while it is at work: with recomputation all that it keeps, and its temporaries."""

    @property
    def peak(self) -> int:
        """Most bytes at once: the loss is done with when the layers begin."""
        return self.kept + max(self.logits, self.working)


def cross_entropy(tokens: int, columns: int, size: int) -> tuple[int, int]:
    """Returns the bytes (kept for the backward pass, at the peak) of `token_nll` over logits ``[tokens,
    columns]`` of ``size`` bytes a value.

    The peak is in the backward pass: the logits, their gradient and, for one block of rows, the softmax in
    fp32 and a copy in fp32 of logits that are not.
    """
    logits = tokens * columns * size
    return logits, 2 * logits + FP32 * (1 + (size != FP32)) * min(tokens * columns, max(BLOCK, columns))


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A micro-batch of ``rows`` rows of ``length`` tokens on the rank at ``place``."""

    shape: ModelConfig
    trains: frozenset[ParamGroup]
    spread: Spread
    place: Place
    rows: int
    length: int
    attention: Attention
    z_loss: bool
    """Whether the router has one."""

    @property
    def size(self) -> int:
        """Bytes of a value in the model's dtype."""
        return DTYPES[self.shape.dtype].itemsize

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def own(self) -> int:
        """Number of tokens of this rank where sequence parallelism cuts them."""
        return self.tokens // self.spread.tensor

    @property
    def gathered(self) -> int:
        """Number of tokens that this rank's experts see."""
        return self.own * self.spread.expert * self.spread.expert_tensor

    def norm(self, needs: bool, trains: bool) -> int:
        """Returns what a norm keeps: its input, and a number for each token in fp32."""
        return self.own * (self.shape.hidden_size * self.size + FP32) * (needs or trains)

    def mixing(self, needs: bool) -> int:
        """Returns what attention with its norms keeps; ``needs``: whether its input needs a gradient."""
        shape = self.shape
        trains = ParamGroup.ATTENTION in self.trains
        norm = ParamGroup.BLOCK_NORM in self.trains
        before = shape.block.norms == "before"
        tensor = self.spread.tensor
        q = shape.query_size // tensor
        kv = shape.key_value_size // tensor
        kept = self.own * shape.hidden_size * self.size * trains
        kept += self.norm(needs, norm) * before
        needs = needs or trains or (norm and before)
        if needs:
            kept += self.tokens * self.query_key_norms(q, kv)
            # The values are a view of the fused projection, which stays whole.
            kept += self.tokens * ((q + kv + (q + 2 * kv) + q) * self.size + shape.num_heads // tensor * FP32)
            kept += self.tokens * self.length * self.size * (self.attention == "mask")
        return kept + self.norm(needs, norm) * (not before)

    def query_key_norms(self, q: int, kv: int) -> int:
        """Returns what the norms of queries and keys, ``q`` and ``kv`` wide on this rank, keep of a token:
        views of the fused projection where their heads lie in it one behind the other, else copies."""
        shape = self.shape
        several = shape.num_kv_heads > self.spread.tensor
        match shape.block.qk_norm:
            case "none":
                return 0
            case "head":
                copied = several and shape.num_heads > shape.num_kv_heads
                return q * self.size * copied + (q + kv) // shape.head_dim * FP32
            case _:
                return (q + kv) * self.size * several + 2 * FP32

    def _ffn_norm(self, needs: bool, changed: bool) -> int:
        """``needs``: whether the layer's part before the FFN needs a gradient; ``changed``: or the FFN's
        output."""
        before = self.shape.block.norms == "before"
        return self.norm(needs if before else changed, ParamGroup.BLOCK_NORM in self.trains)

    def ffn(self, needs: bool) -> int:
        """Returns what the FFN or the experts keep, with their norm; ``needs``: as in `mixing`."""
        return self._experts(needs) if self.shape.num_experts else self._dense_ffn(needs)

    def _dense_ffn(self, needs: bool) -> int:
        trains = ParamGroup.FFN in self.trains
        f = self.shape.intermediate_size // self.spread.tensor
        kept = self.own * self.shape.hidden_size * self.size * trains
        kept += self.tokens * f * self.size * (2 * (needs or trains) + trains)
        return kept + self._ffn_norm(needs, needs or trains)

    def _experts(self, needs: bool) -> int:
        router = ParamGroup.ROUTER in self.trains
        h = self.shape.hidden_size
        f = self.shape.intermediate_size // self.spread.expert_tensor
        experts = self.shape.num_experts
        local = [
            (ParamGroup.DOMAIN_EXPERT if index else ParamGroup.ANCHOR_EXPERT) in self.trains
            for index in range(experts)
            if index * self.spread.expert // experts == self.place.expert
        ]
        weighted = needs or router
        alone = self.gathered == self.own  # the experts' input is the router's
        kept = self.own * h * self.size * (router or (alone and (weighted or any(local))))
        kept += self.gathered * h * self.size * ((weighted or any(local)) and not alone)
        if weighted:
            kept += self.own * FP32 * (experts + (experts + 1) * self.z_loss)
            kept += self.gathered * experts * self.size
        for trains in local:
            # Both halves of the first product, and the output for the gradient of its weight.
            kept += self.gathered * self.size * (2 * f * (weighted or trains) + h * weighted)
        changed = weighted or not self.trains.isdisjoint({ParamGroup.DOMAIN_EXPERT, ParamGroup.ANCHOR_EXPERT})
        return kept + self._ffn_norm(needs, changed)

    def temporaries(self) -> int:
        """Returns the temporaries of a layer at work, after measurements on a CPU: experts make their
        intermediates again, four times their width, beside the gradients of input, output and sum; a dense
        FFN three times, as the one it kept is gone by then, and so is what a norm behind it kept. A norm
        takes three times the hidden size in fp32, and four times in 16 bit."""
        h = self.shape.hidden_size
        f = self.shape.intermediate_size
        if self.shape.num_experts:
            ffn = self.gathered * self.size * (4 * f // self.spread.expert_tensor + 3 * h)
        else:
            before = self.shape.block.norms == "before"
            ffn = self.tokens * self.size * (3 * f // self.spread.tensor + (1 + before) * h)
        return max(ffn, self.own * FP32 * (3 + (self.size != FP32)) * h)

    def layers(self, needs: bool) -> list[int]:
        """Returns what each layer of this rank keeps; ``needs``: whether the first one's input needs a
        gradient."""
        kept = []
        for _ in range(self.shape.num_layers // self.spread.pipeline):
            mixing = self.mixing(needs)
            needs = needs or not self.trains.isdisjoint({ParamGroup.ATTENTION, ParamGroup.BLOCK_NORM})
            kept.append(mixing + self.ffn(needs))
            needs = needs or not self.trains.isdisjoint(_FFN)
        return kept


_FFN = {ParamGroup.FFN, ParamGroup.ANCHOR_EXPERT, ParamGroup.DOMAIN_EXPERT, ParamGroup.ROUTER}


def activations(batch: Pass, *, recompute: bool, micro_batches: int) -> Activations:
    """Returns the activations of a step of ``micro_batches`` on this rank, in Megatron's order: one forward,
    one backward (1F1B)."""
    shape = batch.shape
    spread = batch.spread
    pipeline = batch.place.pipeline
    first = pipeline == 0
    embedding = ParamGroup.EMBEDDING in batch.trains
    layers = batch.layers(embedding or recompute or not first)
    input_size = batch.own * shape.hidden_size * batch.size
    # Token ids of 8 bytes; RoPE's cosines and sines.
    angle = batch.size if shape.block.casts_first else FP32
    kept = batch.tokens * (8 * (first and embedding) + 2 * shape.head_dim * angle)
    kept += len(layers) * input_size if recompute else sum(layers)
    logits = logits_kept = 0
    if pipeline == spread.pipeline - 1:
        kept += batch.norm(True, ParamGroup.FINAL_NORM in batch.trains)
        # Of all tokens, which every tensor rank has gathered.
        kept += batch.tokens * shape.hidden_size * batch.size * (ParamGroup.LM_HEAD in batch.trains)
        rows = padded_vocab_size(shape.vocab_size, spread.tensor, VOCABULARY_UNIT[shape.dtype])
        logits_kept, logits = cross_entropy(batch.tokens, rows // spread.tensor, batch.size)
    # The last rank has one micro-batch under way, the one before it two, and so on.
    under_way = min(micro_batches, spread.pipeline - pipeline)
    working = batch.temporaries() + (max(layers) if recompute else 0)
    return Activations(kept=kept * under_way, logits=logits, logits_kept=logits_kept, working=working)
