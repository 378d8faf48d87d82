"""Shows a plan as lines: for every stage what trains and what it computes, then its own layout and the
proposed one; a GB is 1e9 bytes."""

from collections.abc import Iterator

from megatron_bar.cli import aligned
from megatron_bar.planner.search import Plan
from megatron_bar.planner.seconds import stage_seconds
from megatron_bar.planner.usage import Machine, PlannedStage, Usage
from megatron_bar.training.freeze import table
from megatron_bar.training.stage import Stage

STAYS = ("weights", "gradients", "optimizer", "start", "engine")
KINDS = (*STAYS, "activations", "logits", "working", "scoring", "sampling", "total")
HEAD = ["", "layout", *KINDS]
TIMES = ["", "s/step", "steps", "sampling", "checkpoints", "folders", "stage"]


def lines(plans: list[Plan], machine: Machine) -> Iterator[str]:
    """Yields the machine, every plan, and how to read the tables."""
    reserve = machine.reserve / 1e9
    memory = machine.memory / 1e9
    speed = f"{machine.mfu:.0%} of {machine.tflops:g} TFLOP/s, {machine.bandwidth / 1e12:g} TB/s"
    disk = f"{machine.disk / 1e9:g} GB/s of disk a node"
    yield f"{machine.gpus} GPUs of {memory:g} GB, {reserve:g} GB of each in reserve; {speed}; {disk}"
    for plan in plans:
        yield from _stage(plan, machine)
    yield ""
    yield (
        "GB on the GPU that holds most. start: a copy of what trains. "
        "logits or working (the larger) with activations, scoring"
    )
    yield "and sampling follow each other: the largest counts. Times are estimates: steps with exchanges,"
    yield "sampling of answers at their longest, checkpoints that nothing hides, folders read and written."


def _stage(plan: Plan, machine: Machine) -> Iterator[str]:
    planned = plan.planned
    counts = table(planned.shape, planned.policy)
    trains = sum(n for _, n, moves in counts if moves)
    total = sum(n for _, n, _ in counts)
    steps = f"{planned.steps:,} steps" if planned.steps else f"{planned.stage.epochs:g} epochs"
    yield ""
    yield (
        f"{', '.join(plan.names)}: {planned.policy.name} trains {trains:,} of {total:,} parameters, "
        f"{total - trains:,} frozen; {planned.step_flops(False) / 1e15:.3g} PFLOP a step, {steps}"
    )
    found: list[tuple[str, Stage, Usage]] = []
    if isinstance(plan.written, Usage):
        found.append(("as written", planned.stage, plan.written))
    if plan.proposal is not None:
        found.append(("proposed", plan.proposal.stage, plan.proposal.usage))
    yield from _table(HEAD, [_sizes(label, stage, used, machine) for label, stage, used in found])
    yield from _table(TIMES, [_times(label, planned, stage, machine) for label, stage, _ in found])
    if isinstance(plan.written, str):
        yield f"as written: does not divide: {plan.written}"
    elif not machine.holds(plan.written):
        yield "as written: does not fit"
    else:
        yield "as written: fits"
    if plan.proposal is None:
        yield f"proposed: none fits; {_from(plan)}"


def _from(plan: Plan) -> str:
    return "nor do more GPUs like these" if plan.smallest is None else f"{plan.smallest} such GPUs hold it"


def refusal(plans: list[Plan], machine: Machine) -> str | None:
    """Returns one line about the stages that fit in no layout; None where there are none."""
    missing = [f"{', '.join(plan.names)} ({_from(plan)})" for plan in plans if plan.proposal is None]
    if not missing:
        return None
    return f"no layout of {machine.gpus} GPUs of {machine.memory / 1e9:g} GB holds {'; '.join(missing)}"


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yields an aligned table without the columns that are 0 throughout; nothing where there are no rows."""
    if rows:
        used = [column for column in zip(head, *rows, strict=True) if set(column[1:]) != {"0"}]
        yield from aligned([list(row) for row in zip(*used, strict=True)])


def _sizes(label: str, stage: Stage, used: Usage, machine: Machine) -> list[str]:
    layout = stage.parallel
    data = machine.gpus // (layout.tensor * layout.pipeline)
    text = f"TP{layout.tensor} PP{layout.pipeline} EP{layout.expert} DP{data}"
    text += f", micro-batch {stage.micro_batch}" + (", recompute" if stage.recompute else "")
    sizes = vars(used) | {"total": used.total}
    return [label, text, *(f"{sizes[kind] / 1e9:.4g}" for kind in KINDS)]


def _times(label: str, planned: PlannedStage, stage: Stage, machine: Machine) -> list[str]:
    """Returns the row of a stage's times; where the data say how many steps it makes, those of one step and
    of its folders."""
    found = stage_seconds(planned, stage, machine)
    parts = ["-", "0", "-", _time(found.folders), "-"]
    if found.total is not None:
        saves = found.saves * found.save
        times = (found.steps * found.step, found.steps * found.sampling, saves, found.folders, found.total)
        parts = [_time(seconds) for seconds in times]
    return [label, f"{found.step:.3g}", *parts]


def _time(seconds: float) -> str:
    """Returns a time in the unit that suits it."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds else "0"
