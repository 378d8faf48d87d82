"""A stage as a value: what trains, how fast, on rows of which size, over which processes."""

from dataclasses import dataclass, field
from typing import Literal

from megatron_bar.errors import BarError
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.training.optim import OptimConfig
from megatron_bar.weights.groups import POLICIES


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    """As it appears in logs, manifests and folder names: pretrain, midtrain, sft, rlvr, route."""
    policy: str
    """What trains: a key of `POLICIES`."""
    optim: OptimConfig
    sequence: int
    """Tokens in a row."""
    batch: int
    """Rows in an optimizer step, over all processes."""
    micro_batch: int = 1
    """Rows in one forward pass."""
    epochs: float = 1.0
    """Passes over the data; ignored where ``steps`` is set."""
    steps: int | None = None
    packing: Literal["cut", "documents"] = "documents"
    """Documents concatenated and cut (mid-training), or packed whole with masks between them (SFT, router)."""
    router_z_loss: float = 0.0
    """Weight of the mean squared logsumexp of the router logits, averaged over layers."""
    head_z_loss: float = 0.0
    recompute: bool = False
    """Recompute activations in the backward pass, layer by layer."""
    save_every: int = 0
    """Steps between checkpoints; 0: none."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    seed: int = 0

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise BarError(f"stage {self.name}: policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")
        for name in ("sequence", "batch", "micro_batch"):
            if getattr(self, name) < 1:
                raise BarError(f"stage {self.name}: {name} must be positive, got {getattr(self, name)}")
        if self.sequence % self.parallel.tensor:
            raise BarError(
                f"stage {self.name}: sequence {self.sequence} is not divisible by tensor parallelism {self.parallel.tensor}"
            )

    def num_steps(self, rows: int) -> int:
        """Optimizer steps over a data set of ``rows``; at least one."""
        return self.steps or max(1, round(self.epochs * rows / self.batch))
