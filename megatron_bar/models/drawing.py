"""A token from a distribution: the inverse of its distribution function at a number that the prompt's own
generator gave.

Legend: r rows (answers), v vocabulary, 1 a single column.
"""

import numpy as np
import torch
from torch import Tensor


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
    else:
        probs_rv = logprobs_rv.double().exp()
        if top_p < 1:
            # Nucleus sampling (Holtzman et al. 2020): the more likely tokens before one have less than top_p
            # together.
            ordered, order = probs_rv.sort(-1, descending=True)
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
            probs_rv = torch.zeros_like(probs_rv).scatter(-1, order, ordered)
        # Times the last sum, which rounding and top-p leave other than 1.
        sums_rv = probs_rv.cumsum(-1)
        token_r1 = (sums_rv <= uniforms_r[:, None] * sums_rv[:, -1:]).sum(-1, keepdim=True)
    return token_r1.squeeze(-1).double(), logprobs_rv.gather(-1, token_r1).squeeze(-1).double()
