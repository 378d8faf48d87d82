"""Optimizer and learning-rate schedule of a stage: Megatron's distributed AdamW."""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_bar.errors import BarError, require_at_least
from megatron_bar.models.build import LanguageModel
from megatron_bar.parallel import cpu


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Way that it falls after the warmup."""
    final_lr_ratio: float = 0.0
    """Last learning rate over the peak."""
    warmup: float = 0.0
    """Steps of linear warmup if at least 1, else their share of all steps."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest global gradient norm."""

    def __post_init__(self):
        for name, value in (("lr", self.lr), ("eps", self.eps), ("clip", self.clip)):
            if not value > 0:
                raise BarError(f"optim.{name} must be positive, got {value}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise BarError(f"optim.betas must be within 0 and 1, got {self.betas}")
        require_at_least("optim", self, 0, "weight_decay")
        if self.warmup < 0 or not 0 <= self.final_lr_ratio <= 1:
            raise BarError(
                f"optim.warmup {self.warmup} must not be negative "
                f"and final_lr_ratio {self.final_lr_ratio} within 0 and 1"
            )

    def warmup_steps(self, steps: int) -> int:
        """Returns how many of ``steps`` warm up."""
        return min(steps, round(self.warmup if self.warmup >= 1 else self.warmup * steps))


def data_parallel(model: LanguageModel) -> DistributedDataParallel:
    """Sums the gradients of what trains over the ranks that hold it, in fp32; `freeze` comes before."""
    config = DistributedDataParallelConfig(
        use_distributed_optimizer=True, grad_reduce_in_fp32=True, overlap_grad_reduce=True
    )
    return DistributedDataParallel(model.config, config, model)


def build_optimizer(model: DistributedDataParallel, optim: OptimConfig):
    """Builds Megatron's optimizer over what is trainable on this rank; possibly nothing."""
    dtype = model.config.params_dtype
    config = OptimizerConfig(
        optimizer="adam",
        lr=optim.lr,
        min_lr=optim.lr * optim.final_lr_ratio,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_eps=optim.eps,
        clip_grad=optim.clip,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = get_megatron_optimizer(config, [model], use_gloo_process_groups=False)
    if isinstance(optimizer, ChainedOptimizer):
        # A stub stands for a kind of parameter of which nothing trains here; its state cannot be saved.
        optimizer.chained_optimizers = [
            part for part in optimizer.chained_optimizers if not part.is_stub_optimizer
        ]
    for part in distributed_optimizers(optimizer):
        if isinstance(
            part.optimizer, torch.optim.AdamW
        ):  # where neither apex nor Transformer Engine brings one
            for group in part.optimizer.param_groups:
                group["fused"] = True
    return optimizer


def distributed_optimizers(optimizer) -> list:
    """Returns Megatron's distributed optimizers: for experts spread over ranks, and for the rest."""
    return optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]


def update(optimizer, *, finite: bool) -> tuple[bool, float]:
    """Makes Megatron's ``step`` with a look at the norm before anything moves: it would update with a NaN.
    Collective.

    Nothing moves where the gradients' norm or, by ``finite``, the loss is not finite. Returns whether it did,
    and the norm.
    """
    optimizer.prepare_grads()
    norm = _grad_norm(optimizer)
    if not (finite and math.isfinite(norm)):
        return False, norm
    for part in distributed_optimizers(optimizer):
        share = part.config.clip_grad / (norm + 1e-6)  # as torch's clip_grad_norm_ has it
        grads = [param.grad for param in part.get_parameters() if param.grad is not None]
        if share < 1 and grads:
            torch._foreach_mul_(grads, share)  # in place; without apex Megatron's own clipping copies them
    assert optimizer.step_with_ready_grads()
    return True, norm


def _grad_norm(optimizer) -> float:
    """The norm over all ranks, for which a GPU is asked once: Megatron without apex asks by tensor."""
    squares = []
    for part in distributed_optimizers(optimizer):
        grads = part.get_grads_for_grad_norm()
        norms = torch._foreach_norm(grads) if grads else [torch.zeros((), device=cpu.device())]
        square = torch.stack(norms).float().norm() ** 2
        dist.all_reduce(square, group=part.get_grad_stats_parallel_group())
        squares.append(square)
    return math.sqrt(sum(torch.stack(squares).tolist())) if squares else 0.0


def build_scheduler(optimizer, optim: OptimConfig, steps: int) -> OptimizerParamScheduler:
    """Builds the schedule; its ``step(1)`` comes before an optimizer step, so that none has rate 0."""
    # Megatron's last step has the final rate; one step more, and a rate that falls to 0 is never reached.
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=optim.lr,
        min_lr=optim.lr * optim.final_lr_ratio,
        lr_warmup_steps=optim.warmup_steps(steps),
        lr_decay_steps=steps + 1,
        lr_decay_style=optim.schedule,
        start_wd=optim.weight_decay,
        end_wd=optim.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
    )
