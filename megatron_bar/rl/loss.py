"""GRPO's loss as published: clip-higher, no KL, one mean over all tokens (arXiv 2604.18473; DAPO, arXiv
2503.14476).

Named variants are values of `ClippedPolicyGradient`: ``kl`` above 0 holds the policy near its start,
``importance_cap`` corrects for a sampler that is not the trainer.

Legend: b batch, s sequence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_bar.data.packing import Batch
from megatron_bar.training.objective import START_LOGPROBS, Objective

TRAINER_LOGPROBS = "trainer_logprobs"
"""Name of a batch's extra values: the labels' log-probabilities by the trainer as the round began."""


@dataclass(frozen=True, kw_only=True)
class ClippedPolicyGradient(Objective):
    """Importance ratios clipped to ``[1 - low, 1 + high]``, summed over tokens.

    A batch's extra values, ``[b, s]``: ``logprobs`` of the labels when they were sampled, ``advantages``;
    perhaps `START_LOGPROBS` (needed for ``kl``) and `TRAINER_LOGPROBS` (needed for ``importance_cap``).
    """

    low: float = 0.2
    high: float = 0.272
    kl: float = 0.0
    """Weight of the KL to the start, by the k3 estimator (as in arXiv 2402.03300, equation 4)."""
    importance_cap: float | None = None
    """Most that a token is weighted by trainer over sampler probability: truncated importance sampling (TIS,
    "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025). The clip is then about
    the trainer's."""
    temperature: float = 1.0
    """Temperature at which the answers were drawn, and their probabilities are compared."""
    names = ("loss", "clip_low", "clip_high", "kl_to_sampler", "kl_to_start")

    def __call__(self, nll_bs: Tensor, lse_bs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss summed over tokens, and the sums named by ``names``."""
        mask_bs = batch.labels >= 0
        sampled_bs = batch.extras["logprobs"]
        advantages_bs = batch.extras["advantages"]
        before_bs = sampled_bs
        weight_bs = 1.0
        if self.importance_cap is not None:
            before_bs = batch.extras[TRAINER_LOGPROBS]
            weight_bs = torch.where(mask_bs, before_bs - sampled_bs, 0.0).exp().clamp(max=self.importance_cap)
        # Masked before the exponential: what lies beside the labels may overflow, and 0 times infinity is no
        # 0.
        log_ratio_bs = torch.where(mask_bs, -nll_bs - before_bs, 0.0)
        ratio_bs = log_ratio_bs.exp()
        clipped_bs = ratio_bs.clamp(1 - self.low, 1 + self.high)
        gain_bs = weight_bs * torch.minimum(ratio_bs * advantages_bs, clipped_bs * advantages_bs)
        loss = -(gain_bs * mask_bs).sum()
        with torch.no_grad():
            binds_bs = (ratio_bs * advantages_bs > clipped_bs * advantages_bs) & mask_bs
            sums = [loss.detach(), (binds_bs & (ratio_bs < 1)).sum(), (binds_bs & (ratio_bs > 1)).sum()]
            sums.append(_k3(torch.where(mask_bs, -nll_bs - sampled_bs, 0.0)).sum())
        from_start = torch.zeros_like(loss)
        if START_LOGPROBS in batch.extras:
            from_start = _k3(torch.where(mask_bs, batch.extras[START_LOGPROBS] + nll_bs, 0.0)).sum()
            loss = loss + self.kl * from_start.to(loss.dtype)
        sums.append(from_start.detach())
        return loss, torch.stack([value.to(loss.dtype) for value in sums])


def _k3(log_ratio_bs: Tensor) -> Tensor:
    """exp(r) - 1 - r for r = log(q / p): its mean over draws from p is KL(p || q), and it is never negative.

    Schulman, "Approximating KL Divergence", 2020. In fp64: near 0 the difference is all that counts.
    """
    r = log_ratio_bs.double()
    return torch.expm1(r) - r
