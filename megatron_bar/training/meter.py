"""What a stage costs, counted while it works: tokens, operations, seconds; over interruptions by way of its checkpoints.

The same on every rank: counts are of all data-parallel ranks, operations of all devices.
"""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch.distributed as dist

from megatron_bar.parallel import cpu
from megatron_bar.training import flops
from megatron_bar.weights.groups import FreezePolicy
from megatron_bar.weights.hf_config import ModelConfig
from megatron_bar.weights.manifest import Cost


@dataclass
class Spent:
    tokens: int = 0
    loss_tokens: int = 0
    generated: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    """Before this process."""


class Meter:
    """Of one stage, from now on; ``policy`` says what trains."""

    def __init__(self, config: ModelConfig, policy: FreezePolicy):
        self.forward, self.backward = flops.forward(config), flops.backward(config, policy)
        self.spent, self._began = Spent(), time.monotonic()

    def train(self, tokens: int, loss_tokens: int, pairs: int) -> None:
        """A step's forward and backward passes; ``pairs``: see flops.py."""
        self.score(tokens, pairs)
        self.spent.tokens += tokens
        self.spent.loss_tokens += loss_tokens
        self.spent.flops += self.backward(tokens=tokens, pairs=pairs)

    def score(self, tokens: int, pairs: int) -> None:
        """A pass that does not train."""
        self.spent.flops += self.forward(tokens=tokens, pairs=pairs)

    def sample(self, lengths: Iterable[tuple[int, int]]) -> None:
        """Answers by their lengths: prompt and answer. With a cache every token but the last is read once."""
        for prompt, answer in lengths:
            read = prompt + answer - 1
            self.spent.generated += answer
            self.spent.flops += self.forward(tokens=read, pairs=read * (read + 1) // 2, heads=answer)

    @property
    def seconds(self) -> float:
        return self.spent.seconds + time.monotonic() - self._began

    def saved(self) -> dict:
        """As JSON."""
        return asdict(self.spent) | {"seconds": self.seconds}

    def restore(self, saved: dict) -> None:
        self.spent = Spent(**saved)

    def cost(self, step: str, stage: str) -> Cost:
        """The ledger's entry."""
        spent = self.saved() | {"seconds": round(self.seconds, 3)}
        return Cost(step=step, stage=stage, devices=dist.get_world_size(), device=cpu.device_name(), **spent)
