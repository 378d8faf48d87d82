"""A token from a distribution: the inverse of its distribution function at a number that the prompt's own
generator gave.

Legend: r rows (answers), v vocabulary, n the likeliest tokens, b blocks of w tokens, 1 a single column.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
"""Tokens whose probabilities are summed up before one of them is looked for."""
LIKELIEST = (512, 8192)
"""Tokens among which a nucleus is looked for on a CPU, before all are sorted."""


def uniforms(seed: int, number: int, count: int) -> list[float]:
    """Returns ``count`` uniform numbers from 0 to 1, given by the seed and a prompt's number alone."""
    # Philox (Salmon et al. 2011): torch's generator on a CPU looks at 32 bits of a seed alone.
    generator = np.random.Generator(np.random.Philox(key=[seed, number]))
    return generator.random(count).tolist()


def draw(logits_rv: Tensor, uniforms_r: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Returns a token for each row and its log-probability, both ``[r]`` fp64.

    ``uniforms_r``: a random number for each; its token is the first at which the sum of probabilities exceeds
    it.
    """
    logprobs_rv = (logits_rv / temperature if temperature else logits_rv).log_softmax(-1)
    if not temperature:
        token_r1 = logprobs_rv.argmax(-1, keepdim=True)
    elif top_p < 1:
        ids_rn, probs_rn = _nucleus(logprobs_rv, top_p)
        token_r1 = ids_rn.gather(-1, _first_above(probs_rn, uniforms_r))
    else:
        token_r1 = _first_above(logprobs_rv.exp(), uniforms_r)
    return token_r1.squeeze(-1).double(), logprobs_rv.gather(-1, token_r1).squeeze(-1).double()


def _nucleus(logprobs_rv: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Returns the ids, ascending, and the probabilities of the likeliest tokens of each row, among them its
    nucleus (Holtzman et al. 2020); 0 for those outside: where the more likely ones have ``top_p`` together.
    """
    # The few that are nearly always enough are found far faster than all are sorted. A GPU, which would wait
    # to learn whether they are, sorts all.
    for count in () if logprobs_rv.is_cuda else LIKELIEST:
        if count < logprobs_rv.shape[-1]:
            logprobs_rn, ids_rn = logprobs_rv.topk(count)
            probs_rn, before_rn = _with_sums(logprobs_rn)
            if bool((before_rn[:, -1] >= top_p).all()):
                break
    else:
        logprobs_rn, ids_rn = logprobs_rv.sort(-1, descending=True)
        probs_rn, before_rn = _with_sums(logprobs_rn)
    probs_rn = probs_rn.masked_fill(before_rn >= top_p, 0.0)
    ids_rn, order_rn = ids_rn.sort(-1)
    return ids_rn, probs_rn.gather(-1, order_rn)


def _with_sums(logprobs_rn: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the probabilities, and the sums of those before each."""
    probs_rn = logprobs_rn.double().exp()
    return probs_rn, probs_rn.cumsum(-1) - probs_rn


def _first_above(probs_rv: Tensor, uniforms_r: Tensor) -> Tensor:
    """Returns the first place ``[r, 1]`` at which the sum exceeds that part of the whole, which rounding and
    top-p leave other than 1."""
    # The sums of blocks in fp64, and of the single tokens in one block of them.
    blocks_rbw = F.pad(probs_rv, (0, -probs_rv.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    ends_rb = blocks_rbw.sum(-1, dtype=torch.float64).cumsum(-1)
    sought_r1 = _below(uniforms_r[:, None] * ends_rb[:, -1:], ends_rb)
    block_r1 = (ends_rb <= sought_r1).sum(-1, keepdim=True)
    starts_rb = F.pad(ends_rb, (1, 0))
    sums_rw = blocks_rbw.take_along_dim(block_r1[:, :, None], 1)[:, 0].double().cumsum(-1)
    sums_rw += starts_rb.gather(-1, block_r1)
    return block_r1 * BLOCK + (sums_rw <= _below(sought_r1, sums_rw)).sum(-1, keepdim=True)


def _below(sought_r1: Tensor, sums_rn: Tensor) -> Tensor:
    """Returns what is sought, or the number before the last sum, which rounding may have made too small."""
    last_r1 = sums_rn[:, -1:]
    return torch.minimum(sought_r1, last_r1.nextafter(torch.zeros_like(last_r1)))
