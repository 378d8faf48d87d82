"""Bytes of a micro-batch on one rank: what autograd keeps for the backward pass, and what is there only for a
moment.

Follows models/{attention,layers,moe,cross_entropy}.py operation by operation, and like flops.py from the
embedding up: an operation keeps its input for the gradient of a weight that trains, and what its input's
gradient takes only where something below it trains. So a frozen weight keeps nothing, and below the first
layer that trains nothing is kept at all. With recomputation a layer keeps its input, and all of this for the
one layer that is at work; the embedding's output then always wants a gradient (models/build.py), as does what
a later pipeline rank receives.

Left out: a token's few numbers (labels, masks of the loss), fp32 copies of a norm's weight, and the dispatch
of tokens where not all experts are active: counted as if all were.
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
"""How a row is attended to. kernel: by torch's flash or varlen attention, or Transformer Engine's, as on a
GPU in 16 bit: queries, keys, values, outputs and a number for each token and head are kept. mask: as on a
CPU, where documents lie in a row: besides, every layer keeps the mask in the model's dtype, a row of it for
each token."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes."""

    kept: int
    """For the backward pass, the loss left out: of all micro-batches that are under way on this rank."""
    logits: int
    """The logits and what the cross-entropy makes of them, at their peak; none before the last pipeline
    rank."""
    logits_kept: int
    """What of them stays for the backward pass."""
    working: int
    """Of one layer while it is at work: with recomputation all that it keeps, and its temporaries."""

    @property
    def peak(self) -> int:
        """The loss is done with when the layers begin."""
        return self.kept + max(self.logits, self.working)


