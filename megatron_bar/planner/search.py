"""Which layout a stage should take on the GPUs that there are: of all that divide, ranked by time, the first
that fits."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_bar.errors import BarError
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.planner.seconds import ranked_seconds
from megatron_bar.planner.usage import Machine, PlannedStage, Usage, usage
from megatron_bar.run.pipeline import Pipeline, Step
from megatron_bar.training.stage import Stage

BUSY = 8192
"""Tokens in a micro-batch that keep a GPU busy: larger ones are not proposed, except for a single row."""
CLOSE = 1.1
"""Ratio to the fastest layout's time up to which layouts count as equally fast: the estimate is no better."""
LARGEST = 4096
"""Number of GPUs up to which the smallest one that fits is looked for."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    stage: Stage
    usage: Usage
    seconds: float
    """Seconds of a step, with what is exchanged and, in RLVR, its share of its round's answers: layouts are
    ranked by them (seconds.py)."""


def propose(planned: PlannedStage, machine: Machine) -> Proposal | None:
    """Returns the cheapest layout that fits, or None. Raises BarError where no layout divides the GPUs, the
    model and the batch.

    The rule: the least time of a step, its operations at the given share of the peak (recomputation and the
    idle ends of a pipeline included) plus what the GPUs exchange; in RLVR the time of a round, its steps and
    its answers. Of layouts within 10 % of that, the one with the shortest pipeline, then the one whose tensor
    and expert groups are smallest, then the one that recomputes nothing, then the one with the largest
    micro-batch of at most 8192 tokens. Tensor and expert groups stay inside a node, whose links are several
    times as fast. A data-parallel rank exchanges only what trains, and once a step, so this comes to: small
    groups inside a node, the rest data-parallel, a pipeline where nothing else fits. A sampler asks for the
    same: ranks that share a model draw a token together, and no sooner than one (sampling.py).
    """
    timed = [(ranked_seconds(planned, stage, machine), stage) for stage in layouts(planned, machine)]
    ranked = sorted(timed, key=lambda one: one[0])
    if not ranked:
        shape = planned.shape
        raise BarError(
            f"{planned.name}: no layout of {machine.gpus} GPUs divides {planned.rows} rows, "
            f"{shape.num_heads} heads and {shape.num_layers} layers; expected a number of GPUs that does"
        )
    fitting: list[Proposal] = []
    for seconds, stage in ranked:
        if fitting and seconds > fitting[0].seconds * CLOSE:
            break
        used = usage(planned, stage, machine)
        if machine.holds(used):
            fitting.append(Proposal(stage=stage, usage=used, seconds=seconds))
    return min(fitting, key=_size) if fitting else None


def _size(proposal: Proposal) -> tuple:
    stage = proposal.stage
    layout = stage.parallel
    group = max(layout.tensor, layout.expert)
    return layout.pipeline, group, layout.tensor, stage.recompute, -stage.micro_batch


def layouts(planned: PlannedStage, machine: Machine) -> Iterator[Stage]:
    """Yields the stage in every layout that divides the GPUs, the model and the batch."""
    stage = planned.stage
    for layout in _dividing(planned, machine):
        rows, uneven = divmod(planned.rows, machine.gpus // (layout.tensor * layout.pipeline))
        if uneven and planned.run.rl is None:
            continue
        for micro_batch in _divisors(max(1, rows)):
            if micro_batch == 1 or micro_batch * stage.sequence <= BUSY:
                for recompute in (False, True):
                    yield replace(stage, parallel=layout, micro_batch=micro_batch, recompute=recompute)


def _dividing(planned: PlannedStage, machine: Machine) -> Iterator[ParallelConfig]:
    """Yields every layout that divides the GPUs, the model and a row."""
    shape = planned.shape
    largest = min(machine.node, machine.gpus)
    inside = [n for n in range(1, largest + 1) if machine.node % n == 0 or n == machine.gpus]
    for tensor in inside:
        for pipeline in _divisors(shape.num_layers):
            for expert in inside if shape.num_experts else (1,):
                layout = ParallelConfig(tensor=tensor, pipeline=pipeline, expert=expert)
                if planned.stage.sequence % tensor:
                    continue
                if expert > 1 and expert == tensor:  # with expert 1 the experts are cut just so
                    continue
                try:
                    layout.check(shape, machine.gpus)
                except BarError:
                    continue
                yield layout


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def smallest(planned: PlannedStage, machine: Machine) -> int | None:
    """Returns the smallest number of GPUs of this kind that the stage fits; None: not even 4096. Only powers
    of two are tried, which divide most."""
    gpus = 1
    while gpus <= LARGEST:
        try:
            if propose(planned, replace(machine, gpus=gpus)):
                return gpus
        except BarError:
            pass
        gpus *= 2
    return None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of stages that are alike."""

    names: tuple[str, ...]
    planned: PlannedStage
    written: Usage | str
    """Usage of the stage's own layout, or why that does not divide what there is."""
    proposal: Proposal | None
    smallest: int | None
    """Number of GPUs that it takes, where ``proposal`` is None."""


def plan(pipeline: Pipeline, steps: list[Step], machine: Machine) -> list[Plan]:
    """Plans all of ``steps`` that train, in order; those that differ in names and data alone are one."""
    alike: dict[tuple, list[PlannedStage]] = {}
    for step in steps:
        if step.run is None:
            continue
        shape = pipeline.shape.with_experts(step.experts) if step.experts else pipeline.shape
        run = step.run
        stage = replace(run.stage, optim=replace(run.stage.optim, lr=1.0), seed=0)
        planned = PlannedStage(name=step.name, run=run, shape=shape)
        key = (stage, run.rl and replace(run.rl, rounds=1), run.dpo, shape, planned.steps)
        alike.setdefault(key, []).append(planned)
    return [_plan(stages, machine) for stages in alike.values()]


def _plan(stages: list[PlannedStage], machine: Machine) -> Plan:
    planned = stages[0]
    proposal = propose(planned, machine)
    try:
        planned.stage.check(planned.shape, machine.gpus, batches=planned.run.rl is None)
        written = usage(planned, planned.stage, machine)
    except BarError as error:
        written = str(error)
    return Plan(
        names=tuple(stage.name for stage in stages),
        planned=planned,
        written=written,
        proposal=proposal,
        smallest=None if proposal else smallest(planned, machine),
    )
