"""What trains, as pieces that do not depend on the layout: each rank's own to write, and any rank's again to
read.

The distributed optimizer gives every rank flat ranges of parameters, with fp32 values and Adam's two moments.
A piece is such a range, known by the parameter's first name in the folder, the tensor-parallel part it lies
in and the shape of that part. Nothing is exchanged to write them. A rank reads the range that it owns: from
the part as it is where the layout cuts the parameter alike, else from its parts put together, joined to the
folder's tensors and cut for this rank, one parameter at a time, by the operations that load a folder. The
ranks then gather the parameters as after a step. What is frozen comes from the source folder; a bfloat16
parameter is its fp32 value rounded.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_bar.conversion.ops import WeightOp
from megatron_bar.errors import BarError
from megatron_bar.models.shards import tensor_place
from megatron_bar.training.trainer import Trainer

KINDS = ("main", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A flat range of a parameter's tensor-parallel part."""

    name: str
    """First name in the folder of the parameter."""
    rank: int
    """Number of the part, among ``size`` of them."""
    size: int
    shape: tuple[int, ...]
    """Shape of the part."""
    start: int
    stop: int
    """End of the range in the flat part."""

    def key(self, kind: str) -> str:
        """Returns the name of its tensor in a file; ``kind``: one of `KINDS`."""
        return f"{self.name}/{self.rank}/{self.start}/{kind}"


Pieces = dict[str, list[tuple[int, Piece]]]
"""Number of the file and piece, by parameter; in the order of the parts and of the ranges."""


@dataclass(frozen=True)
class Owned:
    """Where a flat range of a parameter is trained on this rank."""

    optimizer: torch.optim.Optimizer
    main: Tensor
    start: int
    stop: int


def owned_ranges(optimizer_parts: list) -> dict[Tensor, Owned]:
    """Returns what this rank updates of each parameter, by Megatron's distributed optimizers."""
    owned = {}
    for part in optimizer_parts:
        for param, (group, index) in part.model_param_group_index_map.items():
            # Megatron's private map; its "param" range is in the flat parameter, the others in its buffers.
            span = part._get_model_param_range_map(param)["param"]
            main = part.optimizer.param_groups[group]["params"][index]
            assert main.dtype == torch.float32 and main.numel() == span.end - span.start
            owned[param] = Owned(part.optimizer, main, span.start, span.end)
    return owned


def _trained(trainer: Trainer) -> Iterator[tuple[Tensor, WeightOp]]:
    yield from ((param, op) for _, param, op in trainer.model.parameters_with_ops() if param.requires_grad)


def snapshot(trainer: Trainer) -> tuple[list[Piece], dict[str, Tensor]]:
    """Returns this rank's pieces, and copies of their tensors on the CPU by key."""
    owned = owned_ranges(trainer.optimizer_parts)
    pieces = []
    tensors = {}
    for param, op in _trained(trainer):
        rank, size = tensor_place(op)
        # What is not cut is on every tensor rank, with the same values: the first gives it.
        if param not in owned or (rank > 0 and not op.sharded):
            continue
        mine = owned[param]
        piece = Piece(
            name=op.names[0],
            rank=rank,
            size=size if op.sharded else 1,
            shape=tuple(param.shape),
            start=mine.start,
            stop=mine.stop,
        )
        pieces.append(piece)
        state = mine.optimizer.state.get(mine.main, {})
        for kind in KINDS:
            # Before the first update Adam has no moments: they are zero.
            value = mine.main if kind == "main" else state.get(kind, torch.zeros_like(mine.main))
            assert value.dtype == torch.float32
            tensors[piece.key(kind)] = value.detach().to("cpu", copy=True).contiguous()
    return pieces, tensors


def to_json(pieces: list[Piece]) -> list[dict]:
    """Returns the pieces as state.json lists them."""
    return [asdict(piece) for piece in pieces]


def arrange(files: list[list[dict]]) -> Pieces:
    """Returns the pieces of all files by parameter; raises unless each part is there once from end to end."""
    arranged: Pieces = {}
    for number, listed in enumerate(files):
        for values in listed:
            piece = Piece(**values | {"shape": tuple(values["shape"])})
            arranged.setdefault(piece.name, []).append((number, piece))
    for name, pieces in arranged.items():
        pieces.sort(key=lambda item: (item[1].rank, item[1].start))
        ranks = sorted({piece.rank for _, piece in pieces})
        size = pieces[0][1].size
        if {piece.size for _, piece in pieces} != {size} or ranks != list(range(size)):
            raise BarError(f"parameter {name!r}: expected parts 0 to {size - 1}, got {ranks}")
        for rank in range(size):
            _check_part(
                f"parameter {name!r}: part {rank}", [piece for _, piece in pieces if piece.rank == rank]
            )
    return arranged