def cross_entropy(tokens: int, columns: int, size: int) -> tuple[int, int]:
    """(kept for the backward pass, at the peak) of `token_nll` over logits ``[tokens, columns]`` of ``size``
    bytes a value.

    The peak is in the backward pass: the logits, their gradient, and of a block of rows its softmax in fp32
    and, where the logits are not, a copy in fp32.
    """
    logits = tokens * columns * size
    return logits, 2 * logits + FP32 * (1 + (size != FP32)) * min(tokens * columns, max(BLOCK, columns))


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A micro-batch of ``rows`` rows of ``length`` tokens on a rank that is given."""

    shape: ModelConfig
    trains: frozenset[ParamGroup]
    spread: Spread
    place: Place
    rows: int
    length: int
    attention: Attention
    z_loss: bool
    """Of the router."""

    @property
    def size(self) -> int:
        return DTYPES[self.shape.dtype].itemsize

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def own(self) -> int:
        """Tokens of this rank where sequence parallelism cuts them."""
        return self.tokens // self.spread.tensor

    @property
    def gathered(self) -> int:
        """Tokens that this rank's experts see."""
        return self.own * self.spread.expert * self.spread.expert_tensor

    def norm(self, needs: bool, trains: bool) -> int:
        """Its input, and a number for each token in fp32."""
        return self.own * (self.shape.hidden_size * self.size + FP32) * (needs or trains)

    def mixing(self, needs: bool) -> int:
        """Attention with its norms."""
        shape = self.shape
        trains = ParamGroup.ATTENTION in self.trains
        tensor = self.spread.tensor
        q = shape.hidden_size // tensor
        kv = shape.num_kv_heads * shape.head_dim // tensor
        kept = self.own * shape.hidden_size * self.size * trains
        needs = needs or trains
        if needs:
            kept += self.tokens * ((q + kv) * self.size + 2 * FP32)
            # A value is a view of the fused projection, which stays whole.
            kept += self.tokens * ((q + kv + (q + 2 * kv) + q) * self.size + shape.num_heads // tensor * FP32)
            kept += self.tokens * self.length * self.size * (self.attention == "mask")
        return kept + self.norm(needs, ParamGroup.BLOCK_NORM in self.trains)

    def ffn(self, needs: bool) -> int:
        """The FFN or the experts, with their norm."""
        shape = self.shape
        router = ParamGroup.ROUTER in self.trains
        h = shape.hidden_size
        f = shape.intermediate_size // self.spread.expert_tensor
        experts = shape.num_experts
        norm = ParamGroup.BLOCK_NORM in self.trains
        if not experts:
            trains = ParamGroup.FFN in self.trains
            f = shape.intermediate_size // self.spread.tensor
            kept = self.own * h * self.size * trains + self.tokens * f * self.size * (
                2 * (needs or trains) + trains
            )
            return kept + self.norm(needs or trains, norm)
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
            kept += (
                self.own * FP32 * (experts + (experts + 1) * self.z_loss)
                + self.gathered * experts * self.size
            )
        for (
            trains
        ) in local:  # both halves of the first product, and the output for the gradient of its weight
            kept += self.gathered * self.size * (2 * f * (weighted or trains) + h * weighted)
        changed = weighted or not self.trains.isdisjoint({ParamGroup.DOMAIN_EXPERT, ParamGroup.ANCHOR_EXPERT})
        return kept + self.norm(changed, norm)

    def temporaries(self) -> int:
        """Of a layer at work, after measurements on a CPU: experts make their intermediates again, four times
        their width, beside the gradients of input, output and sum; a dense FFN three times, as the one it
        kept is gone by then. A norm takes three times the hidden size in fp32, and four times in 16 bit."""
        h = self.shape.hidden_size
        f = self.shape.intermediate_size
        if self.shape.num_experts:
            ffn = self.gathered * self.size * (4 * f // self.spread.expert_tensor + 3 * h)
        else:
            ffn = self.tokens * self.size * (3 * f // self.spread.tensor + h)
        return max(ffn, self.own * FP32 * (3 + (self.size != FP32)) * h)

    def layers(self, needs: bool) -> list[int]:
        """What each layer of this rank keeps."""
        found = []
        for _ in range(self.shape.num_layers // self.spread.pipeline):
            mixing = self.mixing(needs)
            needs = needs or not self.trains.isdisjoint({ParamGroup.ATTENTION, ParamGroup.BLOCK_NORM})
            found.append(mixing + self.ffn(needs))
            needs = needs or not self.trains.isdisjoint(_FFN)
        return found


_FFN = {ParamGroup.FFN, ParamGroup.ANCHOR_EXPERT, ParamGroup.DOMAIN_EXPERT, ParamGroup.ROUTER}


def activations(one: Pass, *, recompute: bool, micro_batches: int) -> Activations:
    """Of a step of ``micro_batches`` on this rank, in Megatron's order: one forward, one backward (1F1B)."""
    shape = one.shape
    spread = one.spread
    place = one.place
    first = place.pipeline == 0
    last = place.pipeline == spread.pipeline - 1
    embedding = ParamGroup.EMBEDDING in one.trains
    layers = one.layers(embedding or recompute or not first)
    kept = one.tokens * (
        8 * (first and embedding) + 2 * shape.head_dim * FP32
    )  # ids; RoPE's cosines and sines
    kept += len(layers) * one.own * shape.hidden_size * one.size if recompute else sum(layers)
    logits = logits_kept = 0
    if last:
        head = ParamGroup.LM_HEAD in one.trains
        final = ParamGroup.FINAL_NORM in one.trains
        kept += one.norm(True, final) + one.own * shape.hidden_size * one.size * head
        rows = padded_vocab_size(shape.vocab_size, spread.tensor, VOCABULARY_UNIT[shape.dtype])
        logits_kept, logits = cross_entropy(one.tokens, rows // spread.tensor, one.size)
    # The last rank has one micro-batch under way, the one before it two, and so on.
    under_way = min(micro_batches, spread.pipeline - place.pipeline)
    working = one.temporaries() + (max(layers) if recompute else 0)
    return Activations(kept=kept * under_way, logits=logits, logits_kept=logits_kept, working=working)
