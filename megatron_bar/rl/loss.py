"""GRPO's loss as published: clip-higher, no KL, one mean over all tokens (arXiv 2604.18473; DAPO, arXiv 2503.14476).

Named variants are values of `ClippedPolicyGradient`: ``kl`` above 0 holds the policy near its start, ``importance_cap``
corrects for a sampler that is not the trainer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_bar.training.objective import Objective


@dataclass(frozen=True, kw_only=True)
class ClippedPolicyGradient(Objective):
    """Importance ratios clipped to ``[1 - low, 1 + high]``, summed over tokens.

    A batch's extra values, ``[b, s]``: ``logprobs`` of the labels when they were sampled, ``advantages``; perhaps
    ``start_logprobs`` under the weights that the stage began with (needed for ``kl``); ``trainer_logprobs`` by the trainer
    before the round's first step (needed for ``importance_cap``).
    """

    low: float = 0.2
    high: float = 0.272
    kl: float = 0.0
    """Weight of the KL to the start, by the k3 estimator (as in arXiv 2402.03300, equation 4)."""
    importance_cap: float | None = None
    """Tokens are weighted by trainer over sampler probability, at most this: truncated importance sampling (TIS,
    "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025). The clip is then about the trainer's."""
    temperature: float = 1.0
    """At which the answers were drawn, and their probabilities are compared."""
    names = ("loss", "clip_low", "clip_high", "kl_to_sampler", "kl_to_start")

    def __call__(self, nll, lse, batch):
        mask, sampled, advantages = batch.labels >= 0, batch.extras["logprobs"], batch.extras["advantages"]
        before, weight = sampled, 1.0
        if self.importance_cap is not None:
            before = batch.extras["trainer_logprobs"]
            weight = torch.where(mask, before - sampled, 0.0).exp().clamp(max=self.importance_cap)
        log_ratio = torch.where(mask, -nll - before, 0.0)
        ratio = log_ratio.exp()
        held = ratio.clamp(1 - self.low, 1 + self.high)
        gain = weight * torch.minimum(ratio * advantages, held * advantages)
        loss = -(gain * mask).sum()
        with torch.no_grad():
            binds = (ratio * advantages > held * advantages) & mask
            sums = [loss.detach(), (binds & (ratio < 1)).sum(), (binds & (ratio > 1)).sum()]
            sums.append(_k3(torch.where(mask, -nll - sampled, 0.0)).sum())
        from_start = torch.zeros_like(loss)
        if "start_logprobs" in batch.extras:
            from_start = _k3(torch.where(mask, batch.extras["start_logprobs"] + nll, 0.0)).sum()
            loss = loss + self.kl * from_start.to(loss.dtype)
        sums.append(from_start.detach())
        return loss, torch.stack([value.to(loss.dtype) for value in sums])


def _k3(log_ratio: Tensor) -> Tensor:
    """exp(r) - 1 - r for r = log(q / p): its mean over draws from p is KL(p || q), and it is never negative (Schulman 2020).

    In fp64: near 0 the difference is all that counts.
    """
    r = log_ratio.double()
    return torch.expm1(r) - r
