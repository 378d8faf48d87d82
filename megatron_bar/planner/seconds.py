"""Seconds of a recipe's stage, computed without a GPU: its steps, answers, checkpoints and folders.

All are estimates by formula from a `Machine`'s rates; the sampler's in sampling.py. Rows are assumed to be
full and to hold one document each: where documents are packed, the attention's operations are an upper bound.
Left out: starting the processes, reading and packing data, evaluation, and what an interruption repeats.
"""

from dataclasses import dataclass

from megatron_bar.conversion.parameters import DTYPES
from megatron_bar.planner.memory import Place, Spread, States, states
from megatron_bar.planner.sampling import round_seconds
from megatron_bar.planner.usage import Machine, PlannedStage, folder_bytes
from megatron_bar.training.stage import Stage

SAVED = 12
"""Bytes of a checkpoint for every value that trains: fp32 value and Adam's moments (training/pieces.py)."""
PASSES = 4
"""Times that a stage's folder passes the disk: the one it starts from is proven and loaded, its own is
written and read back."""


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """What a stage takes, in seconds."""

    step: float
    """Of an optimizer step, exchanges included."""
    sampling: float
    """Of a step's share of the answers of its round; 0 outside RLVR."""
    save: float
    """Of writing a checkpoint."""
    folders: float
    """Of reading the stage's input and writing its folder."""
    steps: int | None
    """Number of optimizer steps; None: as many as the data make."""
    saves: int | None
    """Number of checkpoints."""

    @property
    def total(self) -> float | None:
        """Seconds of the stage; None: where the number of steps is not known."""
        if self.steps is None:
            return None
        return self.steps * (self.step + self.sampling) + self.saves * self.save + self.folders


def stage_seconds(planned: PlannedStage, stage: Stage, machine: Machine) -> Seconds:
    """Returns the seconds of ``planned`` trained as ``stage`` on all GPUs."""
    step = step_seconds(planned, stage, machine)
    return Seconds(
        step=step,
        sampling=_sampling(planned, stage, machine, step),
        save=save_seconds(planned, stage, machine),
        folders=PASSES * folder_bytes(planned.shape) / machine.disk,
        steps=planned.steps,
        saves=_saves(planned),
    )


def ranked_seconds(planned: PlannedStage, stage: Stage, machine: Machine) -> float:
    """Returns the seconds of a step with its share of its round's answers. Layouts are ranked by them: what
    else a stage takes is the same in all of them, or nearly."""
    step = step_seconds(planned, stage, machine)
    return step + _sampling(planned, stage, machine, step)


def _sampling(planned: PlannedStage, stage: Stage, machine: Machine, step: float) -> float:
    """Returns a step's share of its round's sampling."""
    rl = planned.run.rl
    if rl is None:
        return 0.0
    return round_seconds(planned, stage, machine, steps=rl.mini_batches * step) / rl.mini_batches


def save_seconds(planned: PlannedStage, stage: Stage, machine: Machine) -> float:
    """Returns the seconds of writing a checkpoint: what a node's ranks update, at the rate of its disk. A
    thread writes while training goes on, so that training waits for so long at most."""
    spread = Spread.of(planned.shape, stage.parallel, machine.gpus)
    most = max(_at(planned, spread, place).owned for place in spread.places())
    return SAVED * most * min(machine.node, machine.gpus) / machine.disk


def _saves(planned: PlannedStage) -> int | None:
    """Returns the number of checkpoints, in RLVR of rounds; behind the last step there is none."""
    every = planned.stage.save_every
    count = planned.stage.steps if planned.run.rl is None else planned.run.rl.rounds
    if not every:
        return 0
    return None if count is None else (count - 1) // every


def compute_seconds(planned: PlannedStage, stage: Stage, machine: Machine) -> float:
    """Returns the seconds of a step's operations, the idle time at both ends of a pipeline included."""
    layout = stage.parallel
    data = machine.gpus // (layout.tensor * layout.pipeline)
    micro_batches = max(1, planned.rows // (stage.micro_batch * data))
    waiting = (micro_batches + layout.pipeline - 1) / micro_batches
    return planned.step_flops(stage.recompute) / machine.flops * waiting


def step_seconds(planned: PlannedStage, stage: Stage, machine: Machine) -> float:
    """Returns the seconds of a step: of its operations, and of the bytes that the busiest rank exchanges,
    none of which is taken to hide behind the operations."""
    shape = planned.shape
    layout = stage.parallel
    spread = Spread.of(shape, layout, machine.gpus)
    size = DTYPES[shape.dtype].itemsize
    h = shape.hidden_size
    tokens = planned.rows * stage.sequence / spread.data  # of a data-parallel rank in a step
    passes = 2 + stage.recompute
    layers = shape.num_layers // layout.pipeline

    def gathered(tokens: float, ranks: int) -> float:
        """Returns the bytes of a gather and a scatter of ``tokens``, which the group's ranks hold
        together."""
        return 2 * tokens * h * size * (ranks - 1) / ranks

    experts = spread.expert * spread.expert_tensor if shape.num_experts else spread.tensor
    layer = gathered(tokens, spread.tensor) + gathered(tokens / spread.tensor * experts, experts)
    inside = passes * layers * layer
    between = 2 * tokens / spread.tensor * h * size * (layout.pipeline > 1)
    places = (Place(pipeline=n, data=0, expert=0, expert_data=0) for n in range(layout.pipeline))
    trains = max(_at(planned, spread, place).trains for place in places)
    reduced = trains * (1 + 4 / size) * (spread.data > 1)  # gradients in fp32 one way, weights the other
    far = machine.network if machine.gpus > machine.node else machine.link
    return compute_seconds(planned, stage, machine) + inside / machine.link + (between + reduced) / far


def _at(planned: PlannedStage, spread: Spread, place: Place) -> States:
    return states(planned.shape, planned.policy, spread, place)
