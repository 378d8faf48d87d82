"""The negative log-likelihood of tokens over a vocabulary cut across tensor ranks, in blocks of rows.

Source: Megatron-Core's vocab_parallel_cross_entropy. It copies all logits to fp32 and keeps their exponentials; here the
logits stay as the head made them, and fp32 exists for one block of rows at a time.
"""

import torch
import torch.distributed as dist
from torch import Tensor

BLOCK = 2**24
"""16 million logits in fp32 take 64 MiB."""


def token_nll(logits_sbv: Tensor, labels_bs: Tensor, *, vocab_size: int, group, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood and log-sum-exp ``[b, s]`` in fp32; both can be differentiated.

    ``logits_sbv``: this rank's columns. Those at or above ``vocab_size`` are padding and stay out of the softmax. A label below 0
    gives an nll of 0. ``block``: logits that are in fp32 at once.
    """
    s, b, width = logits_sbv.shape
    start = group.rank() * width
    columns = min(width, max(0, vocab_size - start))
    nll, lse = _TokenNLL.apply(logits_sbv.flatten(0, 1), labels_bs.t().flatten(), start, columns, block, group)
    return nll.view(s, b).t(), lse.view(s, b).t()


class _TokenNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, start: int, columns: int, block: int, group) -> tuple[Tensor, Tensor]:
        """logits ``[t, v]``, of which the first ``columns`` count, labels ``[t]`` -> nll and lse ``[t]``."""
        mine = (labels >= start) & (labels < start + columns)
        local = torch.where(mine, labels - start, 0)
        # A rank may hold padding alone: nothing is picked there, and its sum of exponentials is 0.
        picked, lse = (torch.full((len(labels),), value, device=logits.device) for value in (0.0, float("-inf")))
        blocks = _blocks(logits, block) if columns else []
        for rows in blocks:
            part, label = logits[rows, :columns], local[rows, None]
            picked[rows] = part.gather(-1, label).squeeze(-1).float()
            # log_softmax, as logsumexp's exponential is several times slower on some processors.
            lse[rows] = picked[rows] - part.log_softmax(-1, torch.float32).gather(-1, label).squeeze(-1)
        share = None
        if group.size() > 1:
            every = lse.new_empty(group.size() * len(lse))
            dist.all_gather_into_tensor(every, lse, group=group)
            whole = every.view(group.size(), -1).logsumexp(0)
            share, lse = (lse - whole).exp(), whole
            picked.masked_fill_(~mine, 0.0)
            dist.all_reduce(picked, group=group)
        ctx.save_for_backward(logits, labels, local, mine, share)
        ctx.columns, ctx.blocks = columns, blocks
        return torch.where(labels < 0, 0.0, lse - picked), lse

    @staticmethod
    def backward(ctx, grad_nll: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, local, mine, share = ctx.saved_tensors
        grad_nll = grad_nll.masked_fill(labels < 0, 0.0)
        grad_softmax = grad_nll + grad_lse
        if share is not None:
            grad_softmax *= share
        grad_picked = torch.where(mine, -grad_nll, 0.0)
        grad = torch.empty_like(logits)
        grad[:, ctx.columns :] = 0  # all of it, where there are no blocks
        for rows in ctx.blocks:
            part = logits[rows, : ctx.columns].softmax(-1, torch.float32).mul_(grad_softmax[rows, None])
            grad[rows, : ctx.columns] = part.scatter_add_(-1, local[rows, None], grad_picked[rows, None])
        return grad, None, None, None, None, None


def _blocks(logits: Tensor, block: int) -> list[slice]:
    size = max(1, block // logits.shape[-1])
    return [slice(first, first + size) for first in range(0, len(logits), size)]
