"""Objectives: reductions of the per-token negative log-likelihood that every stage's forward pass returns.

Legend: b batch, s sequence.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megatron_bar.data.packing import Batch

START_LOGPROBS = "start_logprobs"
"""Name of a batch's extra values: the labels' log-probabilities as the stage began."""


class Objective(Protocol):
    """What a stage minimises."""

    names: tuple[str, ...]
    """Names of the sums it reports, divided by the whole batch's `units` before they are shown."""
    temperature: float
    """Temperature of the distribution whose nll it wants."""

    def __call__(self, nll_bs: Tensor, lse_bs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss summed over the batch's `units`, and the sums named by ``names``."""

    def units(self, batch: Batch) -> int:
        """Returns what the loss is a mean over: the loss tokens, unless an objective says otherwise."""
        return batch.loss_tokens


@dataclass(frozen=True)
class LanguageModelling(Objective):
    """Next-token loss on the labelled positions, plus the LM head's z-loss.

    That is the weight times logsumexp squared (PaLM, arXiv 2204.02311, section 5).
    """

    head_z_loss: float = 0.0
    names = ("loss",)
    temperature = 1.0

    def __call__(self, nll_bs: Tensor, lse_bs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss with the z-loss, and what is reported: the loss without."""
        # A product and not a selection: to count what is selected a GPU would be waited for.
        mask_bs = batch.labels >= 0
        loss = (nll_bs * mask_bs).sum()
        total = loss
        if self.head_z_loss:
            total = total + self.head_z_loss * (lse_bs.square() * mask_bs).sum()
        return total, torch.stack([loss.detach()])
