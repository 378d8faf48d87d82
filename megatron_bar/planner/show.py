"""Shows a plan as lines: for every stage what trains and what it computes, then its own layout and the
proposed one; a GB is 1e9 bytes."""

from collections.abc import Iterator

from megatron_bar.cli import aligned
from megatron_bar.planner.search import Plan
from megatron_bar.planner.usage import Machine, PlannedStage, Usage, compute_seconds
from megatron_bar.training.freeze import table
from megatron_bar.training.stage import Stage

STAYS = ("weights", "gradients", "optimizer", "start", "engine")
KINDS = (*STAYS, "activations", "logits", "working", "scoring", "sampling", "total")
HEAD = ["", "layout", *KINDS, "s/step", "stage"]


def lines(plans: list[Plan], machine: Machine) -> Iterator[str]:
    """Yields the machine, every plan, and how to read the tables."""
    reserve = machine.reserve / 1e9
    memory = machine.memory / 1e9
    speed = f"{machine.mfu:.0%} of {machine.tflops:g} TFLOP/s"
    yield f"{machine.gpus} GPUs of {memory:g} GB, {reserve:g} GB of each in reserve; {speed}"
    for plan in plans:
        yield from _stage(plan, machine)
    yield ""
    yield (
        "GB on the GPU that holds most. start: a copy of what trains. "
        "logits or working (the larger) with activations, scoring"
    )
    yield (
        "and sampling follow each other: the largest counts. Seconds are estimates, of optimizer steps alone."
    )


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
    rows = [HEAD]
    if isinstance(plan.written, Usage):
        rows.append(_row("as written", planned, planned.stage, plan.written, machine))
    if plan.proposal is not None:
        rows.append(_row("proposed", planned, plan.proposal.stage, plan.proposal.usage, machine))
    used = [column for column in zip(*rows, strict=True) if set(column[1:]) != {"0"}]
    if len(rows) > 1:
        yield from aligned([list(row) for row in zip(*used, strict=True)])
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


def _row(label: str, planned: PlannedStage, stage: Stage, used: Usage, machine: Machine) -> list[str]:
    layout = stage.parallel
    seconds = compute_seconds(planned, stage, machine)
    data = machine.gpus // (layout.tensor * layout.pipeline)
    text = f"TP{layout.tensor} PP{layout.pipeline} EP{layout.expert} DP{data}"
    text += f", micro-batch {stage.micro_batch}" + (", recompute" if stage.recompute else "")
    sizes = vars(used) | {"total": used.total}
    gigabytes = [f"{sizes[kind] / 1e9:.4g}" for kind in KINDS]
    stage_time = _time(seconds * planned.steps) if planned.steps else "-"
    return [label, text, *gigabytes, f"{seconds:.3g}", stage_time]


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
