"""What a stage costs, counted while it works: tokens, operations, seconds; over interruptions by way of its
checkpoints.

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
    """What was spent."""

    tokens: int = 0
    loss_tokens: int = 0
    generated: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    """Seconds before this process."""


@dataclass(frozen=True, kw_only=True)
class _Passes:
    """Operations of the passes of a model with a number of active experts."""

    active: tuple[int, ...]
    forward: flops.Flops
    training: flops.Flops
    """Forward passes of a step: in one with a dense router gradient all experts work."""
    backward: flops.Flops

    @classmethod
    def of(cls, config: ModelConfig, policy: FreezePolicy, *, dense_router: bool) -> "_Passes":
        forward = flops.forward(config)
        return cls(
            active=config.active,
            forward=forward,
            training=flops.forward(config.with_active(config.num_experts)) if dense_router else forward,
            backward=flops.backward(config, policy),
        )


class Meter:
    """Adds up what one stage costs from now on.

    ``policy`` says what trains, ``dense_router`` whether experts work for the router's gradient alone (see
    `Routing.dense_gradient`).
    """

    def __init__(self, config: ModelConfig, policy: FreezePolicy, *, dense_router: bool = False):
        self.config = config
        self.policy = policy
        self.dense_router = dense_router
        self.spent = Spent()
        self._began = time.monotonic()
        self._passes = _Passes.of(config, policy, dense_router=dense_router)

    def active(self, active: tuple[int, ...]) -> None:
        """Takes how many experts a token uses in each layer from now on; a dense model is never asked."""
        if active != self._passes.active:
            config = self.config.with_active(active)
            self._passes = _Passes.of(config, self.policy, dense_router=self.dense_router)

    def train(self, tokens: int, loss_tokens: int, pairs: int) -> None:
        """Adds a step's forward and backward passes; ``pairs``: see flops.py."""
        # An expert that works for the router's gradient alone has no backward pass.
        self.spent.flops += self._passes.training(tokens=tokens, pairs=pairs, heads=loss_tokens)
        self.spent.tokens += tokens
        self.spent.loss_tokens += loss_tokens
        self.spent.flops += self._passes.backward(tokens=tokens, pairs=pairs, heads=loss_tokens)

    def score(self, tokens: int, loss_tokens: int, pairs: int) -> None:
        """Adds a pass that does not train."""
        self.spent.flops += self._passes.forward(tokens=tokens, pairs=pairs, heads=loss_tokens)

    def sample(self, lengths: Iterable[tuple[int, int]]) -> None:
        """Adds answers by lengths of prompt and answer; all tokens but the last are read, by a cache once."""
        for prompt, answer in lengths:
            read = prompt + answer - 1
            self.spent.generated += answer
            self.spent.flops += self._passes.forward(tokens=read, pairs=read * (read + 1) // 2, heads=answer)

    @property
    def seconds(self) -> float:
        """Seconds of the stage so far, those of processes before this one included."""
        return self.spent.seconds + time.monotonic() - self._began

    def saved(self) -> dict:
        """Returns what was spent as JSON, for a checkpoint."""
        return asdict(self.spent) | {"seconds": self.seconds}

    def restore(self, saved: dict) -> None:
        """Goes on from what `saved` returned."""
        self.spent = Spent(**saved)

    def cost(self, step: str, stage: str) -> Cost:
        """Returns the ledger's entry."""
        spent = self.saved() | {"seconds": round(self.seconds, 3)}
        return Cost(step=step, stage=stage, devices=dist.get_world_size(), device=cpu.device_name(), **spent)
