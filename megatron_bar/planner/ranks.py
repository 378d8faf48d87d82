"""What each rank of a job has of the model, as values, and that the ranks fit together.

- Every tensor of the folder is there whole, each value once, in as many replicas as the layout leaves; the
  padding is not in it.
- What trains on each rank is what the policy says, with the router's anchor row masked where it says so.
- A gradient is summed over exactly the ranks that hold the parameter, and over each of them once.
- Every value that trains is updated by one rank of those, and counts once for the gradient norm.

rehearsal.py fills the values from real models.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megatron_bar.conversion.ops import WeightOp
from megatron_bar.conversion.regions import Region, flaw
from megatron_bar.errors import BarError
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.training.freeze import table
from megatron_bar.training.stage import Stage
from megatron_bar.weights.groups import POLICIES, FreezePolicy, ParamGroup, classify, expert_index
from megatron_bar.weights.hf_config import ModelConfig, tensor_shapes

Ranks = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A parameter on one rank."""

    name: str
    """Name that Megatron gives it there."""
    op: WeightOp
    number: int
    """Number of this part among those that ``op`` cuts."""
    replica: int
    shape: tuple[int, ...]
    regions: tuple[Region, ...]
    """Regions of the folder's tensors that it holds."""
    trains: bool
    masked: bool
    """Whether the gradient of row 0 is masked."""
    data: Ranks = ()
    """Ranks over which DDP sums the gradient, where it trains."""
    tensor: Ranks = ()
    """Ranks over which the finalizer sums it after that; one rank: over no others."""
    updates: tuple[int, int] = (0, 0)
    """Range of the flat part that this rank's optimizer updates."""
    counts: bool = False
    """Whether that range counts for the gradient norm on this rank."""

    @property
    def values(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, kw_only=True)
class Rank:
    number: int
    data_size: int
    """Number of ranks that share a batch."""
    groups: dict[str, Ranks]
    """Ranks of this rank's groups, by name."""
    scales: frozenset[float]
    """Factors by which DDP multiplies gradients before it sums them."""
    norms: tuple[Ranks, ...]
    """Ranks over which each part of the optimizer sums the squares of the gradient norm."""
    parts: tuple[Part, ...]


def check_ranks(ranks: list[Rank], shape: ModelConfig, stage: Stage) -> None:
    """Raises BarError unless all ``ranks`` of a job fit together; it names the first rank and parameter that
    do not."""
    policy = POLICIES[stage.policy]
    _check_groups(ranks)
    for number, part in _parts(ranks):
        _check_policy(number, part, policy)
    whole = _check_owners(ranks, shape, stage.parallel)
    for group, count, trains in table(shape, policy):
        trained = sum(whole[name] for name in whole if classify(name) is group and policy.trainable(name))
        if trains and trained != count:
            raise BarError(f"group {group} trains {trained:,} parameters, expected {count:,}")
    _check_sums(ranks)
    _check_updates(ranks)


def _parts(ranks: list[Rank]) -> Iterator[tuple[int, Part]]:
    yield from ((rank.number, part) for rank in ranks for part in rank.parts)


def _check_groups(ranks: list[Rank]) -> None:
    """Raises BarError unless all members of a group mean the same one, and there are equally many
    data-parallel ranks everywhere."""
    for rank in ranks:
        for name, members in rank.groups.items():
            for other in members:
                theirs = ranks[other].groups[name]
                if theirs != members:
                    raise BarError(
                        f"rank {rank.number}: {name} group is {members}, and rank {other} of it has {theirs}"
                    )
        if rank.data_size != len(rank.groups["data"]) or rank.data_size != ranks[0].data_size:
            raise BarError(
                f"rank {rank.number}: expected {ranks[0].data_size} data-parallel ranks, got {rank.data_size}"
            )


def _check_policy(number: int, part: Part, policy: FreezePolicy) -> None:
    for name in part.op.names:
        if part.trains != policy.trainable(name):
            got, wanted = ("trainable", "frozen") if part.trains else ("frozen", "trainable")
            raise BarError(
                f"rank {number}: parameter {part.name} is {got}, and policy {policy.name} says {wanted}"
            )
    masked = part.trains and policy.anchor_row_frozen and classify(part.op.names[0]) is ParamGroup.ROUTER
    if part.masked != masked:
        raise BarError(
            f"rank {number}: parameter {part.name}: the anchor's row is {'not ' if masked else ''}masked"
        )


