"""Objectives: reductions of the per-token negative log-likelihood that every stage's forward pass returns."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megatron_bar.data.packing import Batch


class Objective(Protocol):
    names: tuple[str, ...]
    """Of the sums it reports, divided by the number of loss tokens before they are shown."""
    temperature: float
    """Of the distribution whose ``nll`` it wants."""

    def __call__(self, nll: Tensor, lse: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss summed over the loss tokens of ``nll``, ``lse`` ``[b, s]``, and the sums named by ``names``."""


@dataclass(frozen=True)
class LanguageModelling:
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
