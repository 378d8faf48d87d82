"""Bytes of a stage that stay on one rank: weights, gradients, optimizer state, the sampler's cache, computed
exactly.

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
"""Values that a parameter's start in a buffer is a multiple of."""
END = 128
"""Values that a buffer's length is a multiple of."""
FP32 = 4
MOMENTS = 2 * FP32
STEP = FP32


@dataclass(frozen=True, kw_only=True)
class States:
    """What one rank has; bytes, where nothing else is said."""

    weights: int
    gradients: int
    optimizer: int
    trains: int
    """Bytes of the weights that train, without the padding."""
    gradient: int
    """Bytes of the largest parameter's gradient in the model's dtype, which is there until it is added to the
    gradients."""
    owned: int
    """Number of values that the rank updates."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True, kw_only=True)
class Place:
    """One rank among all, in Megatron's order: tensor fastest, then (expert,) data, then pipeline."""

    pipeline: int
    data: int
    expert: int
    """Number among the ranks with different experts."""
    expert_data: int
    """Number among the ranks with the same experts."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A model over ``ranks`` processes: how many have different layers, columns, experts; what is left is
    data-parallel."""

    pipeline: int
    tensor: int
    expert: int
    """Number of ranks with different experts."""
    expert_tensor: int
    """Number of ranks over which each expert is cut."""
    ranks: int

    @classmethod
    def of(cls, shape: ModelConfig, layout: ParallelConfig, ranks: int) -> "Spread":
        """Returns the spread of ``shape`` over ``ranks`` in a layout."""
        expert, cut = layout.expert_sizes(shape)
        pipeline = layout.pipeline
        return cls(pipeline=pipeline, tensor=layout.tensor, expert=expert, expert_tensor=cut, ranks=ranks)

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

    @property
    def alone(self) -> bool:
        """Whether every rank has the whole model and exchanges nothing inside it."""
        return (self.pipeline, self.tensor, self.expert, self.expert_tensor) == (1, 1, 1, 1)

    def place(self, rank: int) -> Place:
        """Returns where ``rank`` is in the layout."""
        pipeline, inside = divmod(rank, self.ranks // self.pipeline)
        expert_data, expert = divmod(inside // self.expert_tensor, self.expert)
        return Place(pipeline=pipeline, data=inside // self.tensor, expert=expert, expert_data=expert_data)

    def places(self) -> list[Place]:
        """Returns all places that differ; tensor-parallel ranks hold equally much."""
        return list(dict.fromkeys(map(self.place, range(self.ranks))))


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A rank's part of a parameter."""

    name: str
    group: ParamGroup
    expert: bool
    numel: int


@lru_cache
def _numels(shape: ModelConfig, tensor: int, expert_tensor: int) -> dict[str, Parameter]:
    """Returns every parameter of the whole model by name, in the model's order: the part of one of the ranks
    that it is cut over."""
    shapes = tensor_shapes(shape)
    by_name = {}
    for name, op in weight_ops(shape).items():
        expert = expert_index(op.names[0]) is not None
        ranks = expert_tensor if expert else tensor
        part = op.cut(lambda tensor_name: torch.empty(shapes[tensor_name], device="meta"), 0, ranks)
        by_name[name] = Parameter(name=name, group=classify(op.names[0]), expert=expert, numel=part.numel())
    return by_name


def parameters(shape: ModelConfig, spread: Spread, *, pipeline: int, expert: int) -> list[Parameter]:
    """Returns what the ranks with these layers and experts hold, in the order of their modules."""
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
    """One of Megatron's buffers, over ``ranks`` that share its optimizer."""

    numels: tuple[int, ...]
    """Sizes of its parameters, in the model's order."""
    ranks: int

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of each parameter, from the last to the first."""
        start = 0
        for numel in reversed(self.numels):
            start = _up(start, ALIGN)
            yield start, start + numel
            start += numel

    @property
    def length(self) -> int:
        """Number of values, the padding included."""
        return _up(max((stop for _, stop in self.ranges()), default=0), math.lcm(END, self.ranks))

    def owned(self) -> list[tuple[int, int]]:
        """Returns for each rank how many values it updates, and to how many parameters these belong."""
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
class _Contents:
    """What the ranks with the same layers and experts hold."""

    frozen: int
    """Number of values that are frozen."""
    numels: tuple[int, ...]
    """Sizes of the parameters that train."""
    rest: tuple[int, list[tuple[int, int]]]
    """Length of the main buffer and, by rank, what is updated there (`Buffer.owned`)."""
    experts: tuple[int, list[tuple[int, int]]]
    """Length of the experts' own buffer, where they have one, and what is updated there."""


@lru_cache(maxsize=4096)
def _contents(
    shape: ModelConfig, policy: FreezePolicy, spread: Spread, pipeline: int, expert: int
) -> _Contents:
    parts = parameters(shape, spread, pipeline=pipeline, expert=expert)
    trains = [part for part in parts if part.group in policy.trains]
    split: dict[bool, list[int]] = {False: [], True: []}
    for part in trains:
        split[part.expert and spread.apart].append(part.numel)
    numels = tuple(part.numel for part in trains)
    return _Contents(
        sum(part.numel for part in parts) - sum(numels),
        numels,
        _owned(tuple(split[False]), spread.data),
        _owned(tuple(split[True]), spread.expert_data),
    )


def states(shape: ModelConfig, policy: FreezePolicy, spread: Spread, place: Place) -> States:
    """Returns the states of the rank at ``place``, after the first optimizer step."""
    size = DTYPES[shape.dtype].itemsize
    contents = _contents(shape, policy, spread, place.pipeline, place.expert)
    length = contents.rest[0] + contents.experts[0]
    values, count = contents.rest[1][place.data]
    expert_values, expert_count = contents.experts[1][place.expert_data]
    per_value = MOMENTS + FP32 * (size != FP32)
    return States(
        weights=(contents.frozen + length) * size,
        gradients=length * FP32,
        optimizer=(values + expert_values) * per_value + (count + expert_count) * STEP,
        trains=sum(contents.numels) * size,
        gradient=max(contents.numels, default=0) * size,
        owned=values + expert_values,
    )


def cache(shape: ModelConfig, spread: Spread, *, rows: int, length: int) -> int:
    """Returns the bytes of the sampler's keys and values (models/attention.py); there is one row more than
    ``rows``, for what belongs to none."""
    values = (rows + 1) * length * shape.head_dim * (shape.num_kv_heads // spread.tensor)
    return 2 * values * (shape.num_layers // spread.pipeline) * DTYPES[shape.dtype].itemsize
