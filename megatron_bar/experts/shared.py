"""How the tensors that all experts share become one: by rows, in float64, from lazy views of the inputs'
files.

The first tensor is the base (the branched folder's), the others are the experts', in order; a delta is an
expert's tensor less the base. Only ``mean`` is BAR's; the others are there to compare it with.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from blake3 import blake3
from torch import Tensor

from megatron_bar.errors import BarError
from megatron_bar.experts.choices import Method

_BLOCK_VALUES = 1 << 16
"""Values of a block of rows: so many stay in a core's cache in float64."""


@dataclass(frozen=True, kw_only=True)
class Combination:
    method: Method = "mean"
    """Kind of combination. mean: uniform over all inputs, the base included, as published (arXiv 2604.18473,
    stage 2). weighted: the same with ``weights`` (model soups, arXiv 2203.05482). task-arithmetic: base +
    scale x the sum of deltas (arXiv 2212.04089). ties: each delta cut to its largest entries, a sign elected
    per entry, the mean of those that agree (arXiv 2306.01708). dare: each delta's entries dropped at random
    and the rest scaled up, then the mean of deltas (arXiv 2311.03099). first: the first expert's tensor, as
    in one of the paper's baselines."""
    weights: tuple[float, ...] = ()
    """Weights of the method weighted: one per input, the base first; they are divided by their sum."""
    scale: float = 1.0
    """Factor of the combined delta, in task-arithmetic, ties and dare."""
    density: float = 0.2
    """Share of a delta's entries that ties and dare keep; the papers' 20 % and 10 % are both common."""
    seed: int = 0
    """Seed of dare's random drops, which depend on it, the tensor's name and the expert's number alone."""

    def __post_init__(self):
        if self.method not in COMBINE:
            raise BarError(f"shared expected one of {', '.join(COMBINE)}, got {self.method!r}")
        if (self.method == "weighted") != bool(self.weights):
            raise BarError(
                "shared: weights expected with weighted and with nothing else (--weight NAME=W), "
                f"got {self.method} and {self.weights}"
            )
        if not all(math.isfinite(w) and w >= 0 for w in self.weights) or (
            self.weights and not sum(self.weights)
        ):
            raise BarError(f"shared: weights expected of 0 and more, not all 0, got {self.weights}")
        if not 0 < self.density <= 1 or not math.isfinite(self.scale):
            raise BarError(
                "shared: density expected above 0 and up to 1 and a finite scale, "
                f"got {self.density} and {self.scale}"
            )

    def check(self, inputs: int) -> None:
        """Raises BarError unless there is a weight for each of ``inputs`` folders, where weights are
        given."""
        if self.weights and len(self.weights) != inputs:
            raise BarError(f"shared: expected {inputs} weights, the anchor's first, got {len(self.weights)}")

    def __call__(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """Returns the combination of whole tensors of one shape ``[rows, ...]``."""
        return next(self.blocks(name, tensors, [tensors]))

    def blocks(
        self, name: str, tensors: Sequence[Tensor], blocks: Iterable[Sequence[Tensor]]
    ) -> Iterator[Tensor]:
        """Yields the combination by blocks of rows, in the inputs' dtype; ``blocks`` has, for each block, its
        rows of every tensor.

        ``tensors``, the same ones whole, are read where a method needs to know all of a tensor. Where nothing
        moved the result has the base's bits.
        """
        rows_of = COMBINE[self.method](self, name, tensors)
        for rows in blocks:
            result = torch.empty_like(rows[0])
            for start in range(0, len(result), _rows(result)):
                part = slice(start, start + _rows(result))
                result[part] = rows_of([row[part].double() for row in rows])
            yield result

    def describe(self) -> str:
        details = {
            "weighted": f" by {', '.join(map('{:g}'.format, self.weights))}",
            "task-arithmetic": f" with scale {self.scale:g}",
            "ties": f" with density {self.density:g} and scale {self.scale:g}",
            "dare": f" with density {self.density:g}, scale {self.scale:g} and seed {self.seed}",
        }
        return self.method + details.get(self.method, "")


RowsOf = Callable[[list[Tensor]], Tensor]
"""Function from the inputs' next rows in float64 to the result's."""


def _rows(tensor: Tensor) -> int:
    """Returns how many rows of the tensor make a block."""
    return max(1, _BLOCK_VALUES * len(tensor) // max(1, tensor.numel()))


def _mean(settings: Combination, name: str, tensors: Sequence[Tensor]) -> RowsOf:
    return lambda rows: sum(rows[1:], rows[0].clone()) / len(rows)


def _weighted(settings: Combination, name: str, tensors: Sequence[Tensor]) -> RowsOf:
    total = sum(settings.weights)

    def rows_of(rows: list[Tensor]) -> Tensor:
        # Deltas are weighted, not values: where nothing moved, no weight rounds anything.
        weighted = zip(settings.weights[1:], rows[1:], strict=True)
        return rows[0] + sum((weight / total) * (row - rows[0]) for weight, row in weighted)

    return rows_of


def _task_arithmetic(settings: Combination, name: str, tensors: Sequence[Tensor]) -> RowsOf:
    return lambda rows: rows[0] + settings.scale * sum(row - rows[0] for row in rows[1:])


def _ties(settings: Combination, name: str, tensors: Sequence[Tensor]) -> RowsOf:
    smallest = [_smallest_kept(tensors[0], tensor, settings.density) for tensor in tensors[1:]]

    def rows_of(rows: list[Tensor]) -> Tensor:
        deltas = zip((row - rows[0] for row in rows[1:]), smallest, strict=True)
        kept = torch.stack([delta.masked_fill(delta.float().abs() < least, 0.0) for delta, least in deltas])
        agree = (kept.sign() == kept.sum(0).sign()) & (kept != 0)
        return rows[0] + settings.scale * (kept * agree).sum(0) / agree.sum(0).clamp(min=1)

    return rows_of


def _smallest_kept(base: Tensor, tensor: Tensor, density: float) -> float:
    """Returns the smallest magnitude among the largest entries of a delta, a share ``density`` of all."""
    delta = (tensor.float() - base.float()).abs().flatten()
    kept = max(1, round(density * delta.numel()))
    return delta.kthvalue(delta.numel() - kept + 1).values.item()


def _dare(settings: Combination, name: str, tensors: Sequence[Tensor]) -> RowsOf:
    numbers = range(1, len(tensors))
    seeds = [blake3(f"{settings.seed}/{name}/{number}".encode()).digest(7) for number in numbers]
    generators = [torch.Generator().manual_seed(int.from_bytes(seed)) for seed in seeds]

    def rows_of(rows: list[Tensor]) -> Tensor:
        total = torch.zeros_like(rows[0])
        for row, generator in zip(rows[1:], generators, strict=True):
            total += (row - rows[0]) * (torch.rand(row.shape, generator=generator) < settings.density)
        return rows[0] + settings.scale * total / (settings.density * (len(rows) - 1))

    return rows_of


def _first(settings: Combination, name: str, tensors: Sequence[Tensor]) -> RowsOf:
    return lambda rows: rows[1]


COMBINE: dict[Method, Callable[[Combination, str, Sequence[Tensor]], RowsOf]] = {
    "mean": _mean,
    "weighted": _weighted,
    "task-arithmetic": _task_arithmetic,
    "ties": _ties,
    "dare": _dare,
    "first": _first,
}
MEAN = Combination()
"""The combination that was published."""


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """What the experts did to one tensor, against the base."""

    moved: tuple[float, ...]
    """Norm of each expert's delta over the base's norm."""
    cosines: dict[tuple[int, int], float]
    """Cosine between the deltas of each two experts (numbered from 0) that moved the tensor."""
    conflicts: float
    """Share of entries that one expert raised and another lowered, of those that at least two moved."""
    kept: float
    """Norm of the mean delta over the mean norm of the deltas, the base's delta of 0 included in both: 1
    where all agree."""


def disagreement(tensors: Sequence[Tensor]) -> Disagreement:
    """Compares the experts' tensors with the base, the first of ``tensors``, in the memory of a few rows."""
    count = len(tensors) - 1
    gram = torch.zeros(count, count, dtype=torch.float64)
    base = 0.0
    conflicts = 0
    shared = 0
    mean = 0.0
    for rows in _row_blocks(tensors):
        deltas = torch.stack([(row - rows[0]).flatten() for row in rows[1:]])
        gram += deltas @ deltas.T
        base += float(rows[0].square().sum())
        up = (deltas > 0).sum(0)
        down = (deltas < 0).sum(0)
        conflicts += int(((up > 0) & (down > 0)).sum())
        shared += int((up + down > 1).sum())
        mean += float((deltas.sum(0) / len(tensors)).square().sum())
    norms = gram.diagonal().sqrt()
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count) if norms[a] > 0 and norms[b] > 0]
    total = float(norms.sum()) / len(tensors)
    return Disagreement(
        moved=tuple((norms / max(base, 1e-300) ** 0.5).tolist()),
        cosines={(a, b): float(gram[a, b] / (norms[a] * norms[b])) for a, b in pairs},
        conflicts=conflicts / shared if shared else 0.0,
        kept=mean**0.5 / total if total else 1.0,
    )


def _row_blocks(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    step = _rows(tensors[0])
    for start in range(0, len(tensors[0]), step):
        yield [tensor[start : start + step].double() for tensor in tensors]
