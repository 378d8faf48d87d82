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
    """Of one stage, from now on; ``policy`` says what trains, ``dense_router`` whether experts work for the router's gradient
    alone (see `Router.dense_gradient`)."""

    def __init__(self, config: ModelConfig, policy: FreezePolicy, *, dense_router: bool = False):
        self.config, self.policy, self.dense_router = config, policy, dense_router
        self.spent, self._began = Spent(), time.monotonic()
        self._active: tuple[int, ...] | None = None
        self.active(config.active)

    def active(self, active: tuple[int, ...]) -> None:
        """How many experts a token uses in each layer from now on."""
        if active == self._active:
            return
        self._active, config = active, self.config.with_active(active) if self.config.num_experts else self.config
        self.forward, self.backward = flops.forward(config), flops.backward(config, self.policy)
        self.training = flops.forward(config.with_active(config.num_experts)) if self.dense_router else self.forward

    def train(self, tokens: int, loss_tokens: int, pairs: int) -> None:
        """A step's forward and backward passes; ``pairs``: see flops.py."""
        self.spent.flops += self.training(tokens=tokens, pairs=pairs)
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
