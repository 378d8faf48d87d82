"""The loop of every stage that learns from a data set: steps, checkpoints, a folder at the end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.data.batch import Rows, batches
from megatron_bar.training import checkpoint
from megatron_bar.training.metrics import Log
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stage at work: where it reads and writes, and what it is called in the log."""

    name: str
    source: Path
    """The folder it starts from."""
    out: Path
    """The folder it writes; appears when it is whole."""
    manifest: Callable[[Folder], Manifest]
    logs: Path | None = None

    @property
    def checkpoints(self) -> Path:
        return self.out.with_name(f".{self.out.name}.checkpoints")


def fit(job: Job, stage: Stage, rows: Rows) -> int:
    """Trains ``stage`` on ``rows`` and writes ``job.out``; resumes from its newest checkpoint. Returns tokens seen."""
    steps = stage.num_steps(len(rows))
    trainer = Trainer(job.source, stage, steps=steps)
    checkpoint.resume(trainer, job.checkpoints)
    stream = batches(
        rows,
        global_batch=stage.batch,
        micro_batch=stage.micro_batch,
        data_rank=trainer.data_rank,
        data_size=trainer.data_size,
        seed=stage.seed,
        start=trainer.done,
    )
    objective = LanguageModelling(stage.head_z_loss)
    with Log(job.name, job.logs, steps=steps, start=trainer.done) as log:
        while trainer.done < steps:
            values = trainer.step(next(stream), objective)
            log.step(trainer.done, values)
            if stage.save_every and trainer.done % stage.save_every == 0 and trainer.done < steps:
                checkpoint.save(trainer, job.checkpoints, extra={})
    trainer.save(job.out, manifest=job.manifest)
    checkpoint.remove(job.checkpoints)
    return steps * stage.batch * stage.sequence
