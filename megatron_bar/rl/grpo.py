"""Reinforcement learning with verified rewards: sample, grade, pack, learn (arXiv 2604.18473).

Each round draws ``prompts`` prompts, ``group`` answers to each, from the weights as they are; answers are
rewarded by their verifier alone; groups that agree are dropped; the rest makes ``mini_batches`` optimizer
steps. A prompt that was solved at least ``solved`` of the time is not drawn again.

With ``lag`` 1 a round's answers are begun before the steps of the round before it, so that an engine of its
own answers while the trainer trains; truncated importance sampling then corrects for the weights that are one
round old.
"""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from blake3 import blake3

from megatron_bar.config import to_json
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.packing import PackedRows
from megatron_bar.errors import BarError
from megatron_bar.models.sampler import Completion
from megatron_bar.parallel.state import on_rank_zero
from megatron_bar.rl.advantage import ADVANTAGES, informative
from megatron_bar.rl.apart import build_engine
from megatron_bar.rl.config import GRPOConfig
from megatron_bar.rl.engine_process import check as check_engine
from megatron_bar.rl.loss import TRAINER_LOGPROBS
from megatron_bar.rl.prompts import Prompts, Task, pack_rollouts
from megatron_bar.rl.rollouts import Rollouts, micro_batches
from megatron_bar.training.checkpoint import Checkpoints
from megatron_bar.training.fit import Job
from megatron_bar.training.guard import Guard
from megatron_bar.training.metrics import Log
from megatron_bar.training.objective import START_LOGPROBS
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer

Verify = Callable[[list[tuple[str, str, object]]], list[float]]
"""Scores, 0 to 1, of many answers given as (verifier, answer, truth)."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The answers to one prompt."""

    number: int
    """Number of the prompt among the stage's tasks."""
    task: Task
    answers: list[Completion]
    scores: list[float] = field(default_factory=list)
    """Verifier's scores of the answers, once they are graded."""


