"""The loss on chats that no stage learns: what a learning rate is chosen by."""

from collections.abc import Sequence

import torch

from megatron_bar.data.packing import Batch, PackedRows
from megatron_bar.errors import BarError
from megatron_bar.models.build import LanguageModel
from megatron_bar.parallel import cpu

ROWS = 8
"""Rows of a forward pass."""


def mean_over(model: LanguageModel, held_out: Sequence[PackedRows]) -> float:
    """Returns the mean of `mean_loss` over the domains. Collective."""
    return sum(mean_loss(model, rows) for rows in held_out) / len(held_out)


@torch.no_grad()
def mean_loss(model: LanguageModel, rows: PackedRows) -> float:
    """Returns the loss on the answers in ``rows``, in nats per token. Every rank reads all rows; the model
    must not be spread over pipeline ranks. Collective."""
    total = 0.0
    count = 0
    for start in range(0, len(rows), ROWS):
        batch = rows.take(range(start, min(start + ROWS, len(rows)))).to(cpu.device())
        total += summed_loss(model, batch)
        count += int((batch.labels >= 0).sum())
    if not count:
        where = ", ".join(rows.sources)
        raise BarError(f"{where}: expected held-out chats with answers to learn from, got no such token")
    return total / count


@torch.no_grad()
def summed_loss(model: LanguageModel, batch: Batch) -> float:
    """Returns the sum of a batch's losses on the answers, in nats."""
    nll, _ = model(batch.ids, batch.positions, labels=batch.labels, documents=batch.documents)
    return nll[batch.labels >= 0].double().sum().item()
