"""Advantages of the answers to a prompt; a variant is a function and a line in `ADVANTAGES`."""

from collections.abc import Callable
from statistics import fmean, pstdev


def centred(rewards: list[float], lengths: list[int], longest: int) -> list[float]:
    """Returns reward minus the group's mean, not divided by its deviation: as in BAR (arXiv 2604.18473)."""
    mean = fmean(rewards)
    return [reward - mean for reward in rewards]


def standardised(rewards: list[float], lengths: list[int], longest: int) -> list[float]:
    """Divides by the group's standard deviation too: GRPO as first written (arXiv 2402.03300, equation 3)."""
    deviation = pstdev(rewards)
    return [advantage / (deviation + 1e-6) for advantage in centred(rewards, lengths, longest)]


def dr_grpo(rewards: list[float], lengths: list[int], longest: int) -> list[float]:
    """Centres, and divides every token by a constant, the longest answer allowed, in place of the number of
    tokens.

    Dr. GRPO (arXiv 2503.20783, section 3). The trainer divides a step by its tokens, so the group's own mean
    length is multiplied back in here: exact where all groups of a step are as long as each other.
    """
    return [advantage * fmean(lengths) / longest for advantage in centred(rewards, lengths, longest)]


Advantages = Callable[[list[float], list[int], int], list[float]]
"""Rewards and lengths in tokens of a group's answers, and the longest length allowed."""
ADVANTAGES: dict[str, Advantages] = {"centred": centred, "standardised": standardised, "dr_grpo": dr_grpo}


def informative(rewards: list[float]) -> bool:
    """Returns whether the group says anything: equal rewards have no advantage and are dropped."""
    return max(rewards) > min(rewards)
