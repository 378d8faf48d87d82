"""The order in which training sees rows, and batches fetched ahead of it.

Without weights every row of every source comes once an epoch (the published union), shuffled anew by (seed,
epoch). With weights the sources are interleaved by Megatron's own blending, so that after any number of rows
each has had its share, and each source is shuffled anew whenever it is used up. A step's rows depend on
nothing but its number: a restart and another data-parallel size see the same global batches.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_bar.data.packing import Batch, Rows
from megatron_bar.errors import BarError

AHEAD = 2
"""Steps made ahead of the one in use; no more are ever in memory."""


@dataclass(frozen=True)
class StepBatches:
    """One data-parallel rank's part of an optimizer step."""

    micro_batches: list[Batch]
    shares: dict[str, float]
    """Share of each source in the tokens of the whole step, over all ranks."""
    rows: dict[str, list[int]]
    """Numbers of the whole step's rows, by the names of the sources they are packed from."""


class Order:
    """Which row of which part has which place in training."""

    def __init__(
        self, sizes: Sequence[int], *, seed: int, weights: Sequence[float] | None = None, places: int = 0
    ):
        """Lays out ``places`` rows by ``weights``, one per part, normalised here, and there are no more;
        None: all rows, every epoch."""
        self.sizes = list(sizes)
        self.seed = seed
        self.firsts = np.cumsum([0, *sizes])
        self.blend = None if weights is None else _blend(weights, places)
        self._shuffles: dict[tuple[int, int], np.ndarray] = {}

    def at(self, places: np.ndarray) -> list[tuple[int, int]]:
        """Returns (part, row) of each of ``places``."""
        if self.blend is None:
            total = int(self.firsts[-1])
            rows = [int(self._shuffled(-1, total, int(n) // total)[int(n) % total]) for n in places]
            parts = np.searchsorted(self.firsts, rows, side="right") - 1
            return [(int(part), row - int(self.firsts[part])) for part, row in zip(parts, rows, strict=True)]
        parts, counts = (index[places] for index in self.blend)
        chosen = []
        for part, count in zip(parts.tolist(), counts.tolist(), strict=True):
            size = self.sizes[part]
            chosen.append((part, int(self._shuffled(part, size, count // size)[count % size])))
        return chosen

    def _shuffled(self, part: int, size: int, epoch: int) -> np.ndarray:
        if (part, epoch) not in self._shuffles:
            # An epoch begins where the one before ends: two of a part are kept at most.
            self._shuffles = {
                key: order for key, order in self._shuffles.items() if key[0] != part or key[1] == epoch - 1
            }
            seed = (self.seed, epoch) if part < 0 else (self.seed, epoch, part)
            self._shuffles[part, epoch] = np.random.default_rng(seed).permutation(size)
        return self._shuffles[part, epoch]


def _blend(weights: Sequence[float], places: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each place's part, and how often that part came before: Megatron's blended data set."""
    # Here: importing Megatron takes seconds, and the tools of this layer need none.
    from megatron.core.datasets import helpers

    parts = np.zeros(places, np.int16)
    counts = np.zeros(places, np.int64)
    normal = np.asarray(weights, np.float64) / np.sum(weights)
    helpers.build_blending_indices(parts, counts, normal.tolist(), len(normal), places, False)
    return parts, counts


class Loader:
    """Batches of one or more packed data sets for one data-parallel rank."""

    def __init__(
        self,
        parts: Sequence[Rows],
        *,
        global_batch: int,
        micro_batch: int,
        data_rank: int,
        data_size: int,
        seed: int,
        steps: int,
        weights: Sequence[float] | None = None,
    ):
        if global_batch % (micro_batch * data_size):
            raise BarError(
                f"batch of {global_batch} rows is not divisible "
                f"by micro-batch {micro_batch} x {data_size} data-parallel ranks"
            )
        self.parts = parts
        self.global_batch = global_batch
        self.micro_batch = micro_batch
        self.steps = steps
        per_rank = global_batch // data_size
        self._mine = slice(data_rank * per_rank, (data_rank + 1) * per_rank)
        sizes = [len(part) for part in parts]
        self._order = Order(sizes, seed=seed, weights=weights, places=steps * global_batch)
        self._sources = list(dict.fromkeys(name for part in parts for name in part.sources))

    def step(self, number: int) -> StepBatches:
        """Returns step ``number``, from 0."""
        places = np.arange(number * self.global_batch, (number + 1) * self.global_batch)
        rows = self._order.at(places)
        mine = rows[self._mine]
        pieces = [mine[at : at + self.micro_batch] for at in range(0, len(mine), self.micro_batch)]
        return StepBatches([self._take(piece) for piece in pieces], self._shares(rows), self._named(rows))

    def ahead(self, start: int = 0) -> Iterator[StepBatches]:
        """Yields the steps from ``start`` to the last; a thread makes them while training uses earlier
        ones."""
        ready: queue.Queue = queue.Queue(maxsize=AHEAD - 1)  # one more is in the thread's hands
        stop = threading.Event()

        def put(item) -> bool:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.2)
                    return True
                except queue.Full:
                    continue
            return False

        def work() -> None:
            try:
                for number in range(start, self.steps):
                    if not put(self.step(number)):
                        return
            except Exception as error:  # noqa: BLE001  raised where it is waited for
                put(error)

        thread = threading.Thread(target=work, name="loader", daemon=True)
        thread.start()
        try:
            for _ in range(start, self.steps):
                item = ready.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _take(self, rows: list[tuple[int, int]]) -> Batch:
        """Returns one micro-batch; rows of different parts agree in length and fields."""
        numbers = sorted({part for part, _ in rows})
        if len(numbers) == 1:
            return self.parts[numbers[0]].take([row for _, row in rows])
        return _stack([self.parts[part].take([row]) for part, row in rows])

    def _named(self, rows: list[tuple[int, int]]) -> dict[str, list[int]]:
        named: dict[str, list[int]] = {}
        for part, row in rows:
            named.setdefault("+".join(self.parts[part].sources), []).append(row)
        return named

    def _shares(self, rows: list[tuple[int, int]]) -> dict[str, float]:
        counts = dict.fromkeys(self._sources, 0)
        for number, part in enumerate(self.parts):
            index = [row for owner, row in rows if owner == number]
            if index:
                for name, count in zip(part.sources, part.source_tokens(index).tolist(), strict=True):
                    counts[name] += count
        total = sum(counts.values())
        return {name: count / total for name, count in counts.items()}


def _stack(batches: list[Batch]) -> Batch:
    documents = [batch.documents for batch in batches]
    return Batch(
        ids=torch.cat([batch.ids for batch in batches]),
        positions=torch.cat([batch.positions for batch in batches]),
        labels=torch.cat([batch.labels for batch in batches]),
        documents=None if documents[0] is None else torch.cat(documents),
    )
