"""A stage as a value: what trains, how fast, on rows of which size, over which processes."""

from dataclasses import dataclass, field
from random import Random
from typing import Literal

from megatron_bar.data.packing import TooLong
from megatron_bar.errors import BarError, require_at_least, require_name
from megatron_bar.models.attention import Kernels
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.training.optim import OptimConfig
from megatron_bar.weights.groups import POLICIES, ParamGroup, classify
from megatron_bar.weights.hf_config import ModelConfig, show_active, tensor_shapes


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What trains, how fast, on rows of which size, over which processes."""

    name: str
    """Name in logs, manifests and folder names: pretrain, midtrain, sft, rlvr, route."""
    policy: str
    """Key of `POLICIES`, which says what trains."""
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
    packing: Literal["cut", "cut_masked", "documents"] = "documents"
    """Documents concatenated and cut (mid-training), the same with attention and positions kept inside
    documents, or packed whole with masks between them (SFT, router)."""
    too_long: TooLong = "truncate"
    """Fate of a document longer than a row where documents are packed whole: truncate, drop, or error."""
    router_z_loss: float = 0.0
    """Weight of the mean squared logsumexp of the router logits, averaged over layers."""
    head_z_loss: float = 0.0
    active_experts: int | tuple[int, ...] | Literal["sampled"] | None = None
    """Experts of a token: in every layer, or layer by layer, which the folder that is written then says, too;
    sampled: 2 to all of them, drawn anew for every batch; None: as the folder says."""
    router_gradient: Literal["selected", "dense"] = "selected"
    """Whether the router also learns from what the experts not chosen would have made of a token."""
    alone: float = 0.0
    """Share of the steps in which the domain expert is the only one (k-dropout); of a branch's training."""
    recompute: bool = False
    """Whether activations are recomputed in the backward pass, layer by layer."""
    attention: Kernels = "torch"
    """Kernels that attend: torch's (flash attention on a GPU) or Transformer Engine's, where installed."""
    save_every: int = 0
    """Steps between checkpoints; 0: none."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    seed: int = 0
    max_skipped: int = 3
    """Steps in a row with a non-finite loss or gradient, which are skipped, before the run stops."""
    spike: float = 10.0
    """Times its running median at which a loss or gradient norm is reported; 0: none is."""

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise BarError(
                f"stage {self.name}: policy must be one of {', '.join(POLICIES)}, got {self.policy!r}"
            )
        owner = f"stage {self.name}"
        require_name("stage", self.name)
        require_at_least(owner, self, 1, "sequence", "batch", "micro_batch", "steps", "max_skipped")
        require_at_least(owner, self, 0, "save_every", "router_z_loss", "head_z_loss", "seed", "spike")
        if not 0 <= self.alone < 1:
            raise BarError(
                f"{owner}: alone must be a share of the steps, from 0 to below 1, got {self.alone}"
            )
        if not self.epochs > 0:
            raise BarError(f"{owner}: epochs must be positive, got {self.epochs}")
        decay = self.optim.weight_decay
        if POLICIES[self.policy].anchor_row_frozen and decay:  # it moves a row without a gradient, too
            raise BarError(
                f"{owner}: weight_decay must be 0 where the router's anchor row is frozen, got {decay}"
            )
        if self.sequence % self.parallel.tensor:
            raise BarError(
                f"{owner}: sequence {self.sequence} is not divisible "
                f"by tensor parallelism {self.parallel.tensor}"
            )

    def check(self, shape: ModelConfig, world_size: int, *, batches: bool = True) -> None:
        """Raises unless the stage can train a model of this shape on so many processes.

        ``batches``: by batches of that many rows.
        """
        built = self.built(shape)
        try:
            self.parallel.check(built, world_size)
        except BarError as error:
            raise BarError(f"stage {self.name}: {error}") from None
        # What the policy trains must be there, or the stage would train less than it says.
        groups = {classify(name) for name in tensor_shapes(shape)}
        absent = sorted(group.value for group in POLICIES[self.policy].trains - groups)
        if absent:
            raise BarError(
                f"stage {self.name}: policy {self.policy} trains {', '.join(absent)}, "
                "which the model does not have"
            )
        self._check_active(shape)
        # Tensor and pipeline ranks share rows; all others, expert ranks among them, have their own.
        unit = self.micro_batch * world_size // (self.parallel.tensor * self.parallel.pipeline)
        if batches and self.batch % unit:
            raise BarError(
                f"stage {self.name}: batch of {self.batch} rows is not divisible "
                f"by micro-batch {self.micro_batch} x {unit // self.micro_batch} data-parallel ranks"
            )

    def _check_active(self, shape: ModelConfig) -> None:
        """Raises unless the model has the active experts that are asked for, and its routers can learn."""
        owner = f"stage {self.name}"
        if not shape.num_experts:
            if (self.active_experts, self.router_gradient, self.alone) != (None, "selected", 0):
                wanted = "active_experts, router_gradient and alone expect a model with experts"
                raise BarError(f"{owner}: {wanted}, got a dense one")
            return
        layers = self.written(shape).active
        trains = POLICIES[self.policy].trains
        learns = ParamGroup.ROUTER in trains and (
            self.active_experts is not None or trains == {ParamGroup.ROUTER}
        )
        why = "it is renormalised to 1" if shape.norm_topk_prob else None
        if shape.block.norms == "after":
            why = "the norm behind the block cancels its weight"
        if learns and 1 in layers and why:
            raise BarError(
                f"{owner}: with 1 active expert {why}, so that has no "
                "gradient; to train a router expected at least 2, got "
                f"{show_active(self.active_experts or shape.active)}"
            )
        if self.router_gradient == "dense" and shape.norm_topk_prob:
            wanted = "a dense router_gradient expected a model with norm_topk_prob false"
            raise BarError(f"{owner}: {wanted}, got true")
        if self.alone and shape.num_experts > 2:
            raise BarError(
                f"{owner}: alone expected an anchor and one expert, got {shape.num_experts} experts"
            )

    def written(self, shape: ModelConfig) -> ModelConfig:
        """Returns the config of the folder that the stage writes, from a model of ``shape``."""
        if self.active_experts in (None, "sampled"):
            return shape
        try:
            return shape.with_active(self.active_experts)
        except BarError as error:
            raise BarError(f"stage {self.name}: {error}") from None

    def built(self, shape: ModelConfig) -> ModelConfig:
        """Returns what the model is built as: with all experts active where a step may need any of them."""
        if shape.num_experts and (self.active_experts == "sampled" or self.router_gradient == "dense"):
            return shape.with_active(shape.num_experts)
        return self.written(shape)

    def active(self, shape: ModelConfig, step: int) -> tuple[int, ...]:
        """Returns the experts of a token in each layer, in that step (from 0)."""
        if self.active_experts != "sampled":
            return self.written(shape).active
        # A generator of its own for every step: a resumed stage draws what it would have drawn.
        return (Random(f"{self.seed}/active/{step}").randint(2, shape.num_experts),) * shape.num_layers

    def is_alone(self, step: int) -> bool:
        """Returns whether the domain expert works alone in that step (from 0)."""
        return Random(f"{self.seed}/alone/{step}").random() < self.alone

    def num_steps(self, rows: int) -> int:
        """Returns the optimizer steps over a data set of ``rows``; at least one."""
        return self.steps or max(1, round(self.epochs * rows / self.batch))