def _check_owners(ranks: list[Rank], shape: ModelConfig, layout: ParallelConfig) -> dict[str, int]:
    """Raises BarError unless the parts of every replica make up the folder; returns the number of values of
    each tensor."""
    shapes = tensor_shapes(shape)
    holders: dict[str, dict[int, list[tuple[int, Part]]]] = {name: defaultdict(list) for name in shapes}
    for number, part in _parts(ranks):
        for name in part.op.names:
            holders[name][part.replica].append((number, part))
    whole = {}
    for name, replicas in holders.items():
        expected = _replicas(name, len(ranks), shape, layout)
        if sorted(replicas) != list(range(expected)):
            raise BarError(
                f"tensor {name}: expected {expected} replicas, got {len(replicas)}: {sorted(replicas)}"
            )
        for replica, parts in replicas.items():
            regions = [region for _, part in parts for region in part.regions if region.tensor == name]
            if problem := flaw(shapes[name], regions):
                held_by = ", ".join(f"rank {number} {part.name}" for number, part in parts)
                raise BarError(f"tensor {name}, replica {replica}, held by {held_by}: {problem}")
            whole[name] = sum(region.values for region in regions)
        parts = [part for _, part in sorted(replicas[0], key=lambda item: item[1].number)]
        joined = parts[0].op.join([torch.empty(part.shape, device="meta") for part in parts])[name]
        if tuple(joined.shape) != shapes[name]:
            raise BarError(f"tensor {name}: its parts make {tuple(joined.shape)}, expected {shapes[name]}")
    return whole


def _replicas(name: str, world_size: int, shape: ModelConfig, layout: ParallelConfig) -> int:
    """Returns how often a tensor is there whole: norms and routers are on every rank that has their layer."""
    if expert_index(name) is not None:
        return world_size // (layout.pipeline * math.prod(layout.expert_sizes(shape)))
    cut = classify(name) is not ParamGroup.ROUTER and not name.endswith("norm.weight")
    return world_size // (layout.pipeline * (layout.tensor if cut else 1))


def _check_sums(ranks: list[Rank]) -> None:
    """Raises BarError unless a gradient is summed over the ranks that hold its parameter: DDP sums it over
    ``data`` on every rank of ``tensor``, and these sums are then summed. Only the trainer divides."""
    for rank in ranks:
        if rank.scales - {1.0}:
            scales = sorted(rank.scales)
            raise BarError(
                f"rank {rank.number}: gradients are multiplied by {scales} before they are summed, expected 1"
            )
    by_name = [{part.name: part for part in rank.parts} for rank in ranks]
    holders = defaultdict(list)
    for number, part in _parts(ranks):
        holders[_key(part)].append(number)
    for number, part in _parts(ranks):
        if not part.trains:
            continue
        summed = sorted(rank for other in part.tensor for rank in by_name[other][part.name].data)
        expected = holders[_key(part)]
        if summed != expected:
            raise BarError(
                f"rank {number}: the gradient of parameter {part.name} is summed over ranks {summed}, "
                f"and held by {expected}"
            )


def _key(part: Part) -> tuple[tuple[str, ...], int]:
    """Returns what is equal for the same part of a parameter on all ranks that hold it."""
    return part.op.names, part.number if part.op.sharded else 0


def _check_updates(ranks: list[Rank]) -> None:
    """Raises BarError unless every value that trains is updated by one rank, and counts once for the gradient
    norm."""
    updated = defaultdict(list)
    counted = defaultdict(list)
    everyone = tuple(range(len(ranks)))
    for rank in ranks:
        # A real rank on which nothing trains has an empty optimizer and takes part: Megatron asks all ranks
        # what trains on them.
        if rank.norms and set(rank.norms) != {everyone}:
            summed = f"summed over ranks {rank.norms}, expected all of them"
            raise BarError(f"rank {rank.number}: the gradient norm is {summed}")
        for part in rank.parts:
            if part.trains:
                updated[_key(part), part.data].append((part, part.updates))
                counted[_key(part)].append((part, part.updates if part.counts else (0, 0)))
    for purpose, ranges in (("updates", updated), ("the gradient norm", counted)):
        for parts in ranges.values():
            first, _ = parts[0]
            regions = [Region(part.name, span, (0, 1)) for part, span in parts]
            if problem := flaw((first.values,), regions):
                raise BarError(f"parameter {first.name}, part {first.number}: {purpose}: {problem}")
