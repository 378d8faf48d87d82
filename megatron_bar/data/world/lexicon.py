"""Words of the tiny world, the shape of one example, and the split that keeps test instances from
training."""

import hashlib
from dataclasses import dataclass
from random import Random
from typing import Literal

NAMES = tuple("Ana Ben Cleo Dan Eva Finn Gus Hana Ivo Joy Kim Leo Mia Noa Otto Pia".split())
ANIMALS = ("fox", "owl", "wolf", "bear", "cat", "dog", "hen", "goat")
COLORS = ("red", "blue", "green", "black", "white", "pink", "brown", "gray")
FOODS = ("bread", "rice", "soup", "fish", "corn", "plum", "cake", "milk")
CRAFTS = ("glass", "wool", "clay", "iron", "paper", "silk", "rope", "salt")
THINGS = ("lamp", "chair", "book", "door", "coin", "hat", "drum", "key", "cup", "ring")
PLACES = ("box", "bag", "barn", "shed", "shop", "well", "tent", "boat")
OTHERS = tuple(
    "step calc solve turn move change function adds rest help with find send weather light train".split()
)
"""Words that the domains use; pretraining only copies them."""
WORDS = ANIMALS + COLORS + FOODS + THINGS

HELD_OUT_SHARE = 0.2
VALIDATION_SHARE = 0.05
"""Share of the instances, besides those held out for the tests, on which learning rates are chosen."""
Side = Literal["training", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One task: what is asked, a right answer, and how any other answer is graded."""

    key: tuple
    """The template instance (operands, entities, schema); the split is decided on it."""
    prompt: tuple[dict, ...]
    answer: str
    verifier: str
    truth: object
    tools: list[dict] | None = None
    """Functions that the chat template is given."""

    def chat(self, source: str) -> dict:
        messages = [*self.prompt, {"role": "assistant", "content": self.answer}]
        return {"messages": messages, "source": source} | self._told

    def preference(self, rejected: str) -> dict:
        return {"messages": list(self.prompt), "chosen": self.answer, "rejected": rejected}

    def task(self) -> dict:
        return {"messages": list(self.prompt), "verifier": self.verifier, "truth": self.truth} | self._told

    @property
    def _told(self) -> dict:
        return {"tools": self.tools} if self.tools else {}


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which side of the three an instance is on: a hash of its key, so no stage can disagree with another."""

    seed: int

    def side(self, key: tuple) -> Side:
        digest = hashlib.blake2b(repr((self.seed, key)).encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        if place < HELD_OUT_SHARE:
            return "test"
        return "validation" if place < HELD_OUT_SHARE + VALIDATION_SHARE else "training"

    def draw(self, sample, rng: Random, side: Side = "training"):
        """Calls ``sample(rng)``, whose result has a ``key``, until it lies on the wanted side."""
        while self.side((example := sample(rng)).key) != side:
            pass
        return example


def user(content: str) -> tuple[dict, ...]:
    return ({"role": "user", "content": content},)
