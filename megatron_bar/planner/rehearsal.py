"""A stage on a job of any size, in one process: every rank's real model, freeze, DDP and optimizer, and that
they fit together.

The ranks are built one after the other with fake process groups on the meta device (parallel/fake.py).
Nothing here says how a layout spreads a model: each rank tells what it would read of the folder, and
Megatron's own DDP, gradient finalizer and optimizer tell over which ranks a gradient is summed, who updates
which values and whose count for the gradient norm. Then

- every tensor of the folder is there whole, each value once, in as many replicas as the layout leaves; the padding is not in it;
- what trains on each rank is what the policy says, with the router's anchor row masked where it says so;
- a gradient is summed over exactly the ranks that hold the parameter, and over each of them once;
- every value that trains is updated by one rank of those, and counts once for the gradient norm.

What a step computes and exchanges is not rehearsed.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
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
from megatron_bar.conversion.regions import Region, cut_regions, flaw
from megatron_bar.errors import BarError
from megatron_bar.models.build import build_model
from megatron_bar.models.shards import place
from megatron_bar.parallel.fake import fake_rank
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.training.freeze import freeze, table
from megatron_bar.training.optim import build_optimizer, data_parallel, distributed_optimizers
from megatron_bar.training.pieces import owned_ranges
from megatron_bar.training.stage import Stage
from megatron_bar.weights.groups import POLICIES, FreezePolicy, ParamGroup, classify, expert_index
from megatron_bar.weights.hf_config import ModelConfig, tensor_shapes

Ranks = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One parameter of one rank."""

    name: str
    """As Megatron calls it there."""
    op: WeightOp
    number: int
    """Of this part among those that ``op`` cuts."""
    replica: int
    shape: tuple[int, ...]
    regions: tuple[Region, ...]
    """What it holds of the folder."""
    trains: bool
    masked: bool
    """Whether the gradient of row 0 is."""
    data: Ranks = ()
    """Over which ranks DDP sums the gradient, where it trains."""
    tensor: Ranks = ()
    """And over which the finalizer does after that; one rank: over no others."""
    updates: tuple[int, int] = (0, 0)
    """The values, of the flat part, that this rank's optimizer updates."""
    counts: bool = False
    """Whether those count for the gradient norm on this rank."""

    @property
    def values(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, kw_only=True)
class Rank:
    number: int
    data_size: int
    """Ranks that share a batch out."""
    groups: dict[str, Ranks]
    scales: frozenset[float]
    """What DDP multiplies gradients by before it sums them."""
    norms: tuple[Ranks, ...]
    """Over which ranks the parts of the optimizer sum the squares of the gradient norm."""
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What was found; ``str`` is the line that a dry run prints."""

    layout: ParallelConfig
    ranks: int
    kinds: int
    """Ranks of one kind hold the same parts of the model."""
    data_size: int
    parameters: tuple[int, int]
    """Smallest and largest number on one rank, padding included."""
    trainable: tuple[int, int]
    idle: Ranks
    """Ranks on which nothing trains."""

    def __str__(self) -> str:
        held, trained = (
            "..".join(f"{n:,}" for n in sorted({*span})) for span in (self.parameters, self.trainable)
        )
        idle = f", nothing trains on {len(self.idle)} of them" if self.idle else ""
        return (
            f"{self.ranks} ranks of {self.kinds} kinds (tensor {self.layout.tensor} pipeline {self.layout.pipeline} "
            f"expert {self.layout.expert}, {self.data_size} data-parallel){idle}; "
            f"parameters per rank {held}, trainable {trained}: OK"
        )


def rehearse(
    name: str, shape: ModelConfig, stage: Stage, world_size: int, *, batches: bool = True
) -> Rehearsal:
    """``stage``, called ``name`` in messages, on ``world_size`` ranks; a `BarError` says what does not fit.
    See `Stage.check`."""
    stage.check(shape, world_size, batches=batches)
    shape = stage.built(shape)
    ranks = [build_rank(number, world_size, shape, stage) for number in range(world_size)]
    try:
        check_ranks(ranks, shape, stage)
    except BarError as error:
        raise BarError(f"{name} on {world_size} ranks: {error}") from None
    held = [sum(part.values for part in rank.parts) for rank in ranks]
    trained = [sum(part.values for part in rank.parts if part.trains) for rank in ranks]
    return Rehearsal(
        layout=stage.parallel,
        ranks=world_size,
        kinds=len({tuple((part.op, part.number) for part in rank.parts) for rank in ranks}),
        data_size=ranks[0].data_size,
        parameters=(min(held), max(held)),
        trainable=(min(trained), max(trained)),
        idle=tuple(rank.number for rank, count in zip(ranks, trained, strict=True) if not count),
    )


def build_rank(number: int, world_size: int, shape: ModelConfig, stage: Stage) -> Rank:
    """What rank ``number`` would hold, train, sum and update."""
    policy = POLICIES[stage.policy]
    with fake_rank(number, world_size, stage.parallel, shape):
        model = build_model(shape, stage.parallel, recompute=stage.recompute, attention=stage.attention)
        frozen = freeze(model, policy)
        ddp = data_parallel(model)
        optimizers = distributed_optimizers(build_optimizer(ddp, stage.optim))
        owned = owned_ranges(optimizers)
        counted = _counted(optimizers)
        summed = _summed_over_tensor(ddp)
        tensor_ranks = tuple(dist.get_process_group_ranks(parallel_state.get_tensor_model_parallel_group()))
        parts = []
        for (name, param), op in zip(model.named_parameters(), model.weight_ops().values(), strict=True):
            rank, size, replica = place(op)
            regions, cut = cut_regions(op, shape, rank, size)
            if cut != tuple(param.shape):
                raise BarError(
                    f"rank {number}: parameter {name} has shape {tuple(param.shape)}, its part of the folder {cut}"
                )
            trained = {}
            if param.requires_grad:
                group = ddp.param_to_bucket_group[param].intra_distributed_optimizer_instance_group
                mine = owned.get(param)
                trained = {
                    "data": tuple(dist.get_process_group_ranks(group)),
                    "tensor": tensor_ranks if name in summed else (number,),
                    "updates": (mine.start, mine.stop) if mine else (0, 0),
                    "counts": mine is not None and mine.main in counted,
                }
            parts.append(
                Part(
                    name=name,
                    op=op,
                    number=rank,
                    replica=replica,
                    shape=cut,
                    regions=regions,
                    trains=param.requires_grad,
                    masked=param.requires_grad and op.names[0] in frozen.parts,
                    **trained,
                )
            )
        return Rank(
            number=number,
            data_size=parallel_state.get_data_parallel_world_size(),
            groups=_groups(),
            scales=frozenset(
                buffer.gradient_scaling_factor for buffer in (*ddp.buffers, *ddp.expert_parallel_buffers)
            ),
            norms=tuple(
                tuple(dist.get_process_group_ranks(part.get_grad_stats_parallel_group()))
                for part in optimizers
            ),
            parts=tuple(parts),
        )


def _groups() -> dict[str, Ranks]:
    """This rank's, by name."""
    groups = {
        "tensor": parallel_state.get_tensor_model_parallel_group(),
        "pipeline": parallel_state.get_pipeline_model_parallel_group(),
        "data": parallel_state.get_data_parallel_group(),
        "experts": parallel_state.get_expert_tensor_and_model_parallel_group(),
        "expert data": parallel_state.get_expert_data_parallel_group(),
    }
    return {name: tuple(dist.get_process_group_ranks(group)) for name, group in groups.items()}


