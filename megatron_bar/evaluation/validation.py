"""The loss on chats that no stage learns: what a learning rate is chosen by."""

from collections.abc import Sequence

import torch

from megatron_bar.data.packing import PackedRows
from megatron_bar.errors import BarError
from megatron_bar.models.build import LanguageModel
from megatron_bar.parallel import cpu

ROWS = 8
"""In a forward pass."""


def mean_over(model: LanguageModel, held_out: Sequence[PackedRows]) -> float:
    """`mean_loss`, the mean over the domains. Collective."""
    return sum(mean_loss(model, rows) for rows in held_out) / len(held_out)


@torch.no_grad()
def mean_loss(model: LanguageModel, rows: PackedRows) -> float:
    """Nats per token of the answers in ``rows``. Every rank reads all of them; no pipeline. Collective."""
    total = 0.0
    count = 0
    for start in range(0, len(rows), ROWS):
        batch = rows.take(range(start, min(start + ROWS, len(rows)))).to(cpu.device())
        nll, _ = model(batch.ids, batch.positions, labels=batch.labels, documents=batch.documents)
        mask = batch.labels >= 0
        total = total + nll[mask].double().sum().item()
        count = count + int(mask.sum())
    if not count:
        raise BarError(
            f"{', '.join(rows.sources)}: expected held-out chats with answers to learn from, got no such token"
        )
    return total / count