def _check_part(where: str, part: list[Piece]) -> None:
    """Raises unless the pieces, in order, are the part from end to end."""
    total = math.prod(part[0].shape)
    position = 0
    for piece in part:
        if piece.start != position or piece.stop <= piece.start or piece.shape != part[0].shape:
            raise BarError(f"{where}: expected values from {position} on, got {piece}")
        position = piece.stop
    if position != total:
        raise BarError(f"{where}: expected {total} values, got {position}")


Read = Callable[[int, Piece, str, slice], Tensor]
"""Function that gives a slice of a kind of a piece's values, flat, from the file of a number."""


def restore(trainer: Trainer, files: list[Path], pieces: Pieces, updates: int) -> None:
    """Fills parameters, their fp32 values and Adam's state, of which ``updates`` steps were taken."""
    owned = owned_ranges(trainer.optimizer_parts)
    with ExitStack() as stack, torch.no_grad():
        read = _reader(stack, files)
        for param, op in _trained(trainer):
            name = op.names[0]
            if name not in pieces:
                raise BarError(f"{files[0].parent}: holds nothing of the trainable parameter {name!r}")
            if param in owned:
                mine = owned[param]
                values = _owned_values(mine, param, op, pieces[name], read)
                main = next(values)
                mine.main.copy_(main)
                param.view(-1)[mine.start : mine.stop].copy_(main)
                _restore_moments(mine, values, updates)
    trainer.ddp.start_param_sync(force_sync=True)  # as behind a step: each rank has the ranges that it owns
    for part in trainer.optimizer_parts:
        if not isinstance(
            part.optimizer, torch.optim.AdamW
        ):  # apex's and Transformer Engine's count by group
            for group in part.optimizer.param_groups:
                group["step"] = updates


def _reader(stack: ExitStack, files: list[Path]) -> Read:
    """Opens each file when it is first asked for; ``stack`` closes them."""
    handles: dict[int, safe_open] = {}

    def read(number: int, piece: Piece, kind: str, span: slice) -> Tensor:
        try:
            if number not in handles:
                handles[number] = stack.enter_context(safe_open(files[number], framework="pt"))
            return handles[number].get_slice(piece.key(kind))[span]
        except (OSError, SafetensorError) as problem:
            raise BarError(f"{files[number]}: not readable: {problem}") from None

    return read


def _restore_moments(mine: Owned, moments: Iterator[Tensor], updates: int) -> None:
    state = mine.optimizer.state[mine.main]
    for kind, values in zip(KINDS[1:], moments, strict=True):
        state[kind] = values.to(mine.main.device, copy=True).view_as(mine.main)
    if isinstance(mine.optimizer, torch.optim.AdamW):
        state["step"] = torch.tensor(float(updates), device=mine.main.device)


def _owned_values(
    mine: Owned, param: Tensor, op: WeightOp, pieces: list[tuple[int, Piece]], read: Read
) -> Iterator[Tensor]:
    """Yields the values of each of `KINDS` that this rank owns of a parameter, flat."""
    rank, size = tensor_place(op) if op.sharded else (0, 1)
    first = pieces[0][1]
    alike = first.size == size and first.shape == tuple(param.shape)
    for kind in KINDS:
        if alike:
            part = [(number, piece) for number, piece in pieces if piece.rank == rank]
            yield _range(part, kind, read, mine.start, mine.stop)
        else:
            yield _cut(op, pieces, kind, read).reshape(-1)[mine.start : mine.stop]


def _range(part: list[tuple[int, Piece]], kind: str, read: Read, start: int, stop: int) -> Tensor:
    """The values from ``start`` to ``stop`` of a part whose pieces, in order, hold it from end to end."""
    spans = [(max(start, piece.start), min(stop, piece.stop), number, piece) for number, piece in part]
    return torch.cat(
        [
            read(number, piece, kind, slice(low - piece.start, high - piece.start))
            for low, high, number, piece in spans
            if low < high
        ]
    )


def _cut(op: WeightOp, pieces: list[tuple[int, Piece]], kind: str, read: Read) -> Tensor:
    """This rank's part of a parameter as it was written on another layout."""
    parts = []
    for rank in range(pieces[0][1].size):
        part = [(number, piece) for number, piece in pieces if piece.rank == rank]
        shape = part[0][1].shape
        parts.append(_range(part, kind, read, 0, math.prod(shape)).view(shape))
    whole = op.join(parts)
    rank, size = tensor_place(op)
    return op.cut(whole.__getitem__, rank, size)
