"""Bytes of a stage that stay on one rank from step to step: weights, gradients, optimizer state. Arithmetic alone, exact.

What trains lies in Megatron's buffers, one for the experts where they are spread otherwise than the rest, one for the rest. A
buffer holds its parameters from the last to the first, each from a multiple of 64 values on, and ends at a multiple of 128 and
of the ranks that share its optimizer (Megatron-Core, optimizer/param_layout.py; DDP that does not overlap makes one bucket of
it). It exists twice: as weights in the model's dtype and as gradients in fp32. Each of these ranks updates an equal range of it,
with Adam's two moments for every value in that range, torch's count of steps for every parameter there, and, where the model
is not in fp32 itself, the fp32 values; a model in fp32 is updated in place. What is frozen is its weights and nothing else. The
anchor's row of a router is masked: it has a gradient and state like the rows that train.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from megatron_bar.conversion.parameters import DTYPES, weight_ops
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.weights.groups import FreezePolicy, ParamGroup, classify, expert_index
from megatron_bar.weights.hf_config import ModelConfig, tensor_shapes

ALIGN, END = 64, 128
"""Values: where a parameter begins in a buffer, and what a buffer's length is a multiple of."""
FP32 = 4
MOMENTS, STEP = 2 * FP32, FP32


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes of one rank."""

    weights: int
    gradients: int
    optimizer: int
    trains: int
    """Of the weights, those of what trains, without the padding."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True, kw_only=True)
class Place:
    """One rank among all, in Megatron's order: tensor fastest, then (expert,) data, then pipeline."""

    pipeline: int
    data: int
    expert: int
    """Of the ranks with different experts."""
    expert_data: int
    """Of the ranks with the same experts."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A model over ``ranks`` processes: how many hold other layers, columns, experts; what is left is data-parallel."""

    pipeline: int
    tensor: int
    expert: int
    """Ranks with different experts."""
    expert_tensor: int
    """Ranks over which each expert is cut."""
    ranks: int

    @classmethod
    def of(cls, shape: ModelConfig, layout: ParallelConfig, ranks: int) -> "Spread":
        expert, cut = layout.expert_sizes(shape)
        return cls(pipeline=layout.pipeline, tensor=layout.tensor, expert=expert, expert_tensor=cut, ranks=ranks)

    @property
    def data(self) -> int:
        return self.ranks // (self.pipeline * self.tensor)

    @property
    def expert_data(self) -> int:
        return self.ranks // (self.pipeline * self.expert * self.expert_tensor)

    @property
    def apart(self) -> bool:
        """Whether experts have ranks, and with them a buffer, of their own."""
        return self.expert > 1 or self.expert_tensor != self.tensor

    def place(self, rank: int) -> Place:
        pipeline, inside = divmod(rank, self.ranks // self.pipeline)
        expert_data, expert = divmod(inside // self.expert_tensor, self.expert)
        return Place(pipeline=pipeline, data=inside // self.tensor, expert=expert, expert_data=expert_data)

    def places(self) -> list[Place]:
        """All that differ; tensor-parallel ranks hold equally much."""
        return list(dict.fromkeys(map(self.place, range(self.ranks))))


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A rank's part of one."""

    name: str
    group: ParamGroup
    expert: bool
    numel: int


@lru_cache
def _numels(shape: ModelConfig, tensor: int, expert_tensor: int) -> dict[str, Parameter]:
    """Every parameter of the whole model by name, in the model's order: what one of the ranks that it is cut over holds."""
    shapes, found = tensor_shapes(shape), {}
    for name, op in weight_ops(shape).items():
        expert = expert_index(op.names[0]) is not None
        part = op.cut(lambda of: torch.empty(shapes[of], device="meta"), 0, expert_tensor if expert else tensor)
        found[name] = Parameter(name=name, group=classify(op.names[0]), expert=expert, numel=part.numel())
    return found


def parameters(shape: ModelConfig, spread: Spread, place: Place) -> list[Parameter]:
    """What the rank holds, in the order of its modules."""
    layers = _share(shape.num_layers, spread.pipeline, place.pipeline)
    experts = _share(shape.num_experts, spread.expert, place.expert)

    def here(name: str) -> bool:
        match name.split("."):
            case ["embedding", *_]:
                return place.pipeline == 0
            case ["decoder", "layers", layer, *rest]:
                expert = rest[rest.index("local_experts") + 1] if "local_experts" in rest else None
                return int(layer) in layers and (expert is None or int(expert) in experts)
            case _:
                return place.pipeline == spread.pipeline - 1

    return [part for name, part in _numels(shape, spread.tensor, spread.expert_tensor).items() if here(name)]


def _share(total: int, ranks: int, rank: int) -> range:
    return range(total * rank // ranks, total * (rank + 1) // ranks)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@dataclass(frozen=True)
class Buffer:
    """One of Megatron's, over ``ranks`` that share its optimizer."""

    numels: tuple[int, ...]
    """Of its parameters, in the model's order."""
    ranks: int

    def ranges(self) -> Iterator[tuple[int, int]]:
        """From where to where each parameter lies, from the last to the first."""
        start = 0
        for numel in reversed(self.numels):
            start = _up(start, ALIGN)
            yield start, start + numel
            start += numel

    @property
    def length(self) -> int:
        """With the padding."""
        return _up(max((stop for _, stop in self.ranges()), default=0), math.lcm(END, self.ranks))

    def owned(self) -> list[tuple[int, int]]:
        """By rank: values that it updates, and parameters that these belong to."""
        share = self.length // self.ranks
        values, count = [0] * self.ranks, [0] * self.ranks
        for start, stop in self.ranges():
            for rank in range(start // share, -(-stop // share)):
                values[rank] += min(stop, (rank + 1) * share) - max(start, rank * share)
                count[rank] += 1
        return list(zip(values, count, strict=True))


@lru_cache(maxsize=4096)
def _owned(numels: tuple[int, ...], ranks: int) -> tuple[int, list[tuple[int, int]]]:
    buffer = Buffer(numels, ranks)
    return buffer.length, buffer.owned() if numels else [(0, 0)] * ranks


def states(shape: ModelConfig, policy: FreezePolicy, spread: Spread, place: Place) -> States:
    """Of the rank at ``place``, once the optimizer has moved."""
    size = DTYPES[shape.dtype].itemsize
    held = parameters(shape, spread, place)
    trains = [part for part in held if part.group in policy.trains]
    spread_apart = [part.numel for part in trains if part.expert and spread.apart]
    rest = [part.numel for part in trains if not (part.expert and spread.apart)]
    frozen = sum(part.numel for part in held) - sum(part.numel for part in trains)
    value = MOMENTS + (0 if size == FP32 else FP32)
    weights, gradients, optimizer = frozen * size, 0, 0
    for numels, ranks, rank in (
        (rest, spread.data, place.data),
        (spread_apart, spread.expert_data, place.expert_data),
    ):
        length, owned = _owned(tuple(numels), ranks)
        values, count = owned[rank]
        weights, gradients = weights + length * size, gradients + length * FP32
        optimizer += values * value + count * STEP
    return States(weights=weights, gradients=gradients, optimizer=optimizer, trains=sum(p.numel for p in trains) * size)
