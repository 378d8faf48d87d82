"""Answers to a round's prompts, from an engine that has the weights it should have, and rows of them for the
trainer.

Legend: b batch, s sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist

from megatron_bar.data.indexed import in_memory
from megatron_bar.data.packing import Batch, PackedRows
from megatron_bar.errors import BarError
from megatron_bar.models.sampler import Completion
from megatron_bar.rl.config import GRPOConfig
from megatron_bar.rl.engine import Engine
from megatron_bar.rl.loss import ClippedPolicyGradient
from megatron_bar.rl.prompts import Prompts, Task
from megatron_bar.training.trainer import Trainer

PROBES = 4
"""Prompts that a round with a lag answers at once, while engine and trainer have the same weights."""
PROBE_TOKENS = 32
"""Longest of those answers."""


@dataclass
class Pending:
    """Answers on their way."""

    drawn: list[int]
    """Numbers of the prompts, among the stage's tasks."""
    wait: Callable[[], list[Completion]]
    group: int
    """Answers to each prompt."""

    def groups(self) -> list[list[Completion]]:
        """Waits for the answers and returns them by prompt."""
        flat = self.wait()
        return [flat[n : n + self.group] for n in range(0, len(flat), self.group)]

    def saved(self) -> dict:
        """Waits for the answers and returns them as JSON."""
        done = self.wait()
        self.wait = lambda: done
        return {"drawn": self.drawn, "answers": [vars(completion) for completion in done]}


class Rollouts:
    """The answers of each round: ``pending`` holds those that are on their way."""

    def __init__(
        self,
        trainer: Trainer,
        engine: Engine,
        tasks: list[Task],
        prompts: Prompts,
        config: GRPOConfig,
        pad_id: int,
    ):
        self.trainer = trainer
        self.engine = engine
        self.tasks = tasks
        self.prompts = prompts
        self.config = config
        self.pad_id = pad_id
        self.pending: Pending | None = None

    def begin(self, number: int) -> None:
        """Draws the prompts of round ``number`` and has them answered by the weights of now. Collective."""
        config = self.config
        seed = self.trainer.stage.seed + number
        drawn = self.prompts.draw(number, config.prompts)
        self.engine.sync()
        if config.lag:  # when the answers come, the trainer will have moved on
            self._probe([self.tasks[n].prompt for n in drawn[:PROBES]], seed)
        prompts = [self.tasks[n].prompt for n in drawn for _ in range(config.group)]
        self.pending = Pending(drawn, self.engine.start(prompts, config.params, seed=seed), config.group)

    def take(self) -> tuple[list[int], list[list[Completion]]]:
        """Waits for the pending answers; returns the prompts' numbers, and answers by prompt. Collective."""
        drawn = self.pending.drawn
        groups = self.pending.groups()
        self.pending = None
        return drawn, groups

    def _probe(self, prompts: list[list[int]], seed: int) -> None:
        short = replace(self.config.params, max_new_tokens=min(PROBE_TOKENS, self.config.max_new_tokens))
        answers = self.engine.start(prompts, short, seed=seed)()
        self.count(prompts, answers)
        documents = []
        logprobs = []
        for prompt, answer in zip(prompts, answers, strict=True):
            documents.append((prompt + answer.ids, [False] * len(prompt) + [True] * len(answer.ids)))
            logprobs.append([0.0] * len(prompt) + answer.logprobs)
        tokens = in_memory(documents, logprobs=logprobs)
        self.check(PackedRows([("probe", tokens)], self.trainer.stage.sequence, pad_id=self.pad_id))

    def count(self, prompts: list[list[int]], answers: list[Completion]) -> None:
        """Adds answers to what the stage cost, whoever gave them."""
        self.trainer.meter.sample(
            [(len(prompt), len(a.ids)) for prompt, a in zip(prompts, answers, strict=True)]
        )

    def check(self, rows: PackedRows) -> float:
        """Compares engine and trainer on a few of ``rows``; see `check_rollouts`. Collective."""
        config = self.config
        return check_rollouts(self.trainer, self.engine, rows, config.objective, limit=config.max_drift)

    def restore(self, saved: dict) -> None:
        """Puts back the answers that were on their way when a checkpoint was written."""
        done = [Completion(**answer) for answer in saved["answers"]]
        self.pending = Pending(saved["drawn"], lambda: done, self.config.group)


def check_rollouts(
    trainer: Trainer, engine: Engine, rows: PackedRows, objective: ClippedPolicyGradient, *, limit: float
) -> float:
    """Returns the mean difference of the engine's and the trainer's log-probabilities of a few answers.
    Collective.

    Raises where it is above ``limit``, and where the own sampler's weights have changed since: then what
    trains is not what answered.
    """
    few = np.arange(min(len(rows), trainer.stage.micro_batch * trainer.data_size))
    (batch,) = micro_batches(trainer, rows, few)
    (nll_bs,) = trainer.token_nll([batch], objective)
    mask_bs = (batch.labels >= 0).to(nll_bs.device)
    difference = ((-nll_bs - batch.extras["logprobs"].to(nll_bs.device)).abs() * mask_bs).double().sum()
    total = torch.stack([difference, mask_bs.double().sum()])
    dist.all_reduce(total)
    drift = (total[0] / total[1].clamp(min=1)).item()
    if drift <= limit and not engine.changed():
        return drift
    row = rows.take([0])
    first = row.ids[0][row.documents[0] == row.documents[0, 0]].tolist()
    raise BarError(
        f"sampler and trainer differ by {drift:.2g} in the mean log-probability of an answer's token, "
        f"at most {limit:g} expected; {engine.difference(first)}"
    )


def micro_batches(trainer: Trainer, rows: PackedRows, share: np.ndarray) -> list[Batch]:
    """Returns this rank's part of the rows ``share``, as many batches of one shape on every rank.

    They are filled up with rows without loss (-1).
    """
    size = trainer.stage.micro_batch
    missing = -len(share) % (size * trainer.data_size)
    mine = np.concatenate((share, np.full(missing, -1)))[trainer.data_rank :: trainer.data_size].tolist()
    return [rows.take(mine[n : n + size]) for n in range(0, len(mine), size)]
