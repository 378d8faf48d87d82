"""GRPO's loss as published: clip-higher, no KL, one mean over all tokens (bar.md section 2; DAPO, arXiv 2503.14476)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_bar.data.batch import NO_LOSS, Batch, Rows


@dataclass(frozen=True, kw_only=True)
class RolloutBatch(Batch):
    old_logprobs: Tensor
    """``[b, s]`` fp32: log-probability of the label when it was sampled; 0 where there is none."""
    advantages: Tensor
    """``[b, s]`` fp32, constant over an answer."""


@dataclass(frozen=True, kw_only=True)
class RolloutRows(Rows):
    """Packed rollouts; fields as in `RolloutBatch`."""

    old_logprobs: np.ndarray
    advantages: np.ndarray
    batch_type = RolloutBatch

    def take_padded(self, index: np.ndarray) -> RolloutBatch:
        """Like `take`, with -1 for a row that carries no loss."""
        batch = self.take(np.maximum(index, 0))
        batch.labels[torch.from_numpy(index < 0)] = NO_LOSS
        return batch


@dataclass(frozen=True, kw_only=True)
class ClippedPolicyGradient:
    """Importance ratios clipped to ``[1 - low, 1 + high]``, summed over tokens."""

    low: float = 0.2
    high: float = 0.272
    names = ("loss", "clipped", "kl_to_sampler", "surprise")

    def __call__(self, nll, lse, batch):
        mask = batch.labels >= 0
        log_ratio = torch.where(mask, -nll - batch.old_logprobs, 0.0)
        ratio = log_ratio.exp()
        held = ratio.clamp(1 - self.low, 1 + self.high)
        gain = torch.minimum(ratio * batch.advantages, held * batch.advantages)
        loss = -(gain * mask).sum()
        with torch.no_grad():
            clipped = ((ratio * batch.advantages > held * batch.advantages) & mask).sum()
            # k3 estimator of KL(sampler || model), never negative: exp(r) - 1 - r (Schulman 2020, "Approximating KL").
            kl = ((ratio - 1 - log_ratio) * mask).sum()
            sums = torch.stack([loss.detach(), clipped.float(), kl, (nll * mask).sum()])
        return loss, sums
