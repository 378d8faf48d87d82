"""The loop of every stage that learns from a data set: steps, checkpoints, a folder at the end."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from blake3 import blake3

from megatron_bar.data.loader import Loader
from megatron_bar.data.packing import Batch, Rows
from megatron_bar.parallel.state import on_rank_zero
from megatron_bar.training.checkpoint import Checkpoints
from megatron_bar.training.guard import Guard
from megatron_bar.training.metrics import Log
from megatron_bar.training.objective import LanguageModelling, Objective
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.locks import check_out
from megatron_bar.weights.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stage at work: where it reads and writes, and what it is called in the log."""

    name: str
    source: Path
    """The folder it starts from."""
    out: Path
    """The folder it writes; appears when it is whole."""
    manifest: Callable[..., Manifest]
    """Manifest of the folder written, given ``source_hash``, the hash of the one it started from, and
    ``cost``, what the stage took."""
    logs: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints, hidden beside the one that is written."""
        return checkpoints_of(self.out)

    @property
    def nonfinite(self) -> Path:
        """The file where steps that were not finite, and spikes, are reported."""
        if self.logs is None:
            return self.out.with_name(f"{self.out.name}.nonfinite.jsonl")
        return self.logs / "nonfinite.jsonl"

    def check_out(self) -> None:
        """Refuses a folder that is there already, before anything is trained. Collective."""
        on_rank_zero(partial(check_out, self.out))


def checkpoints_of(out: Path) -> Path:
    """Returns where the checkpoints of a stage that writes ``out`` lie."""
    return out.with_name(f".{out.name}.checkpoints")


def remove_leftovers(out: Path) -> None:
    """Removes the checkpoints of a folder that is whole: a kill may come between the two."""
    shutil.rmtree(checkpoints_of(out), ignore_errors=True)


Prepare = Callable[[Trainer, list[Batch]], list[Batch]]
"""What a step's micro-batches go through before they are learnt from; collective."""


def as_they_are(trainer: Trainer, micro_batches: list[Batch]) -> list[Batch]:
    """Returns the micro-batches, a `Prepare` that prepares nothing."""
    return micro_batches


def fit(
    job: Job,
    stage: Stage,
    parts: Sequence[Rows],
    *,
    weights: Sequence[float] | None = None,
    objective: Objective | None = None,
    prepare: Prepare = as_they_are,
    keep_start: bool = False,
) -> None:
    """Trains ``stage`` on ``parts`` and writes ``job.out``; resumes from its newest checkpoint.

    ``weights``: of each part among the rows; None: every row once an epoch. ``objective``: None: language
    modelling. ``keep_start``: whether ``prepare`` asks for the weights that the stage began with (see
    `Trainer.start_weights`). Asked to stop by SIGTERM it saves and exits.
    """
    job.check_out()
    steps = stage.num_steps(sum(len(part) for part in parts))
    trainer = Trainer(job.source, stage, steps=steps, keep_start=keep_start)
    objective = objective or LanguageModelling(stage.head_z_loss)
    # What a checkpoint must agree with to be gone on from.
    data = blake3(json.dumps([[part.fingerprint for part in parts], weights]).encode()).hexdigest()
    origin = {"source": trainer.source_hash, "data": data, "objective": repr(objective)}
    checkpoints = Checkpoints(trainer, job.checkpoints, name=job.name, origin=origin)
    saved = checkpoints.resume() or {"guard": None}
    guard = Guard(job.name, job.nonfinite, stage, start=trainer.done, saved=saved["guard"])
    # A step's rows depend on its number alone, so that a resumed stage sees what it would have seen.
    loader = Loader(
        parts,
        global_batch=stage.batch,
        micro_batch=stage.micro_batch,
        data_rank=trainer.data_rank,
        data_size=trainer.data_size,
        seed=stage.seed,
        steps=steps,
        weights=weights,
    )
    with trainer.stop, Log(job.name, job.logs, steps=steps, start=trainer.done) as log:
        for step in loader.ahead(trainer.done):
            values = trainer.step(prepare(trainer, step.micro_batches), objective)
            values = guard.judge(trainer.done, values, step.rows)
            shares = {}
            if len(step.shares) > 1:
                shares = {f"share/{name}": share for name, share in step.shares.items()}
            log.step(trainer.done, values | shares)
            checkpoints.after(trainer.done, lambda: {"guard": guard.saved()}, last=trainer.done == steps)
        checkpoints.wait()
    # Until the folder is whole the checkpoints stay: whatever ends the process now, the same command goes on.
    cost = trainer.meter.cost(job.name, stage.name)
    trainer.save(job.out, manifest=partial(job.manifest, source_hash=trainer.source_hash, cost=cost))
    checkpoints.remove()
