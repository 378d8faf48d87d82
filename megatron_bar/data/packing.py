"""Documents to rows of one length; nothing is copied until a batch is taken.

Two packings, as published (arXiv 2604.18473): documents concatenated and cut for pretraining and
mid-training; whole documents side by side by best fit for SFT and router training, with positions that
restart and attention that stays inside each. Pairs of documents, for preferences, are packed like one
document each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from megatron_bar.data.indexed import Tokens
from megatron_bar.errors import BarError

NO_LOSS = -1
"""The label of a position whose prediction is not trained."""
TooLong = Literal["truncate", "drop", "error"]
"""What becomes of a document that no row can hold: it loses its end, it is left out, or the work stops."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch, all ``[b, s]``, integers as int64: what the model reads and what it should predict."""

    ids: Tensor
    positions: Tensor
    labels: Tensor
    """Next token, or `NO_LOSS`."""
    documents: Tensor | None
    """Number of the document, within its row, that a position belongs to; attention stays inside it. None:
    one document a row."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """Further values of the label, fp32, by name; 0 where there is none."""

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on ``device``, by a copy that a GPU does not wait for; ``documents`` stay on the
        CPU."""

        def move(value: Tensor) -> Tensor:
            if device.type == "cuda":
                return value.pin_memory().to(device, non_blocking=True)
            return value.to(device)

        return replace(
            self,
            ids=move(self.ids),
            positions=move(self.positions),
            labels=move(self.labels),
            extras={name: move(value) for name, value in self.extras.items()},
        )

    @property
    def loss_tokens(self) -> int:
        return int((self.labels >= 0).sum())


class Rows(Protocol):
    """A packed data set."""

    sources: tuple[str, ...]
    """The names of what was packed, for the share of each in a batch; two may have the same."""

    fingerprint: str
    """Fingerprint of what was packed."""

    def __len__(self) -> int: ...

    def take(self, index: Sequence[int]) -> Batch:
        """Returns a batch of these rows."""

    def source_tokens(self, index: Sequence[int]) -> np.ndarray:
        """Returns ``[sources]`` int64: how many tokens of each source are in these rows."""


@dataclass(frozen=True)
class CutRows:
    """One source's documents as one stream cut every ``length`` tokens.

    Each row's last token has its label in the next row's first, so no prediction is lost but the final one; a
    last row that would not be full is dropped. ``masked``: attention stays inside documents and positions
    restart; published: it crosses them.
    """

    name: str
    tokens: Tokens
    length: int
    masked: bool = False

    def __post_init__(self):
        if len(self) < 1:
            raise BarError(
                f"{self.name}: holds {len(self.tokens.ids)} tokens, "
                f"fewer than one row of {self.length} and its last label"
            )

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def fingerprint(self) -> str:
        return self.tokens.fingerprint

    def __len__(self) -> int:
        return max(0, len(self.tokens.ids) - 1) // self.length

    def source_tokens(self, index):
        return np.array([len(index) * self.length])

    def take(self, index):
        tokens = self.tokens
        s = self.length
        places = np.asarray(index, np.int64)[:, None] * s + np.arange(s)
        labels = tokens.ids[places + 1].astype(np.int64)
        if tokens.learn is not None:
            labels[~np.asarray(tokens.learn[places + 1], bool)] = NO_LOSS
        positions = np.broadcast_to(np.arange(s), places.shape)
        documents = None
        if self.masked:
            documents = np.searchsorted(tokens.starts, places, side="right") - 1
            positions = places - np.maximum(tokens.starts[documents], places[:, :1])
            # The first token of a document is nobody's to predict: no token before it may look at it.
            labels[documents != np.searchsorted(tokens.starts, places + 1, side="right") - 1] = NO_LOSS
        return Batch(
            ids=torch.from_numpy(tokens.ids[places].astype(np.int64)),
            positions=torch.from_numpy(np.array(positions)),
            labels=torch.from_numpy(labels),
            documents=None if documents is None else torch.from_numpy(documents - documents[:, :1]),
        )


