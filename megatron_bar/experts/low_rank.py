"""An artifact whose matrices are what training added, in low rank: small, and close to the expert.

The matrix W of an expert is B + L R, with L of shape (rows, rank) and R (rank, columns) in fp16, and B the
branched folder's: for an FFN the anchor's or the domain init's, whichever is nearer, for others its own. L R
is the nearest of its rank in the Frobenius norm (the SVD's), but for rounding. FlexMoRE (arXiv 2602.08818)
makes experts of a mixture from such differences.

Columns of L and rows of R are whole numbers up to 2048 times a power of two, so that each product and each
sum is exact in fp64: W is the same bits on every machine, and the manifest has its hashes.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from megatron_bar.errors import BarError
from megatron_bar.weights.folder import Folder, TensorInfo, blocks
from megatron_bar.weights.groups import ParamGroup, classify
from megatron_bar.weights.safetensors_io import ITEMSIZE, TORCH_DTYPES, read_header, write_file

FILE = "low_rank.safetensors"
LARGEST = 2048
"""Whole numbers up to it are exact in fp16."""
FINEST = 24
"""2**-24 is the smallest step of fp16."""
SPREAD = 12
"""Powers of two that the columns of a factor may lie apart."""
_OTHER = {"own": ".experts.1.", "anchor": ".experts.0."}
"""Which of the branch's tensors a matrix is a difference from, and what its name has in the place of
``.experts.1.``."""


class LowRank(Folder):
    """A two-expert folder of which some matrices are a base's and two factors."""

    def __init__(self, path: Path, base: Folder, own: dict[str, TensorInfo], factors: dict[str, TensorInfo]):
        super().__init__(path, base.config, base.tensors | own)
        self.base = base
        self.factors = {}
        """Name -> tensor of the base, left, right."""
        for name in base.tensors:
            for of in _OTHER:
                left, right = f"{name}.{of}.left", f"{name}.{of}.right"
                if left in factors and right in factors and name not in self.factors | own:
                    self._add(name, of, factors.pop(left), factors.pop(right))
        if factors:
            raise BarError(
                f"{path / FILE}: tensor {min(factors)!r}: expected the left and the right factor of a matrix "
                f"of {base.path} once"
            )

    def _add(self, name: str, of: str, left: TensorInfo, right: TensorInfo) -> None:
        shape = self.base.tensors[name].shape
        rank = left.shape[-1] if left.shape else 0
        if len(shape) != 2 or (left.shape, right.shape) != ((shape[0], rank), (rank, shape[1])):
            raise BarError(
                f"{left.file}: tensor {name!r}: expected factors of {list(shape)}, "
                f"got {list(left.shape)} and {list(right.shape)}"
            )
        values = tuple(_values(info) for info in (left, right))
        self.factors[name] = (name.replace(".experts.1.", _OTHER[of]), *values)
        self.tensors[name] = TensorInfo(
            file=left.file,
            key=name,
            offset=left.offset,
            shape=shape,
            nbytes=math.prod(shape) * ITEMSIZE[self.dtype],
        )

    def slice(self, name: str):
        return self.read(name) if name in self.factors else super().slice(name)

    def read(self, name: str) -> Tensor:
        if name not in self.factors:
            return super().read(name)
        return torch.cat(list(self.chunks(name)))

    def chunks(self, name: str, *, finite: bool = False) -> Iterator[Tensor]:
        if name not in self.factors:
            yield from super().chunks(name, finite=finite)
            return
        source, left, right = self.factors[name]
        row = 0
        for block in self.base.chunks(source, finite=finite):
            rows = left[row : row + len(block)].double()
            yield (block.double() + rows @ right.double()).to(TORCH_DTYPES[self.dtype])
            row += len(block)


def _values(info: TensorInfo) -> Tensor:
    with info.file.open("rb") as file:
        file.seek(info.offset)
        raw = bytearray(file.read(info.nbytes))
    values = torch.frombuffer(raw, dtype=torch.float16) if raw else torch.empty(0, dtype=torch.float16)
    if not bool(values.isfinite().all()):
        raise BarError(f"{info.file}: tensor {info.key!r}: expected finite values")
    return values.reshape(info.shape)


def is_low_rank(path: Path) -> bool:
    return (path / FILE).exists()


def read_factors(path: Path) -> dict[str, TensorInfo]:
    """Returns the factors in an artifact's folder; raises for dtypes other than fp16."""
    file = path / FILE
    found = {}
    for name, (dtype, shape, offset) in read_header(file).items():
        if dtype != "float16":
            raise BarError(f"{file}: tensor {name!r}: expected float16, got {dtype}")
        nbytes = math.prod(shape) * ITEMSIZE[dtype]
        found[name] = TensorInfo(file=file, key=name, offset=offset, shape=shape, nbytes=nbytes)
    return found


def compressible(names: list[str], folder: Folder, rank: int) -> list[str]:
    """Returns the matrices of ``names`` that two factors are smaller than; routers stay as they are."""
    chosen = []
    for name in names:
        shape = folder.tensors[name].shape
        is_matrix = len(shape) == 2 and classify(name) is not ParamGroup.ROUTER
        if is_matrix and 2 * rank * sum(shape) < math.prod(shape) * ITEMSIZE[folder.dtype]:
            chosen.append(name)
    return chosen


def write_factors(path: Path, names: list[str], expert: Folder, base: Folder, rank: int, advance) -> None:
    """Writes the factors of ``names`` into the folder ``path``, matrix by matrix."""
    layout: dict[str, tuple[int, ...]] = {}
    made = {}
    for name in names:
        of, left, right = _nearest(name, expert, base, rank)
        for side, values in (("left", left), ("right", right)):
            key = f"{name}.{of}.{side}"
            layout[key] = tuple(values.shape)
            made[key] = values
        advance(expert.tensors[name].nbytes)
    write_file(path / FILE, layout, "float16", ((key, blocks(values)) for key, values in made.items()))


def _nearest(name: str, expert: Folder, base: Folder, rank: int) -> tuple[str, Tensor, Tensor]:
    whole = expert.read(name).double()
    sources = {of: name.replace(".experts.1.", other) for of, other in _OTHER.items()}
    apart = {of: whole - base.read(source).double() for of, source in sources.items()}
    of = min(apart, key=lambda key: float(apart[key].norm()))
    return of, *factorise(apart[of], rank)


def factorise(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns L (rows, rank) and R (rank, columns) in fp16, whose product is the nearest to ``matrix`` (fp64)
    of that rank, but for rounding.

    By the eigenvectors of the smaller Gram matrix: its error, the square root of fp64's, is far below fp16's.
    """
    if len(matrix) < len(matrix.T):
        left, right = factorise(matrix.T, rank)
        return right.T.contiguous(), left.T.contiguous()
    _, vectors = torch.linalg.eigh(matrix.T @ matrix)
    rank = min(rank, len(vectors))
    right = vectors[:, -rank:].flip(1).T
    left = matrix @ right.T
    scale = left.norm(dim=0).clamp_min(1e-300).sqrt()  # the square root of the singular value on both sides
    return _rounded(left / scale), _rounded((right * scale[:, None]).T).T.contiguous()


def _rounded(columns: Tensor) -> Tensor:
    """Returns columns as whole numbers times a power of two of each, in fp16."""
    most = columns.abs().amax(dim=0).clamp_min(2.0**-60)
    powers = torch.floor(torch.log2(LARGEST / most)).clamp(-4, FINEST)
    powers = torch.minimum(powers, powers.min() + SPREAD)
    steps = torch.exp2(powers)
    return (torch.round(columns * steps) / steps).half()
