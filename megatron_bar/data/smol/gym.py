"""Tasks of reasoning-gym (arXiv 2505.24760), where that package is installed: those whose answer is a number,
which the verifier of mathematics compares."""

import importlib
import importlib.util
from fractions import Fraction

from megatron_bar.data.smol.math import ENDS

DATASETS = ("chain_sum", "basic_arithmetic", "gcd", "lcm", "leg_counting", "simple_equations", "gsm_symbolic")


def is_there() -> bool:
    return importlib.util.find_spec("reasoning_gym") is not None


def tasks(seed: int, count: int) -> list[dict]:
    """Returns ``count`` tasks, as many of each data set."""
    gym = importlib.import_module("reasoning_gym")
    made = {name: gym.create_dataset(name, size=2 * count, seed=seed) for name in DATASETS}
    rows = []
    for number in range(2 * count):
        for found in made.values():
            entry = found[number]
            if len(rows) < count and _is_number(entry["answer"]):
                asked = entry["question"].strip() + ENDS[0]
                messages = [{"role": "user", "content": asked}]
                rows.append({"messages": messages, "verifier": "math", "truth": entry["answer"]})
    return rows


def _is_number(text: str) -> bool:
    try:
        Fraction(text)
    except ValueError:
        return False
    return True
