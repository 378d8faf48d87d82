"""Bytes that a rank exchanges with others in one optimizer step, by formula. docs/scaling.md has the table.

Collectives are rings, as in NCCL and gloo for large tensors: of a tensor of N bytes over r ranks each rank
sends (r - 1) / r N in an all-gather or reduce-scatter, and twice that in an all-reduce. Left out: numbers
that do not grow with the model or the batch (token counts, losses, the gradient norm), the padding of
buffers, loading and saving, sampling, and the exchange of RLVR's rollouts. The backward pass exchanges a
gradient only where something below or in the layer needs it, as in flops.py. Sources: Megatron-LM's sequence
parallelism (arXiv 2205.05198), ZeRO (arXiv 1910.02054), models/moe.py.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megatron_bar.conversion.parameters import DTYPES
from megatron_bar.planner.memory import FP32
from megatron_bar.training.stage import Stage
from megatron_bar.weights.groups import POLICIES, ParamGroup, classify, expert_index
from megatron_bar.weights.hf_config import ModelConfig, tensor_shapes

PARTS = ("layers", "experts", "vocabulary", "pipeline", "data")


@dataclass(frozen=True, kw_only=True)
class Exchange:
    part: str
    """Name of the part, one of `PARTS`."""
    op: Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send"]
    ranks: int
    """Ranks of the group; a send has two."""
    payload: float
    """Bytes of the whole tensors that are gathered, summed or sent."""

    @property
    def sent(self) -> float:
        """Bytes that leave one rank."""
        if self.op == "send":
            return self.payload
        return (2 if self.op == "all_reduce" else 1) * self.payload * (self.ranks - 1) / self.ranks


def exchanges(shape: ModelConfig, stage: Stage, world_size: int, *, pipeline_rank: int = 0) -> list[Exchange]:
    """Returns the exchanges of one step of ``stage`` by a rank of that pipeline rank, the one among them with
    the most that trains."""
    step = _Step(shape, stage, world_size, pipeline_rank)
    every = [*step.layers(), *step.vocabulary(), *step.pipeline(), *step.data()]
    return [exchange for exchange in every if exchange.ranks > 1 and exchange.payload]


def bubble(stage: Stage, world_size: int) -> float:
    """Returns the share of a step in which a pipeline rank waits: (p - 1) / (m + p - 1) with m micro-batches
    (1F1B)."""
    pipeline = stage.parallel.pipeline
    return (pipeline - 1) / (micro_batches(stage, world_size) + pipeline - 1)


def micro_batches(stage: Stage, world_size: int) -> int:
    """Returns the micro-batches of one data-parallel rank in a step."""
    layout = stage.parallel
    return stage.batch * layout.tensor * layout.pipeline // (world_size * stage.micro_batch)


class _Step:
    """The exchanges of one step, by part."""

    def __init__(self, shape: ModelConfig, stage: Stage, world_size: int, pipeline_rank: int):
        self.shape = shape
        self.stage = stage
        self.world_size = world_size
        self.rank = pipeline_rank
        self.layout = stage.parallel
        self.policy = POLICIES[stage.policy]
        self.trains = self.policy.trains
        self.spread, self.cut = self.layout.expert_sizes(shape)
        self.micro_batches = micro_batches(stage, world_size)
        self.tokens = stage.micro_batch * stage.sequence
        self.width = DTYPES[shape.dtype].itemsize
        self.hidden = self.tokens * shape.hidden_size * self.width
        """Bytes of the hidden states of a micro-batch, over all tensor ranks."""
        count = shape.num_layers // self.layout.pipeline
        self.mine = range(pipeline_rank * count, (pipeline_rank + 1) * count)

    def _times(self, part: str, op: str, ranks: int, payload: float) -> Exchange:
        """Returns the exchange that each micro-batch makes, times the micro-batches."""
        return Exchange(part=part, op=op, ranks=ranks, payload=payload * self.micro_batches)

    def layers(self) -> Iterator[Exchange]:
        """Yields the exchanges of every layer. Whether a gradient is needed depends on what trains below: in
        earlier layers, in a norm, in attention, in the FFN."""
        group = ParamGroup
        trains = self.trains
        forward = 2 if self.stage.recompute else 1
        # With recomputation the embedding's output asks for a gradient, whatever trains (see
        # models/build.py).
        needs = group.EMBEDDING in trains or self.stage.recompute or (self.rank > 0 and self._below())
        attention = group.ATTENTION in trains
        norm = group.BLOCK_NORM in trains
        ffn = not trains.isdisjoint({group.FFN, group.ANCHOR_EXPERT, group.DOMAIN_EXPERT, group.ROUTER})
        block = self.shape.block
        for _ in self.mine:
            needs = needs or (norm and block.norms == "before")
            yield from self._column_row(forward, needs, attention)
            if block.qk_norm == "width":
                # The sums of squares of queries and keys, forwards and backwards.
                sums = 2 * FP32 * self.tokens * (forward + (needs or attention))
                yield self._times("layers", "all_reduce", self.layout.tensor, sums)
            needs = needs or attention or norm
            if not self.shape.num_experts:
                yield from self._column_row(forward, needs, group.FFN in trains)
            elif self.spread == 1:
                yield from self._all_experts(forward, needs)
            else:
                yield from self._dispatched(forward, needs)
            needs = needs or norm or ffn

    def _below(self) -> bool:
        """Returns whether anything in the layers of an earlier pipeline rank trains."""
        outside = {ParamGroup.EMBEDDING, ParamGroup.LM_HEAD, ParamGroup.FINAL_NORM}
        return not self.trains.isdisjoint(set(ParamGroup) - outside)

    def _column_row(self, forward: int, needs: bool, trains: bool) -> Iterator[Exchange]:
        """Yields the exchanges of a column-parallel product followed by a row-parallel one: the sequence is
        gathered before, and scattered behind.

        A frozen matrix saves the second gathering of its input, which its own gradient would need.
        """
        n = self.layout.tensor
        yield self._times("layers", "all_gather", n, self.hidden * (forward + trains + (needs or trains)))
        yield self._times("layers", "reduce_scatter", n, self.hidden * (forward + needs))

    def _all_experts(self, forward: int, needs: bool) -> Iterator[Exchange]:
        """Yields the exchanges where every expert sees every token: tokens and their weights go to every rank
        of the group, sums come back, and the other way in the backward pass."""
        group = ParamGroup
        g = self.spread * self.cut
        tokens = self.hidden
        weights = self.tokens * self.shape.num_experts * self.width
        if g > 1:
            # The group gathers what its ranks hold, each a tensor rank's share of the sequence.
            tokens, weights = (size * g / self.layout.tensor for size in (tokens, weights))
        weighed = needs or group.ROUTER in self.trains
        out = weighed or not self.trains.isdisjoint({group.ANCHOR_EXPERT, group.DOMAIN_EXPERT})
        few = any(k < self.shape.num_experts for k in self.shape.active)
        chosen = weights / self.width if few else 0  # a byte for each expert
        yield self._times("experts", "all_gather", g, (tokens + weights + chosen) * forward + tokens * out)
        yield self._times("experts", "reduce_scatter", g, tokens * (forward + needs) + weights * weighed)

    def _dispatched(self, forward: int, needs: bool) -> Iterator[Exchange]:
        """Yields the exchanges where each token goes to its experts and back, with a weight in fp32; routing
        is assumed to be balanced."""
        group = ParamGroup
        copies = self.shape.experts_per_token / self.layout.tensor
        tokens = self.hidden * copies
        weights = FP32 * self.tokens * copies
        trains = not self.trains.isdisjoint({group.ANCHOR_EXPERT, group.DOMAIN_EXPERT, group.ROUTER})
        weighed = needs or group.ROUTER in self.trains
        passes = 2 * forward + needs + (needs or trains)
        yield self._times("experts", "all_to_all", self.spread, tokens * passes)
        yield self._times("experts", "all_to_all", self.spread, weights * (forward + weighed))

    def vocabulary(self) -> Iterator[Exchange]:
        """Yields the exchanges of embedding and head: embeddings are summed into shares of the sequence,
        which the head gathers, and sums the gradients of; the loss exchanges three numbers per token. As if
        all tokens were learnt."""
        group = ParamGroup
        n = self.layout.tensor
        if self.rank == 0:
            yield self._times("vocabulary", "reduce_scatter", n, self.hidden)
            yield self._times("vocabulary", "all_gather", n, self.hidden * (group.EMBEDDING in self.trains))
        if self.rank == self.layout.pipeline - 1:
            needs = self.stage.recompute or not self.trains <= {group.LM_HEAD}
            yield self._times("vocabulary", "all_gather", n, self.hidden + n * FP32 * self.tokens)
            yield self._times("vocabulary", "all_reduce", n, self.hidden * needs + FP32 * self.tokens)

    def pipeline(self) -> Iterator[Exchange]:
        """Yields what neighbours send: a tensor rank's share of the sequence to the next rank, its gradient
        back."""
        neighbours = (self.rank < self.layout.pipeline - 1) + (self.rank > 0)
        yield self._times("pipeline", "send", 2, neighbours * self.hidden / self.layout.tensor)

    def data(self) -> Iterator[Exchange]:
        """Yields the exchanges of the optimizer: gradients of what trains, in fp32, go to the ranks that
        update it, and parameters come back; gradients of whole parameters are also summed over the tensor
        ranks."""
        n = self.layout.tensor
        per_stage = self.world_size // self.layout.pipeline
        outside = [(name, math.prod(size)) for name, size in self._trained() if expert_index(name) is None]
        whole = sum(values for name, values in outside if _is_whole(name))
        cut = sum(values for name, values in outside if not _is_whole(name))
        dense = whole + cut / n
        experts = self._expert_values()
        # Experts in groups of their own have an optimizer of their own, and each of the two has Megatron
        # gather everything.
        gathers = 2 if self.layout.expert > 1 and dense and experts else 1
        for values, ranks in ((dense, per_stage // n), (experts, per_stage // (self.spread * self.cut))):
            yield Exchange(part="data", op="reduce_scatter", ranks=ranks, payload=FP32 * values)
            yield Exchange(part="data", op="all_gather", ranks=ranks, payload=self.width * values * gathers)
        yield Exchange(part="data", op="all_reduce", ranks=n, payload=FP32 * whole)

    def _expert_values(self) -> float:
        """Returns the values of the experts that train, on the rank that has most of them."""
        experts_per_rank = max(self.shape.num_experts, 1) // self.spread
        counts = [0] * self.spread
        for name, size in self._trained():
            if expert_index(name) is not None:
                counts[expert_index(name) // experts_per_rank] += math.prod(size)
        return max(counts) / self.cut

    def _trained(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields the tensors of this pipeline rank that train."""
        for name, size in tensor_shapes(self.shape).items():
            parts = name.split(".")
            if parts[1] == "layers":
                here = int(parts[2]) in self.mine
            else:
                here = self.rank == (0 if parts[1] == "embed_tokens" else self.layout.pipeline - 1)
            if here and self.policy.trainable(name):
                yield name, size


def _is_whole(name: str) -> bool:
    """Returns whether every tensor rank has all of the tensor."""
    return name.endswith("norm.weight") or classify(name) is ParamGroup.ROUTER
