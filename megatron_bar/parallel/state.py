"""Processes: from a layout to Megatron's process groups, and back to nothing.

Legend: TP tensor, PP pipeline, EP expert, DP data parallelism; ETP the tensor parallelism inside an expert.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import Tensor

from megatron_bar.errors import BarError
from megatron_bar.parallel import cpu
from megatron_bar.weights.hf_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How one model is spread over processes; data parallelism takes the remaining factor."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    """Ranks that share the experts; 1: experts are cut like the dense layers, over the tensor ranks."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if type(value) is not int or value < 1:
                raise BarError(f"parallel.{name} must be a positive integer, got {value!r}")

    def expert_sizes(self, config: ModelConfig) -> tuple[int, int]:
        """Returns Megatron's EP and ETP: ranks that have different experts, and ranks over which each of
        those is cut.

        Where every expert is active, each rank gets a part of every expert. So any number of experts fits,
        and a frozen one, which has less to compute and no optimizer state, lightens no rank more than others.
        Where fewer are active, experts stay whole if they divide evenly over the ranks: tokens then travel to
        the few that they need. (Megatron's dispatcher wants one number of active experts for all layers.)
        """
        if self.expert == 1:
            return 1, self.tensor
        few = config.experts_per_token < config.num_experts and not config.experts_per_layer
        if few and config.num_experts % self.expert == 0:
            return self.expert, 1
        return 1, self.expert

    def check(self, config: ModelConfig, world_size: int) -> None:
        """Raises where a layout does not divide the processes or the model, naming both numbers."""
        if world_size < 1:
            raise BarError(f"processes expected above 0, got {world_size}")
        tp = self.tensor
        pp = self.pipeline
        ep, etp = self.expert_sizes(config)
        if world_size % (tp * pp):
            raise BarError(
                f"tensor {tp} x pipeline {pp} = {tp * pp} does not divide the {world_size} processes"
            )
        if world_size % (etp * ep * pp):
            raise BarError(f"expert {self.expert} x pipeline {pp} does not divide the {world_size} processes")
        if self.expert > 1 and not config.num_experts:
            raise BarError(f"expert parallelism {self.expert} needs experts, and the model is dense")
        for size, what, count in (
            (tp, "attention heads", config.num_heads),
            (tp, "key/value heads", config.num_kv_heads),
            (etp, "FFN columns", config.intermediate_size),
            (pp, "layers", config.num_layers),
        ):
            if count % size:
                raise BarError(f"{count} {what} cannot be divided over {size} ranks")


def padded_vocab_size(vocab_size: int, tensor: int, unit: int) -> int:
    """Returns the rows of the embedding cut over ``tensor`` ranks, each with a multiple of ``unit``."""
    return -(-vocab_size // (tensor * unit)) * tensor * unit


@contextmanager
def distributed(*, timeout: timedelta = timedelta(minutes=30)) -> Iterator[None]:
    """Opens a process group for the block: torchrun's if it started us, else one process alone."""
    if "RANK" not in os.environ:
        dist.init_process_group(cpu.backend(), store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group(cpu.backend(), timeout=timeout)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def set_layout(layout: ParallelConfig, config: ModelConfig, *, seed: int) -> None:
    """Builds Megatron's groups for a model in ``layout``, unless an earlier stage has left just these, and
    seeds every rank."""
    # Built anew for every stage they would add up: gloo's threads outlive their group, and hundreds of them
    # take half a core.
    if not is_set(layout, config):
        ep, etp = layout.expert_sizes(config)
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            expert_model_parallel_size=ep,
            expert_tensor_parallel_size=etp,
            create_gloo_process_groups=dist.get_backend() == "gloo",
        )
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def is_set(layout: ParallelConfig, config: ModelConfig) -> bool:
    """Returns whether Megatron's groups are those of such a model in ``layout``."""
    return parallel_state.model_parallel_is_initialized() and (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_expert_model_parallel_world_size(),
        parallel_state.get_expert_tensor_parallel_world_size(),
    ) == (layout.tensor, layout.pipeline, *layout.expert_sizes(config))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank_zero() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def gather_objects(mine: Any, group: dist.ProcessGroup | None = None) -> list:
    """Returns what every rank of ``group`` (None: all) brings, by rank, pickled on the way. Collective."""
    everyone: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    return everyone


def any_rank(flag: bool) -> bool:
    """Returns whether ``flag`` is set on any rank. Collective."""
    count = torch.tensor(float(flag), device=cpu.device())
    dist.all_reduce(count)
    return count.item() > 0


def broadcast_from_last_stage(values: Tensor) -> None:
    """Overwrites ``values`` on all pipeline ranks by those of the last one, which alone has logits.
    Collective."""
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(values, src=last, group=parallel_state.get_pipeline_model_parallel_group())


def share_error(error: BaseException | None) -> None:
    """Raises on every rank when one gives an error: a rank that failed alone would leave the others waiting.
    Collective."""
    errors = gather_objects(None if error is None else str(error))
    for rank, message in enumerate(errors):
        if message is not None:
            raise error if error is not None else BarError(f"rank {rank}: {message}")


def on_rank_zero[T](work: Callable[[], T]) -> T:
    """Returns on every rank what ``work`` returns on rank 0; raises on every rank when it raises there.
    Collective."""
    result = [None]
    error = None
    if is_rank_zero():
        try:
            result = [work()]
        except (BarError, OSError) as problem:
            error = problem
    share_error(error)
    dist.broadcast_object_list(result, src=0)
    return result[0]


def on_all_ranks(check: Callable[[], None]) -> None:
    """Calls ``check`` on every rank; raises on every rank when it raises on one. Collective."""
    error = None
    try:
        check()
    except (BarError, OSError) as problem:
        error = problem
    share_error(error)