def _counted(optimizers: list) -> set[torch.Tensor]:
    """The main parameters whose gradients Megatron puts into the norm on this rank."""
    counted = set()
    for part in optimizers:
        by_gradient = {}
        for main in part.get_parameters():
            main.grad = torch.empty_like(main)
            by_gradient[main.grad] = main
        counted.update(by_gradient[gradient] for gradient in part.get_grads_for_grad_norm())
    return counted


def _summed_over_tensor(ddp: DistributedDataParallel) -> set[str]:
    """The parameters whose gradients Megatron's finalizer sums over the tensor group: those it writes to."""
    names = {}
    for name, param in ddp.module.named_parameters():
        if param.requires_grad:
            param.main_grad = torch.zeros(1, device="cpu")
            names[param.main_grad.data_ptr()] = name
    with _Writes() as writes:
        _allreduce_non_tensor_model_parallel_grads([ddp], ddp.config, ddp.tp_group)
    return {names[place] for place in writes.places}


class _Writes(TorchDispatchMode):
    """Notes where the block's copies go."""

    def __init__(self):
        super().__init__()
        self.places: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.copy_.default:
            self.places.add(args[0].data_ptr())
        return function(*args, **kwargs or {})


def check_ranks(ranks: list[Rank], shape: ModelConfig, stage: Stage) -> None:
    """That all ``ranks`` of a job fit together, or a `BarError` that names the first rank and parameter that
    do not."""
    policy = POLICIES[stage.policy]
    _check_groups(ranks)
    for number, part in _parts(ranks):
        _check_policy(number, part, policy)
    whole = _check_owners(ranks, shape, stage.parallel)
    for group, count, trains in table(shape, policy):
        found = sum(whole[name] for name in whole if classify(name) is group and policy.trainable(name))
        if trains and found != count:
            raise BarError(f"group {group} trains {found:,} parameters, expected {count:,}")
    _check_sums(ranks)
    _check_updates(ranks)


def _parts(ranks: list[Rank]) -> Iterator[tuple[int, Part]]:
    yield from ((rank.number, part) for rank in ranks for part in rank.parts)


def _check_groups(ranks: list[Rank]) -> None:
    """That all members of a group mean the same one, and that the data-parallel ranks are as many
    everywhere."""
    for rank in ranks:
        for name, members in rank.groups.items():
            for other in members:
                if ranks[other].groups[name] != members:
                    raise BarError(
                        f"rank {rank.number}: {name} group is {members}, and rank {other} of it has {ranks[other].groups[name]}"
                    )
        if rank.data_size != len(rank.groups["data"]) or rank.data_size != ranks[0].data_size:
            raise BarError(
                f"rank {rank.number}: expected {ranks[0].data_size} data-parallel ranks, got {rank.data_size}"
            )