class Rounds:
    """The rounds of one stage, and what goes on from one to the next."""

    def __init__(self, name: str, rollouts: Rollouts, guard: Guard, tokenizer, verify: Verify):
        self.name = name
        self.rollouts = rollouts
        self.guard = guard
        self.tokenizer = tokenizer
        self.verify = verify
        self.trainer = rollouts.trainer
        self.config = rollouts.config
        self.prompts = rollouts.prompts
        self.done = 0
        self.idle = 0
        """Rounds in a row in which nothing was learnt."""

    def saved(self) -> dict:
        """Returns the state as JSON; answers on their way are waited for."""
        pending = self.rollouts.pending.saved() if self.rollouts.pending else None
        counts = {"round": self.done, "idle": self.idle}
        return counts | {"open": sorted(self.prompts.open), "pending": pending, "guard": self.guard.saved()}

    def restore(self, saved: dict) -> None:
        """Goes on from what `saved` returned; the guard takes its own part."""
        self.done = saved["round"]
        self.idle = saved["idle"]
        self.prompts.open = set(saved["open"])
        if saved["pending"] is not None:
            self.rollouts.restore(saved["pending"])

    def next(self) -> dict[str, float]:
        """Makes one round; returns what is shown of it. Collective."""
        groups = self.sample()
        groups = self.grade(groups)
        kept = [group for group in groups if informative(group.scores)]
        self._count_idle(groups, kept)
        values = _summary(groups, kept)
        if kept:
            rows = self.pack(kept)
            if not self.config.lag:  # with a lag it was compared when the answers were begun
                values["drift"] = self.rollouts.check(rows)
            values |= self.learn(rows, kept)
        self.done += 1
        return values

    def sample(self) -> list[Group]:
        """Draws prompts and answers to them; with a lag also begins those of the next round. Collective."""
        rollouts = self.rollouts
        if rollouts.pending is None:
            rollouts.begin(self.done)
        drawn, answers = rollouts.take()
        if self.config.lag and self.done + 1 < self.config.rounds:
            rollouts.begin(self.done + 1)
        groups = [
            Group(number=number, task=rollouts.tasks[number], answers=mine)
            for number, mine in zip(drawn, answers, strict=True)
        ]
        for group in groups:
            rollouts.count([group.task.prompt] * len(group.answers), group.answers)
        return groups

    def grade(self, groups: list[Group]) -> list[Group]:
        """Has rank 0 grade every answer, and notes how often each prompt was solved. Collective."""
        scores = on_rank_zero(partial(verify_groups, groups, self.tokenizer, self.verify))
        graded = [replace(group, scores=mine) for group, mine in zip(groups, scores, strict=True)]
        for group in graded:
            self.prompts.record(group.number, sum(group.scores) / len(group.scores))
        return graded

    def pack(self, groups: list[Group]) -> PackedRows:
        """Packs the answers of ``groups`` with their advantages into rows of the stage's length."""
        config = self.config
        return pack_rollouts(
            [group.task for group in groups],
            [group.answers for group in groups],
            [[score * config.reward for score in group.scores] for group in groups],
            length=self.trainer.stage.sequence,
            pad_id=self.tokenizer.pad_id,
            longest=config.max_new_tokens,
            advantages=ADVANTAGES[config.advantages],
            truncated=config.truncated,
        )

    def learn(self, rows: PackedRows, groups: list[Group]) -> dict[str, float]:
        """Makes ``mini_batches`` optimizer steps, each over its share of ``rows``, which hold ``groups``.
        Collective.

        The first step's ratios are 1 but for rounding. Returns the means over the steps, of counts the sums.
        """
        config = self.config
        trainer = self.trainer
        # Shuffled by the round's number: packing lays rows out longest first.
        order = np.random.default_rng(self.done).permutation(len(rows))
        shares = [share for share in np.array_split(order, config.mini_batches) if len(share)]
        steps = [micro_batches(trainer, rows, share) for share in shares]
        # All log-probabilities that a step compares with are those before the first one.
        if config.importance_cap is not None:
            steps = [trainer.with_logprobs(step, TRAINER_LOGPROBS, config.objective) for step in steps]
        compares = config.compares_with_start(self.done + 1)
        if compares:
            with trainer.start_weights():
                steps = [trainer.with_logprobs(step, START_LOGPROBS, config.objective) for step in steps]
        collected: dict[str, list[float]] = {}
        for share, step in zip(shares, steps, strict=True):
            asked = {groups[document // config.group].number for row in share for document in rows.row(row)}
            values = trainer.step(step, config.objective)
            values = self.guard.judge(trainer.done, values, {"prompts": sorted(asked)})
            for name, value in values.items():
                collected.setdefault(name, []).append(value)
        if not compares:  # it is 0 for want of a comparison
            collected.pop("kl_to_start", None)
        return {name: _total(name, values) for name, values in collected.items()}

    def _count_idle(self, groups: list[Group], kept: list[Group]) -> None:
        """Counts rounds in a row of which nothing was kept; raises when there are ``patience`` of them."""
        self.idle = 0 if kept else self.idle + 1
        if self.idle == self.config.patience:
            scores = [score for group in groups for score in group.scores]
            raise BarError(
                f"{self.name}: in {self.idle} rounds no group had answers of different rewards "
                f"(mean reward {sum(scores) / len(scores):.2f}): "
                f"nothing to learn from; expected prompts that are solved sometimes"
            )


def train(
    job: Job, stage: Stage, config: GRPOConfig, tasks: list[Task], chats: ChatFormat, verify: Verify
) -> None:
    """Trains ``stage`` by GRPO and writes ``job.out``; resumes from its newest checkpoint.

    The verifier sees nothing of the policy but its text. Asked to stop by SIGTERM it saves after the round
    and exits.
    """
    job.check_out()
    on_rank_zero(partial(check_engine, config.engine))
    trainer = Trainer(job.source, stage, steps=config.steps, keep_start=config.keeps_start)
    prompts = Prompts(tasks, seed=stage.seed, solved=config.solved)
    everything = json.dumps([to_json(config), [vars(task) for task in tasks]])
    origin = {"source": trainer.source_hash, "tasks and rl": blake3(everything.encode()).hexdigest()}
    checkpoints = Checkpoints(trainer, job.checkpoints, name=job.name, origin=origin, unit="round")
    saved = checkpoints.resume()
    guarded = saved["guard"] if saved else None
    # The loss of a policy gradient lies around zero and has no usual size.
    guard = Guard(job.name, job.nonfinite, stage, start=trainer.done, saved=guarded, watched=("grad_norm",))
    links = job.out.with_name(f".{job.out.name}.rollout")
    engine = build_engine(config.engine, trainer, chats, config.params, place=links)
    rollouts = Rollouts(trainer, engine, tasks, prompts, config, chats.tokenizer.pad_id)
    rounds = Rounds(job.name, rollouts, guard, chats.tokenizer, verify)
    if saved is not None:
        rounds.restore(saved)
    with (
        closing(engine),
        trainer.stop,
        Log(job.name, job.logs, steps=config.rounds, start=rounds.done) as log,
    ):
        while rounds.done < config.rounds:
            values = rounds.next()
            log.step(rounds.done, values)
            trainer.stop.agree()  # a round in which nothing was learnt has told nobody
            checkpoints.after(rounds.done, rounds.saved, last=rounds.done == config.rounds)
        checkpoints.wait()
    cost = trainer.meter.cost(job.name, stage.name)
    trainer.save(job.out, manifest=partial(job.manifest, source_hash=trainer.source_hash, cost=cost))
    checkpoints.remove()


def verify_groups(groups: list[Group], tokenizer, verify: Verify) -> list[list[float]]:
    """Returns the scores of each group's answers, all verified together: verifiers work on many at a time."""
    counts = [len(group.answers) for group in groups]
    items = [
        (group.task.verifier, tokenizer.decode(answer.ids), group.task.truth)
        for group in groups
        for answer in group.answers
    ]
    scores = iter(verify(items))
    return [[next(scores) for _ in range(count)] for count in counts]


def _summary(groups: list[Group], kept: list[Group]) -> dict[str, float]:
    answers = [answer for group in groups for answer in group.answers]
    tokens = sum(len(answer.ids) for answer in answers)
    return {
        "reward": sum(sum(group.scores) for group in groups) / len(answers),
        "kept": len(kept) / len(groups),
        "length": tokens / len(answers),
        "truncated": sum(not answer.finished for answer in answers) / len(answers),
        # The mean surprise of what was drawn from the policy estimates its entropy without bias.
        "entropy": -sum(sum(answer.logprobs) for answer in answers) / tokens,
    }


def _total(name: str, values: list[float]) -> float:
    """The sum over a round's steps of what is a count, the mean of everything else."""
    is_count = "tokens" in name or name == "skipped"
    return sum(values) if is_count else sum(values) / len(values)
