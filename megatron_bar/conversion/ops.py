"""How a parameter of one tensor-parallel rank is cut from the tensors of a folder, and put together again.

Every operation is written once in each direction and is exact: ``join`` of all ranks' ``cut`` gives the
tensors back. ``cut`` reads through a function ``read(name)`` that returns something sliceable (safetensors'
lazy slice or a tensor), so that a rank touches only its own bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Read = Callable[[str], Tensor]


class WeightOp(Protocol):
    @property
    def names(self) -> tuple[str, ...]:
        """The folder's tensors behind this parameter."""

    @property
    def sharded(self) -> bool:
        """Whether tensor-parallel ranks hold different parts."""

    def cut(self, read: Read, rank: int, size: int) -> Tensor:
        """Returns the part of rank ``rank`` of ``size``."""

    def join(self, parts: list[Tensor]) -> dict[str, Tensor]:
        """Returns the folder's tensors from every rank's part, in rank order."""


def _share(total: int, rank: int, size: int) -> slice:
    assert total % size == 0, (total, size)
    width = total // size
    return slice(rank * width, (rank + 1) * width)


def _shape(tensor) -> list[int]:
    return list(tensor.shape) if isinstance(tensor, Tensor) else tensor.get_shape()


def _cat(parts: list[Tensor], dim: int = 0) -> Tensor:
    """Concatenates; returns a single part as it is: one of a mapped file costs no memory."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


@dataclass(frozen=True)
class Whole:
    """A parameter replicated on every rank."""

    name: str
    sharded = False

    @property
    def names(self):
        return (self.name,)

    def cut(self, read, rank, size):
        return read(self.name)[:]

    def join(self, parts):
        return {self.name: parts[0]}


@dataclass(frozen=True)
class VocabularyRows:
    """A parameter cut along the vocabulary, which is padded with zero rows until every rank has the same
    number of rows, a multiple of ``unit``."""

    name: str
    total: int
    unit: int = 1
    sharded = True

    @property
    def names(self):
        return (self.name,)

    def cut(self, read, rank, size):
        width = -(-self.total // (size * self.unit)) * self.unit
        start = min(rank * width, self.total)
        stop = min((rank + 1) * width, self.total)
        part = read(self.name)[start:stop]
        padding = [part.new_zeros(width - len(part), part.shape[1])] if len(part) < width else []
        return _cat([part, *padding])

    def join(self, parts):
        return {self.name: _cat(parts)[: self.total]}


@dataclass(frozen=True)
class Columns:
    """A parameter cut along the input: the second product of attention and FFN."""

    name: str
    sharded = True

    @property
    def names(self):
        return (self.name,)

    def cut(self, read, rank, size):
        whole = read(self.name)
        return whole[:, _share(_shape(whole)[1], rank, size)]

    def join(self, parts):
        return {self.name: _cat(parts, dim=1)}


@dataclass(frozen=True)
class GateUp:
    """Gate and up projection of a SwiGLU, stacked; every rank holds rows of both."""

    gate: str
    up: str
    sharded = True

    @property
    def names(self):
        return (self.gate, self.up)

    def cut(self, read, rank, size):
        halves = (read(name) for name in self.names)
        return torch.cat([half[_share(_shape(half)[0], rank, size)] for half in halves])

    def join(self, parts):
        gates, ups = zip(*(part.chunk(2) for part in parts), strict=True)
        return {self.gate: torch.cat(gates), self.up: torch.cat(ups)}


@dataclass(frozen=True)
class QueryKeyValue:
    """Megatron's fused projection: per key/value head its query heads, then the key, then the value."""

    query: str
    key: str
    value: str
    groups: int
    """Key/value heads of the whole model."""
    per_group: int
    """Query heads for each."""
    width: int
    """Features of one head."""
    sharded = True

    @property
    def names(self):
        return (self.query, self.key, self.value)

    def cut(self, read, rank, size):
        parts = []
        for name, heads in zip(self.names, (self.per_group, 1, 1), strict=True):
            rows = _share(self.groups * heads * self.width, rank, size)
            parts.append(read(name)[rows].unflatten(0, (self.groups // size, heads * self.width)))
        return torch.cat(parts, dim=1).flatten(0, 1)

    def join(self, parts):
        fused = _cat(parts).unflatten(0, (self.groups, (self.per_group + 2) * self.width))
        pieces = fused.split([self.per_group * self.width, self.width, self.width], dim=1)
        return {name: piece.flatten(0, 1) for name, piece in zip(self.names, pieces, strict=True)}