def _check_policy(number: int, part: Part, policy: FreezePolicy) -> None:
    for name in part.op.names:
        if part.trains != policy.trainable(name):
            found, wanted = ("trainable", "frozen") if part.trains else ("frozen", "trainable")
            raise BarError(
                f"rank {number}: parameter {part.name} is {found}, and policy {policy.name} says {wanted}"
            )
    masked = part.trains and policy.anchor_row_frozen and classify(part.op.names[0]) is ParamGroup.ROUTER
    if part.masked != masked:
        raise BarError(
            f"rank {number}: parameter {part.name}: the anchor's row is {'not ' if masked else ''}masked"
        )


def _check_owners(ranks: list[Rank], shape: ModelConfig, layout: ParallelConfig) -> dict[str, int]:
    """That the parts of every replica are the folder; returns the values of each tensor in one of them."""
    shapes = tensor_shapes(shape)
    found: dict[str, dict[int, list[tuple[int, Part]]]] = {name: defaultdict(list) for name in shapes}
    for number, part in _parts(ranks):
        for name in part.op.names:
            found[name][part.replica].append((number, part))
    whole = {}
    for name, replicas in found.items():
        expected = _replicas(name, len(ranks), shape, layout)
        if sorted(replicas) != list(range(expected)):
            raise BarError(
                f"tensor {name}: expected {expected} replicas, got {len(replicas)}: {sorted(replicas)}"
            )
        for replica, parts in replicas.items():
            regions = [region for _, part in parts for region in part.regions if region.tensor == name]
            if problem := flaw(shapes[name], regions):
                holders = ", ".join(f"rank {number} {part.name}" for number, part in parts)
                raise BarError(f"tensor {name}, replica {replica}, held by {holders}: {problem}")
            whole[name] = sum(region.values for region in regions)
        parts = [part for _, part in sorted(replicas[0], key=lambda item: item[1].number)]
        joined = parts[0].op.join([torch.empty(part.shape, device="meta") for part in parts])[name]
        if tuple(joined.shape) != shapes[name]:
            raise BarError(f"tensor {name}: its parts make {tuple(joined.shape)}, expected {shapes[name]}")
    return whole


def _replicas(name: str, world_size: int, shape: ModelConfig, layout: ParallelConfig) -> int:
    """How often a tensor is there whole: norms and routers on every rank that has their layer."""
    if expert_index(name) is not None:
        return world_size // (layout.pipeline * math.prod(layout.expert_sizes(shape)))
    cut = classify(name) is not ParamGroup.ROUTER and not name.endswith("norm.weight")
    return world_size // (layout.pipeline * (layout.tensor if cut else 1))


def _check_sums(ranks: list[Rank]) -> None:
    """DDP sums a gradient over ``data`` on every rank of ``tensor``, whose sums are then summed; the trainer
    alone divides."""
    for rank in ranks:
        if rank.scales - {1.0}:
            raise BarError(
                f"rank {rank.number}: gradients are multiplied by {sorted(rank.scales)} before they are summed, expected 1"
            )
    mine = [{part.name: part for part in rank.parts} for rank in ranks]
    holders = defaultdict(list)
    for number, part in _parts(ranks):
        holders[part.op.names, part.number if part.op.sharded else 0].append(number)
    for number, part in _parts(ranks):
        if not part.trains:
            continue
        summed = sorted(rank for other in part.tensor for rank in mine[other][part.name].data)
        expected = holders[part.op.names, part.number if part.op.sharded else 0]
        if summed != expected:
            raise BarError(
                f"rank {number}: the gradient of parameter {part.name} is summed over ranks {summed}, and held by {expected}"
            )


def _check_updates(ranks: list[Rank]) -> None:
    updated = defaultdict(list)
    counted = defaultdict(list)
    everyone = tuple(range(len(ranks)))
    for rank in ranks:
        # A real rank on which nothing trains has an empty optimizer and takes part: Megatron asks all ranks
        # what trains on them.
        if rank.norms and set(rank.norms) != {everyone}:
            raise BarError(
                f"rank {rank.number}: the gradient norm is summed over ranks {rank.norms}, expected all of them"
            )
        for part in rank.parts:
            if part.trains:
                key = (part.op.names, part.number if part.op.sharded else 0)
                updated[key, part.data].append((part, part.updates))
                counted[key].append((part, part.updates if part.counts else (0, 0)))
    for what, spans in (("updates", updated), ("the gradient norm", counted)):
        for found in spans.values():
            part, regions = found[0][0], [Region(part.name, span, (0, 1)) for part, span in found]
            if problem := flaw((part.values,), regions):
                raise BarError(f"parameter {part.name}, part {part.number}: {what}: {problem}")
