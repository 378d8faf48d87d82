"""Packed rows of token ids, and the order in which training sees them.

Two packings, as published (bar.md section 2): documents concatenated and cut for pretraining and mid-training; whole
documents side by side for SFT and router training, with positions that restart and attention that stays inside each.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from megatron_bar.errors import BarError

NO_LOSS = -1
"""The label of a position whose prediction is not trained."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch, all ``[b, s]`` int64: what the model reads and what each position should predict."""

    ids: Tensor
    positions: Tensor
    labels: Tensor
    """The next token, or `NO_LOSS`."""
    documents: Tensor | None
    """Which document of its row a position belongs to; attention stays inside it. None: one document a row."""

    def to(self, device: torch.device) -> "Batch":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{name: None if value is None else value.to(device) for name, value in values.items()})

    @property
    def loss_tokens(self) -> int:
        return int((self.labels >= 0).sum())


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A packed data set: arrays ``[rows, s]`` with the fields of a `Batch`."""

    ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    documents: np.ndarray | None
    batch_type = Batch

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def efficiency(self) -> float:
        """Share of positions that hold a token of a document; the rest is padding."""
        return 1.0 if self.documents is None else float((self.documents >= 0).mean())

    def take(self, index: np.ndarray) -> Batch:
        """A batch of these rows; integers become int64, reals stay fp32."""

        def tensor(array):
            picked = array[index]
            return torch.from_numpy(picked.astype(np.int64) if picked.dtype.kind == "i" else picked)

        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return self.batch_type(**{name: None if a is None else tensor(a) for name, a in arrays.items()})


Document = tuple[list[int], list[bool]]
"""Token ids, and for each whether the model learns to produce it."""


def concatenate_and_cut(documents: list[Document], length: int) -> Rows:
    """One stream cut every ``length`` tokens; attention crosses documents, as in the published mid-training.

    Each row's last token has its label in the next row's first, so no prediction is lost but the final one; a last row
    that would not be full is dropped.
    """
    ids = np.concatenate([np.asarray(doc, dtype=np.int32) for doc, _ in documents] or [np.empty(0, np.int32)])
    learn = np.concatenate([np.asarray(mask, dtype=bool) for _, mask in documents] or [np.empty(0, bool)])
    rows = (len(ids) - 1) // length
    if rows < 1:
        raise BarError(f"the documents hold {len(ids)} tokens, fewer than one row of {length} and its last label")
    shape = (rows, length)
    labels = np.where(learn, ids, NO_LOSS)[1 : rows * length + 1]
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    return Rows(
        ids=ids[: rows * length].reshape(shape),
        positions=positions,
        labels=labels.reshape(shape),
        documents=None,
    )


def pack_documents(documents: list[Document], length: int, *, pad_id: int) -> tuple[Rows, list[tuple[int, int]]]:
    """Whole documents by best fit, longest first; one longer than ``length`` loses its end. Positions restart in each.

    Also returns (row, start) of every document.
    """
    order = sorted(range(len(documents)), key=lambda n: -min(len(documents[n][0]), length))
    by_room: dict[int, list[int]] = {}
    rows: list[list[int]] = []
    for n in order:
        size = min(len(documents[n][0]), length)
        room = next((r for r in range(size, length + 1) if by_room.get(r)), None)
        if room is None:
            rows.append([])
            row, room = len(rows) - 1, length
        else:
            row = by_room[room].pop()
        rows[row].append(n)
        by_room.setdefault(room - size, []).append(row)
    shape = (len(rows), length)
    ids, labels = np.full(shape, pad_id, np.int32), np.full(shape, NO_LOSS, np.int32)
    positions, number = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    places: list[tuple[int, int]] = [(0, 0)] * len(documents)
    for r, row in enumerate(rows):
        at = 0
        for d, n in enumerate(row):
            tokens, learn = (np.asarray(part[:length]) for part in documents[n])
            end = at + len(tokens)
            ids[r, at:end], positions[r, at:end], number[r, at:end] = tokens, np.arange(len(tokens)), d
            labels[r, at : end - 1] = np.where(learn[1:], tokens[1:], NO_LOSS)
            places[n], at = (r, at), end
    return Rows(ids=ids, positions=positions, labels=labels, documents=number), places


def batches(
    rows: Rows, *, global_batch: int, micro_batch: int, data_rank: int, data_size: int, seed: int, start: int = 0
) -> Iterator[list[Batch]]:
    """This data-parallel rank's micro-batches of every step from ``start`` on, without end.

    Rows are shuffled anew in each epoch by (seed, epoch); a step's rows depend on nothing but its number, so a restart
    and another data-parallel size see the same global batches.
    """
    if global_batch % (micro_batch * data_size):
        raise BarError(
            f"batch of {global_batch} rows is not divisible by micro-batch {micro_batch} x {data_size} data-parallel ranks"
        )
    per_rank, step, epoch, order = global_batch // data_size, start, -1, np.empty(0, np.int64)
    while True:
        wanted = np.arange(step * global_batch, (step + 1) * global_batch)
        picked = np.empty_like(wanted)
        for n, place in enumerate(wanted):
            if place // len(rows) != epoch:
                epoch = int(place // len(rows))
                order = np.random.default_rng((seed, epoch)).permutation(len(rows))
            picked[n] = order[place % len(rows)]
        mine = picked[data_rank * per_rank : (data_rank + 1) * per_rank]
        yield [rows.take(mine[at : at + micro_batch]) for at in range(0, per_rank, micro_batch)]
        step += 1
