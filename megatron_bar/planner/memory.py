"""Bytes of a stage that stay on one rank: weights, gradients, optimizer state, the sampler's cache.
Arithmetic alone, exact.

What trains lies in Megatron's buffers, one for the experts where they are spread otherwise than the rest, one
for the rest. A buffer holds its parameters from the last to the first, each from a multiple of 64 values on,
and ends at a multiple of 128 and of the ranks that share its optimizer (Megatron-Core,
optimizer/param_layout.py; on the first pipeline rank DDP pads so once every 40 M values, which is left out
here). It exists twice: as weights in the model's dtype and as gradients in fp32. Each of these ranks updates
an equal range of it, with Adam's two moments for every value in that range, torch's count of steps for every
parameter there, and, where the model is not in fp32 itself, the fp32 values; a model in fp32 is updated in
place. What is frozen is its weights and nothing else. The anchor's row of a router is masked: it has a
gradient and state like the rows that train.
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

ALIGN = 64
END = 128
"""Values: where a parameter begins in a buffer, and what a buffer's length is a multiple of."""
FP32 = 4
MOMENTS = 2 * FP32
STEP = FP32


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes of one rank."""

    weights: int
    gradients: int
    optimizer: int
    trains: int
    """Of the weights, those of what trains, without the padding."""
    gradient: int
    """The largest of a parameter in the model's dtype, there until it is added to the gradients."""

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
    """A model over ``ranks`` processes: how many hold other layers, columns, experts; what is left is
    data-parallel."""

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
        return cls(
            pipeline=layout.pipeline, tensor=layout.tensor, expert=expert, expert_tensor=cut, ranks=ranks
        )

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
    """Every parameter of the whole model by name, in the model's order: what one of the ranks that it is cut
    over holds."""
    shapes = tensor_shapes(shape)
    found = {}
    for name, op in weight_ops(shape).items():
        expert = expert_index(op.names[0]) is not None
        part = op.cut(
            lambda of: torch.empty(shapes[of], device="meta"), 0, expert_tensor if expert else tensor
        )
        found[name] = Parameter(name=name, group=classify(op.names[0]), expert=expert, numel=part.numel())
    return found


def parameters(shape: ModelConfig, spread: Spread, *, pipeline: int, expert: int) -> list[Parameter]:
    """What the ranks with these layers and experts hold, in the order of their modules."""
    layers = _share(shape.num_layers, spread.pipeline, pipeline)
    experts = _share(shape.num_experts, spread.expert, expert)

    def here(name: str) -> bool:
        match name.split("."):
            case ["embedding", *_]:
                return pipeline == 0
            case ["decoder", "layers", layer, "mlp", "experts", "local_experts", index, *_]:
                return int(layer) in layers and int(index) in experts
            case ["decoder", "layers", layer, *_]:
                return int(layer) in layers
            case _:
                return pipeline == spread.pipeline - 1

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
        values = [0] * self.ranks
        count = [0] * self.ranks
        for start, stop in self.ranges():
            for rank in range(start // share, -(-stop // share)):
                values[rank] += min(stop, (rank + 1) * share) - max(start, rank * share)
                count[rank] += 1
        return list(zip(values, count, strict=True))


@lru_cache(maxsize=4096)
def _owned(numels: tuple[int, ...], ranks: int) -> tuple[int, list[tuple[int, int]]]:
    buffer = Buffer(numels, ranks)
    return buffer.length, buffer.owned() if numels else [(0, 0)] * ranks


@dataclass(frozen=True)
class _Held:
    """Of the ranks with the same layers and experts."""

    frozen: int
    """Values."""
    numels: tuple[int, ...]
    """Of what trains."""
    rest: tuple[int, list[tuple[int, int]]]
    """A buffer's length and, by rank, what is updated."""
    experts: tuple[int, list[tuple[int, int]]]
    """The same of the experts' own buffer."""


@lru_cache(maxsize=4096)
def _held(shape: ModelConfig, policy: FreezePolicy, spread: Spread, pipeline: int, expert: int) -> _Held:
    held = parameters(shape, spread, pipeline=pipeline, expert=expert)
    trains = [part for part in held if part.group in policy.trains]
    split: dict[bool, list[int]] = {False: [], True: []}
    for part in trains:
        split[part.expert and spread.apart].append(part.numel)
    numels = tuple(part.numel for part in trains)
    return _Held(
        sum(part.numel for part in held) - sum(numels),
        numels,
        _owned(tuple(split[False]), spread.data),
        _owned(tuple(split[True]), spread.expert_data),
    )


def states(shape: ModelConfig, policy: FreezePolicy, spread: Spread, place: Place) -> States:
    """Of the rank at ``place``, once the optimizer has moved."""
    size = DTYPES[shape.dtype].itemsize
    held = _held(shape, policy, spread, place.pipeline, place.expert)
    length = held.rest[0] + held.experts[0]
    values, count = held.rest[1][place.data]
    more, others = held.experts[1][place.expert_data]
    return States(
        weights=(held.frozen + length) * size,
        gradients=length * FP32,
        optimizer=(values + more) * (MOMENTS + FP32 * (size != FP32)) + (count + others) * STEP,
        trains=sum(held.numels) * size,
        gradient=max(held.numels, default=0) * size,
    )


def cache(shape: ModelConfig, spread: Spread, *, rows: int, length: int) -> int:
    """Bytes of the sampler's keys and values (models/attention.py): one row more than ``rows``, which belongs
    to none."""
    values = (rows + 1) * length * shape.head_dim * (shape.num_kv_heads // spread.tensor)
    return 2 * values * (shape.num_layers // spread.pipeline) * DTYPES[shape.dtype].itemsize
