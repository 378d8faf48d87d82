"""Which values of a folder's tensors an operation cuts a part from, without the tensors."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from megatron_bar.conversion.ops import WeightOp
from megatron_bar.weights.hf_config import ModelConfig, tensor_shapes


@dataclass(frozen=True)
class Region:
    """A block of a tensor: rows and columns from a first to behind a last; a vector is one column."""

    tensor: str
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def values(self) -> int:
        return (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


class _Asked:
    """Stands in for a lazy safetensors slice: notes what is asked for and gives a tensor of that shape on the
    meta device."""

    def __init__(self, name: str, shape: tuple[int, ...], regions: list[Region]):
        self.name = name
        self.shape = shape
        self.regions = regions

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Tensor:
        part = torch.empty(self.shape, device="meta")[index]
        asked = index if isinstance(index, tuple) else (index,)
        spans = [
            (cut.start or 0, size if cut.stop is None else cut.stop)
            for cut, size in zip(asked, self.shape, strict=False)
        ]
        whole = [(0, size) for size in (*self.shape, 1)]
        self.regions.append(Region(self.name, *[*spans, *whole[len(spans) :]][:2]))
        return part


@cache
def cut_regions(
    op: WeightOp, config: ModelConfig, rank: int, size: int
) -> tuple[tuple[Region, ...], tuple[int, ...]]:
    """Returns the regions from which part ``rank`` of ``size`` is cut, in a folder of that config, and the
    part's shape."""
    regions: list[Region] = []
    part = op.cut(lambda name: _Asked(name, _shapes(config)[name], regions), rank, size)
    return tuple(regions), tuple(part.shape)


_shapes = cache(tensor_shapes)


def flaw(shape: tuple[int, ...], regions: list[Region]) -> str | None:
    """Returns why ``regions`` do not cover a tensor, each value once; None where they do."""
    rows, columns = (*shape, 1)[:2]
    regions = [region for region in regions if region.values]
    regions.sort(key=lambda region: (region.rows, region.columns))
    by_rows = all(region.columns == (0, columns) for region in regions)
    if not by_rows and any(region.rows != (0, rows) for region in regions):
        return f"is cut both ways: {', '.join(f'{r.rows} x {r.columns}' for r in regions)}"
    axis, end = ("rows", rows) if by_rows else ("columns", columns)
    reached = 0
    for region in regions:
        start, stop = region.rows if by_rows else region.columns
        if start != reached:
            return f"expected {axis} from {reached} on, got {start} to {stop}"
        reached = stop
    return None if reached == end else f"expected {end} {axis}, got {reached}"
