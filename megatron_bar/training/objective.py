"""Objectives: reductions of the per-token negative log-likelihood that every stage's forward pass returns."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megatron_bar.data.packing import Batch


class Objective(Protocol):
    names: tuple[str, ...]
    """Of the sums it reports, divided by the whole batch's `units` before they are shown."""
    temperature: float
    """Of the distribution whose ``nll`` it wants."""

    def __call__(self, nll: Tensor, lse: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of ``nll``, ``lse`` ``[b, s]`` summed over the batch's `units`, and the sums named by ``names``."""

    def units(self, batch: Batch) -> int:
        """What the loss is a mean over: the loss tokens, unless an objective says otherwise."""
        return batch.loss_tokens


@dataclass(frozen=True)
class LanguageModelling(Objective):
    """Next-token loss on the labelled positions, plus the LM head's z-loss (weight times logsumexp squared; PaLM, section 5)."""

    head_z_loss: float = 0.0
    names = ("loss",)
    temperature = 1.0

    def __call__(self, nll, lse, batch):
        mask = batch.labels >= 0
        loss = (nll * mask).sum()
        total = loss
        if self.head_z_loss:
            total = total + self.head_z_loss * (lse.square() * mask).sum()
        return total, torch.stack([loss.detach()])