class PackedRows:
    """Whole documents of one or more sources, by best fit, longest first (see `best_fit`)."""

    together = 1
    """Number of consecutive documents that are packed as one."""

    def __init__(
        self, named: Sequence[tuple[str, Tokens]], length: int, *, pad_id: int, too_long: TooLong = "truncate"
    ):
        self.sources = tuple(name for name, _ in named)
        self.parts = tuple(tokens for _, tokens in named)
        self.length = length
        self.pad_id = pad_id
        lengths = np.concatenate([part.lengths for part in self.parts])
        sizes = lengths.reshape(-1, self.together).sum(1)
        self._firsts = np.cumsum([0, *(len(part) for part in self.parts)])
        numbers = np.flatnonzero(sizes > 0)
        over = sizes > length
        self.too_long = int(over.sum())
        """Documents, or groups of ``together``, that are longer than a row."""
        if self.too_long and too_long == "error":
            part, n = self._find(int(np.argmax(over)) * self.together)
            name = self.sources[part]
            raise BarError(f"{name}: document {n} has {sizes[over][0]} tokens; a row holds {length}")
        if too_long == "drop":
            numbers = np.flatnonzero((sizes > 0) & ~over)
        if not len(numbers):
            raise BarError(f"{', '.join(self.sources)}: no document to pack into rows of {length}")
        self.documents = len(numbers) * self.together
        self._sizes = np.minimum(lengths, length).astype(np.int32)
        order, row_starts = best_fit(np.minimum(sizes[numbers], length), length)
        self._order = (numbers[order][:, None] * self.together + np.arange(self.together)).ravel()
        self._row_starts = row_starts * self.together
        self.efficiency = float(self._sizes[self._order].sum() / (len(self) * length))
        """Share of positions that hold a token of a document; the rest is padding."""

    def __len__(self) -> int:
        return len(self._row_starts) - 1

    @property
    def fingerprint(self) -> str:
        return " ".join(part.fingerprint for part in self.parts)

    def _find(self, document: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._firsts, document, side="right")) - 1
        return part, document - int(self._firsts[part])

    def row(self, number: int) -> list[int]:
        """Returns the documents of a row, from left to right, counted through all sources."""
        return self._order[self._row_starts[number] : self._row_starts[number + 1]].tolist()

    def source_tokens(self, index):
        rows = [self.row(n) for n in index if n >= 0]
        documents = np.concatenate([np.empty(0, np.int64), *rows]).astype(np.int64)
        part = np.searchsorted(self._firsts, documents, side="right") - 1
        return np.bincount(part, weights=self._sizes[documents], minlength=len(self.parts)).astype(np.int64)

    def take(self, index):
        """Returns a batch of these rows; -1 in ``index`` is a row of padding, which carries no loss."""
        shape = (len(index), self.length)
        ids = np.full(shape, self.pad_id, np.int64)
        labels = np.full(shape, NO_LOSS, np.int64)
        positions = np.zeros(shape, np.int64)
        documents = np.full(shape, -1, np.int64)
        extras = {name: np.zeros(shape, np.float32) for name in self.parts[0].extras}
        for r, number in enumerate(index):
            at = 0
            for d, document in enumerate(self.row(number) if number >= 0 else ()):
                part, n = self._find(document)
                tokens = self.parts[part]
                size = int(self._sizes[document])
                first = int(tokens.starts[n])
                end = at + size
                span = slice(first, first + size)
                after = slice(first + 1, first + size)
                ids[r, at:end] = tokens.ids[span]
                positions[r, at:end] = np.arange(size)
                documents[r, at:end] = d
                # The label at a position is the next token, and so are its extra values.
                learn = True if tokens.learn is None else tokens.learn[after]
                labels[r, at : end - 1] = np.where(learn, tokens.ids[after].astype(np.int64), NO_LOSS)
                for name, values in extras.items():
                    values[r, at : end - 1] = tokens.extras[name][after]
                at = end
        arrays = {"ids": ids, "positions": positions, "labels": labels, "documents": documents}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Batch(**tensors, extras={name: torch.from_numpy(values) for name, values in extras.items()})


class PairRows(PackedRows):
    """Documents 2n and 2n + 1 of each source, a better and a worse answer, side by side in one row.

    So a row's documents 2i and 2i + 1 are a pair, and a micro-batch's loss over pairs needs nothing from
    another one.
    """

    together = 2

    def __init__(
        self, named: Sequence[tuple[str, Tokens]], length: int, *, pad_id: int, too_long: TooLong = "drop"
    ):
        if too_long == "truncate":
            raise BarError(
                f"{', '.join(name for name, _ in named)}: a pair cannot be cut; "
                "too_long expected drop or error, got truncate"
            )
        super().__init__(named, length, pad_id=pad_id, too_long=too_long)

    @property
    def pairs(self) -> int:
        return self.documents // 2


def best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs by best fit decreasing (Johnson 1973): each, the longest first, goes where it leaves least room.

    ``sizes`` ``[n]``, each 1 to ``length``. Returns the numbers of the documents row by row ``[n]``, and
    where each row begins in them ``[rows + 1]``. Bit r of ``rooms`` says whether a row with r tokens left
    exists: about a microsecond a document.
    """
    order = np.argsort(-sizes, kind="stable")
    waiting: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = 0
    rows = 0
    place = np.empty(len(sizes), np.int64)
    for n, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = waiting[room].pop()
            if not waiting[room]:
                rooms ^= 1 << room
        else:
            row, room, rows = rows, length, rows + 1
        place[n] = row
        if room > size:
            if not waiting[room - size]:
                rooms |= 1 << (room - size)
            waiting[room - size].append(row)
    # Stable: within a row, in the order in which they came, longest first.
    by_row = order[np.argsort(place[order], kind="stable")]
    return by_row, np.concatenate(([0], np.cumsum(np.bincount(place, minlength=rows))))
