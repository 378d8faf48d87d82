"""The loss on chats that no stage learns: what a learning rate is chosen by."""

from collections.abc import Sequence

import torch

from megatron_bar.data.indexed import Tokens
from megatron_bar.data.packing import Batch, PackedRows
from megatron_bar.errors import BarError
from megatron_bar.models.build import LanguageModel
from megatron_bar.parallel import cpu

ROWS = 8
"""Rows of a forward pass."""
SHORTEST = 64
"""Tokens of which a row has a multiple, so that tensor ranks can share it."""


def mean_over(model: LanguageModel, held_out: Sequence[PackedRows]) -> float:
    """Returns the mean of `mean_loss` over the domains. Collective."""
    return sum(mean_loss(model, rows) for rows in held_out) / len(held_out)


def held_out_rows(name: str, tokens: Tokens, length: int, *, pad_id: int) -> PackedRows:
    """Returns a source's documents in rows of ``length`` tokens, or in one that is as short as they allow.

    A pass costs what the row's length says, padding or not.
    """
    whole = -(-int(tokens.lengths.sum()) // SHORTEST) * SHORTEST
    return PackedRows([(name, tokens)], min(length, max(whole, SHORTEST)), pad_id=pad_id)


def mean_loss(model: LanguageModel, rows: PackedRows) -> float:
    """Returns the loss on the answers in ``rows``, in nats per token. Every rank reads all rows; the model
    must not be spread over pipeline ranks. Collective."""
    count = answers_in(rows)
    batches = (rows.take(range(start, min(start + ROWS, len(rows)))) for start in range(0, len(rows), ROWS))
    return sum(summed_loss(model, batch.to(cpu.device())) for batch in batches) / count


def answers_in(rows: PackedRows) -> int:
    """Returns the tokens of answers in ``rows``; raises where there is none."""
    count = sum(int((rows.take([number]).labels >= 0).sum()) for number in range(len(rows)))
    if not count:
        where = ", ".join(rows.sources)
        raise BarError(f"{where}: expected held-out chats with answers to learn from, got no such token")
    return count


@torch.no_grad()
def summed_loss(model: LanguageModel, batch: Batch) -> float:
    """Returns the sum of a batch's losses on the answers, in nats."""
    nll, _ = model(batch.ids, batch.positions, labels=batch.labels, documents=batch.documents)
    return nll[batch.labels >= 0].double().sum().item()
