"""Tasks of reasoning-gym (arXiv 2505.24760), where that package is installed: small ones whose answer is a
number, which the verifier of mathematics compares. Left out: its gsm_symbolic, made of GSM8K's test items.
"""

import importlib
import importlib.util
from fractions import Fraction

from megatron_bar.data.smol.math import ENDS

DATASETS = {
    "chain_sum": {"max_terms": 3, "max_digits": 2},
    "basic_arithmetic": {"max_terms": 3, "max_digits": 2},
    "gcd": {"max_value": 60},
    "lcm": {"max_value": 20},
    "leg_counting": {"min_animals": 1, "max_animals": 3, "max_instances": 6},
    "simple_equations": {"max_terms": 2, "max_value": 20},
}
"""With what makes them easier than they are by default."""


def is_there() -> bool:
    return importlib.util.find_spec("reasoning_gym") is not None


def tasks(seed: int, count: int) -> list[dict]:
    """Returns ``count`` tasks, as many of each data set."""
    gym = importlib.import_module("reasoning_gym")
    made = {
        name: gym.create_dataset(name, size=count, seed=seed, **easier) for name, easier in DATASETS.items()
    }
    rows = []
    for number in range(count):
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
