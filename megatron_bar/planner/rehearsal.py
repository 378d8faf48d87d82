"""Rehearses a stage on a job of any size, in one process: builds every rank's real model, freeze, DDP and
optimizer, and checks that they fit together (ranks.py).

The ranks are built one after the other with fake process groups on the meta device (parallel/fake.py).
Nothing here says how a layout spreads a model: each rank tells what it would read of the folder, and
Megatron's own DDP, gradient finalizer and optimizer tell over which ranks a gradient is summed, who updates
which values and whose count for the gradient norm. What a step computes and exchanges is not rehearsed.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

import megatron_bar.parallel  # noqa: F401  (adapts Megatron-Core to a CPU before it is imported)

# isort: split
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.distributed.finalize_model_grads import _allreduce_non_tensor_model_parallel_grads
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_bar.conversion.ops import WeightOp
from megatron_bar.conversion.regions import cut_regions
from megatron_bar.errors import BarError
from megatron_bar.models.build import build_model
from megatron_bar.models.shards import place
from megatron_bar.parallel.fake import fake_rank
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.planner.ranks import Part, Rank, Ranks, check_ranks
from megatron_bar.training.freeze import freeze
from megatron_bar.training.optim import build_optimizer, data_parallel, distributed_optimizers
from megatron_bar.training.pieces import owned_ranges
from megatron_bar.training.stage import Stage
from megatron_bar.weights.groups import POLICIES
from megatron_bar.weights.hf_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """The result of a rehearsal; ``str`` is the line that a dry run prints."""

    layout: ParallelConfig
    ranks: int
    kinds: int
    """Number of kinds of ranks; those of one kind hold the same parts of the model."""
    data_size: int
    parameters: tuple[int, int]
    """Smallest and largest number of parameters on one rank, padding included."""
    trainable: tuple[int, int]
    """Smallest and largest number of those that train."""
    idle: Ranks
    """Ranks on which nothing trains."""

    def __str__(self) -> str:
        layout = self.layout
        idle = f", nothing trains on {len(self.idle)} of them" if self.idle else ""
        return (
            f"{self.ranks} ranks of {self.kinds} kinds (tensor {layout.tensor} pipeline {layout.pipeline} "
            f"expert {layout.expert}, {self.data_size} data-parallel){idle}; "
            f"parameters per rank {_span(self.parameters)}, trainable {_span(self.trainable)}: OK"
        )


def _span(smallest_and_largest: tuple[int, int]) -> str:
    return "..".join(f"{n:,}" for n in sorted({*smallest_and_largest}))


def rehearse(
    name: str, shape: ModelConfig, stage: Stage, world_size: int, *, batches: bool = True
) -> Rehearsal:
    """Rehearses ``stage``, called ``name`` in messages, on ``world_size`` ranks; ``batches``: see
    `Stage.check`. Raises BarError that says what does not fit."""
    stage.check(shape, world_size, batches=batches)
    shape = stage.built(shape)
    with _collected_apart():
        ranks = [build_rank(number, world_size, shape, stage) for number in range(world_size)]
    try:
        check_ranks(ranks, shape, stage)
    except BarError as error:
        raise BarError(f"{name} on {world_size} ranks: {error}") from None
    sizes = [sum(part.values for part in rank.parts) for rank in ranks]
    trained = [sum(part.values for part in rank.parts if part.trains) for rank in ranks]
    return Rehearsal(
        layout=stage.parallel,
        ranks=world_size,
        kinds=len({tuple((part.op, part.number) for part in rank.parts) for rank in ranks}),
        data_size=ranks[0].data_size,
        parameters=(min(sizes), max(sizes)),
        trainable=(min(trained), max(trained)),
        idle=tuple(rank.number for rank, count in zip(ranks, trained, strict=True) if not count),
    )


@contextmanager
def _collected_apart() -> Iterator[None]:
    """Keeps the garbage collector from going through what is there already, the imported modules above all:
    that takes a quarter of the time in which the block builds models."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def build_rank(number: int, world_size: int, shape: ModelConfig, stage: Stage) -> Rank:
    """Returns what rank ``number`` would hold, train, sum and update."""
    with fake_rank(number, world_size, stage.parallel, shape):
        model = build_model(shape, stage.parallel, recompute=stage.recompute, attention=stage.attention)
        frozen = freeze(model, POLICIES[stage.policy])
        ddp = data_parallel(model)
        optimizers = distributed_optimizers(build_optimizer(ddp, stage.optim))
        trained = _trained(number, ddp, optimizers)
        parts = []
        for name, param, op in model.parameters_with_ops():
            part = _part(number, name, param, op, shape)
            masked = param.requires_grad and op.names[0] in frozen.parts
            parts.append(Part(**part, masked=masked, **trained.get(name, {})))
        buffers = (*ddp.buffers, *ddp.expert_parallel_buffers)
        return Rank(
            number=number,
            data_size=parallel_state.get_data_parallel_world_size(),
            groups=_groups(),
            scales=frozenset(buffer.gradient_scaling_factor for buffer in buffers),
            norms=tuple(_ranks(part.get_grad_stats_parallel_group()) for part in optimizers),
            parts=tuple(parts),
        )


