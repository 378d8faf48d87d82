"""The loop of every stage that learns from a data set: steps, checkpoints, a folder at the end."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from blake3 import blake3

from megatron_bar.data.loader import Loader
from megatron_bar.data.packing import Rows
from megatron_bar.training import checkpoint
from megatron_bar.training.metrics import Log
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
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
    """Of the folder written, and ``source_hash``, the hash of the one it started from."""
    logs: Path | None = None

    @property
    def checkpoints(self) -> Path:
        return self.out.with_name(f".{self.out.name}.checkpoints")


def fit(job: Job, stage: Stage, parts: Sequence[Rows], *, weights: Sequence[float] | None = None) -> int:
    """Trains ``stage`` on ``parts`` and writes ``job.out``; resumes from its newest checkpoint. Returns tokens seen.

    ``weights``: of each part among the rows; None: every row once an epoch.
    """
    steps = stage.num_steps(sum(len(part) for part in parts))
    trainer = Trainer(job.source, stage, steps=steps)
    data = blake3(json.dumps([[part.fingerprint for part in parts], weights]).encode()).hexdigest()
    origin = {"source": trainer.source_hash, "data": data}
    checkpoint.resume(trainer, job.checkpoints, origin=origin)
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
    objective = LanguageModelling(stage.head_z_loss)
    with Log(job.name, job.logs, steps=steps, start=trainer.done) as log:
        for step in loader.ahead(trainer.done):
            values = trainer.step(step.micro_batches, objective)
            shares = {f"share/{name}": share for name, share in step.shares.items()} if len(step.shares) > 1 else {}
            log.step(trainer.done, values | shares)
            if stage.save_every and trainer.done % stage.save_every == 0 and trainer.done < steps:
                checkpoint.save(trainer, job.checkpoints, extra={}, origin=origin)
    trainer.save(job.out, manifest=partial(job.manifest, source_hash=trainer.source_hash))
    checkpoint.remove(job.checkpoints)
    return steps * stage.batch * stage.sequence
