"""The negative log-likelihood of tokens over a vocabulary cut across tensor ranks, in blocks of rows.

Source: Megatron-Core's vocab_parallel_cross_entropy. It copies all logits to fp32 and keeps their
exponentials; here the logits stay as the head made them, and fp32 exists for one block of rows at a time.

Legend: s sequence, b batch, t = s * b tokens, v vocabulary columns of this rank, padding included.
"""

import torch
import torch.distributed as dist
from torch import Tensor

BLOCK = 2**22
"""Logits that are in fp32 at once: they take 16 MiB."""


def token_nll(
    logits_sbv: Tensor, labels_bs: Tensor, *, vocab_size: int, group, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Returns negative log-likelihood and log-sum-exp ``[b, s]`` in fp32; both can be differentiated.

    ``logits_sbv``: this rank's columns. Those at or above ``vocab_size`` are padding and stay out of the
    softmax. A label below 0 gives an nll of 0. ``block``: logits that are in fp32 at once.
    """
    s, b, width = logits_sbv.shape
    start = group.rank() * width
    columns = min(width, max(0, vocab_size - start))
    nll_t, lse_t = _TokenNLL.apply(
        logits_sbv.flatten(0, 1), labels_bs.t().flatten(), start, columns, block, group
    )
    return nll_t.view(s, b).t(), lse_t.view(s, b).t()


class _TokenNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, logits_tv: Tensor, labels_t: Tensor, start: int, columns: int, block: int, group
    ) -> tuple[Tensor, Tensor]:
        """Returns nll and lse ``[t]``; ``start``: this rank's first token id, of which it has ``columns``."""
        mine_t = (labels_t >= start) & (labels_t < start + columns)
        local_t = torch.where(mine_t, labels_t - start, 0)
        # A rank may hold padding alone: nothing is picked there, and its sum of exponentials is 0.
        picked_t = torch.full((len(labels_t),), 0.0, device=logits_tv.device)
        lse_t = torch.full((len(labels_t),), float("-inf"), device=logits_tv.device)
        blocks = _blocks(logits_tv, block) if columns else []
        for rows in blocks:
            part = logits_tv[rows, :columns]
            label = local_t[rows, None]
            picked_t[rows] = part.gather(-1, label).squeeze(-1).float()
            # log_softmax, as logsumexp's exponential is several times slower on some processors.
            lse_t[rows] = picked_t[rows] - part.log_softmax(-1, torch.float32).gather(-1, label).squeeze(-1)
        share_t = None
        if group.size() > 1:
            every = lse_t.new_empty(group.size() * len(lse_t))
            dist.all_gather_into_tensor(every, lse_t, group=group)
            whole_t = every.view(group.size(), -1).logsumexp(0)
            # This rank's share of the sum of exponentials makes its own softmax that over the whole
            # vocabulary.
            share_t = (lse_t - whole_t).exp()
            lse_t = whole_t
            picked_t.masked_fill_(~mine_t, 0.0)
            dist.all_reduce(picked_t, group=group)
        ctx.save_for_backward(logits_tv, labels_t, local_t, mine_t, share_t)
        ctx.columns = columns
        ctx.blocks = blocks
        return torch.where(labels_t < 0, 0.0, lse_t - picked_t), lse_t

    @staticmethod
    def backward(ctx, grad_nll_t: Tensor, grad_lse_t: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradient of the logits: by nll it is softmax - 1 at the label, by lse softmax."""
        logits_tv, labels_t, local_t, mine_t, share_t = ctx.saved_tensors
        grad_nll_t = grad_nll_t.masked_fill(labels_t < 0, 0.0)
        grad_softmax_t = grad_nll_t + grad_lse_t
        if share_t is not None:
            grad_softmax_t *= share_t
        grad_picked_t = torch.where(mine_t, -grad_nll_t, 0.0)
        grad_tv = torch.empty_like(logits_tv)
        grad_tv[:, ctx.columns :] = 0  # all of it, where there are no blocks
        for rows in ctx.blocks:
            part = logits_tv[rows, : ctx.columns].softmax(-1, torch.float32).mul_(grad_softmax_t[rows, None])
            grad_tv[rows, : ctx.columns] = part.scatter_add_(
                -1, local_t[rows, None], grad_picked_t[rows, None]
            )
        return grad_tv, None, None, None, None, None


def _blocks(logits_tv: Tensor, block: int) -> list[slice]:
    size = max(1, block // logits_tv.shape[-1])
    return [slice(first, first + size) for first in range(0, len(logits_tv), size)]
