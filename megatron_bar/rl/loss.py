"""GRPO's loss as published: clip-higher, no KL, one mean over all tokens (arXiv 2604.18473; DAPO, arXiv 2503.14476)."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class ClippedPolicyGradient:
    """Importance ratios clipped to ``[1 - low, 1 + high]``, summed over tokens.

    A batch's extra values, ``[b, s]``: ``logprobs`` of the labels when they were sampled, ``advantages``.
    """

    low: float = 0.2
    high: float = 0.272
    names = ("loss", "clipped", "kl_to_sampler", "surprise")

    def __call__(self, nll, lse, batch):
        mask = batch.labels >= 0
        log_ratio = torch.where(mask, -nll - batch.extras["logprobs"], 0.0)
        ratio = log_ratio.exp()
        held = ratio.clamp(1 - self.low, 1 + self.high)
        advantages = batch.extras["advantages"]
        gain = torch.minimum(ratio * advantages, held * advantages)
        loss = -(gain * mask).sum()
        with torch.no_grad():
            clipped = ((ratio * advantages > held * advantages) & mask).sum()
            # k3 estimator of KL(sampler || model), never negative: exp(r) - 1 - r (Schulman 2020, "Approximating KL").
            # In fp64: near 0 the difference is all that counts.
            kl = ((torch.expm1(log_ratio.double()) - log_ratio.double()) * mask).sum()
            sums = torch.stack([loss.detach(), clipped.float(), kl.to(loss.dtype), (nll * mask).sum()])
        return loss, sums
