"""Advantages of a group of answers to one prompt (GRPO, arXiv 2402.03300; centred only, as BAR publishes it)."""


def centred(rewards: list[float]) -> list[float]:
    """Reward minus the group's mean; no division by its deviation (arXiv 2604.18473)."""
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def informative(rewards: list[float]) -> bool:
    """Whether the group says anything: equal rewards have no advantage and are dropped."""
    return max(rewards) > min(rewards)