def _part(number: int, name: str, param: torch.nn.Parameter, op: WeightOp, shape: ModelConfig) -> dict:
    """Returns what rank ``number`` holds of a parameter: fields of `Part`."""
    rank, size, replica = place(op)
    regions, cut = cut_regions(op, shape, rank, size)
    if cut != tuple(param.shape):
        got = tuple(param.shape)
        raise BarError(f"rank {number}: parameter {name} has shape {got}, its part of the folder {cut}")
    about = {"name": name, "op": op, "number": rank, "replica": replica}
    return about | {"shape": cut, "regions": regions, "trains": param.requires_grad}


def _trained(number: int, ddp: DistributedDataParallel, optimizers: list) -> dict[str, dict]:
    """Returns for each parameter that trains how it is summed and updated: fields of `Part`."""
    owned = owned_ranges(optimizers)
    counted = _counted(optimizers)
    summed = _summed_over_tensor(ddp)
    tensor_ranks = _ranks(parallel_state.get_tensor_model_parallel_group())
    fields = {}
    for name, param in ddp.module.named_parameters():
        if param.requires_grad:
            mine = owned.get(param)
            fields[name] = {
                "data": _ranks(ddp.param_to_bucket_group[param].intra_distributed_optimizer_instance_group),
                "tensor": tensor_ranks if name in summed else (number,),
                "updates": (mine.start, mine.stop) if mine else (0, 0),
                "counts": mine is not None and mine.main in counted,
            }
    return fields


def _ranks(group: dist.ProcessGroup) -> Ranks:
    return tuple(dist.get_process_group_ranks(group))


def _groups() -> dict[str, Ranks]:
    """Returns this rank's groups by name."""
    groups = {
        "tensor": parallel_state.get_tensor_model_parallel_group(),
        "pipeline": parallel_state.get_pipeline_model_parallel_group(),
        "data": parallel_state.get_data_parallel_group(),
        "experts": parallel_state.get_expert_tensor_and_model_parallel_group(),
        "expert data": parallel_state.get_expert_data_parallel_group(),
    }
    return {name: _ranks(group) for name, group in groups.items()}


def _counted(optimizers: list) -> set[torch.Tensor]:
    """Returns the main parameters whose gradients Megatron puts into the norm on this rank."""
    counted = set()
    for part in optimizers:
        by_gradient = {}
        for main in part.get_parameters():
            main.grad = torch.empty_like(main)
            by_gradient[main.grad] = main
        counted.update(by_gradient[gradient] for gradient in part.get_grads_for_grad_norm())
    return counted


def _summed_over_tensor(ddp: DistributedDataParallel) -> set[str]:
    """Returns the parameters whose gradients Megatron's finalizer sums over the tensor group: those that it
    writes to."""
    names = {}
    for name, param in ddp.module.named_parameters():
        if param.requires_grad:
            param.main_grad = torch.zeros(1, device="cpu")
            names[param.main_grad.data_ptr()] = name
    with _Writes() as writes:
        _allreduce_non_tensor_model_parallel_grads([ddp], ddp.config, ddp.tp_group)
    return {names[pointer] for pointer in writes.pointers}


class _Writes(TorchDispatchMode):
    """Notes where the block's copies go."""

    def __init__(self):
        super().__init__()
        self.pointers: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.copy_.default:
            self.pointers.add(args[0].data_ptr())
        return function(*args, **kwargs or {})
