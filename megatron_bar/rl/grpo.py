"""Reinforcement learning with verified rewards: sample, verify, compare within groups, step (arXiv 2604.18473).

Each round draws ``prompts`` prompts, ``group`` answers to each, from the weights as they are; answers are rewarded by their
verifier alone; groups that agree are dropped; the rest makes ``mini_batches`` optimizer steps. A prompt that was solved
at least ``solved`` of the time is not drawn again.

With ``lag`` 1 a round's answers are begun before the steps of the round before it, so that an engine of its own answers while
the trainer trains; truncated importance sampling then corrects for the weights that are one round old.
"""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from blake3 import blake3
from torch import Tensor

from megatron_bar.config import to_json
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import in_memory
from megatron_bar.data.packing import Batch, PackedRows
from megatron_bar.errors import BarError, require_at_least
from megatron_bar.models.sampler import Completion
from megatron_bar.parallel.state import on_rank_zero
from megatron_bar.rl.advantage import ADVANTAGES, informative
from megatron_bar.rl.engine import Engine, EngineConfig, SamplingParams, build_engine
from megatron_bar.rl.loss import ClippedPolicyGradient
from megatron_bar.rl.prompts import Prompts, Task, pack_rollouts
from megatron_bar.training.checkpoint import Checkpoints
from megatron_bar.training.fit import Job
from megatron_bar.training.guard import Guard
from megatron_bar.training.metrics import Log
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    rounds: int
    """Rollout batches."""
    prompts: int = 64
    """Prompts in a rollout batch."""
    group: int = 8
    """Answers to each prompt."""
    mini_batches: int = 4
    """Optimizer steps per rollout batch."""
    max_new_tokens: int
    temperature: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.272
    advantages: Literal["centred", "standardised", "dr_grpo"] = "centred"
    """See advantage.py."""
    kl: float = 0.0
    """Weight of the KL to the start in the loss; published: none."""
    kl_every: int = 10
    """Rounds between measurements of the KL to the start where it is not in the loss; 0: never."""
    importance_cap: float | None = None
    """Truncated importance sampling, for a sampler that is not the trainer itself; see loss.py. 2 is usual."""
    lag: Literal[0, 1] = 0
    """Rounds that the weights that answer are behind: 1 is one step asynchronous, and needs ``importance_cap``."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """What answers."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the chat format's own end."""
    truncated: Literal["score", "mask"] = "score"
    """Answers cut off at the length limit: scored as they stand, or without loss (overlong filtering, arXiv 2503.14476)."""
    max_drift: float = 0.05
    """Mean difference of sampler and trainer log-probabilities above which the run stops; bf16 has about 0.01."""
    patience: int = 50
    """Rounds in a row in which no group had different rewards, before the run stops."""
    reward: float = 10.0
    """Of an answer whose verifier says 1."""
    solved: float = 0.875
    """Pass rate from which on a prompt is not drawn again."""
    slots: int = 64
    """Sequences sampled at a time on each data-parallel rank."""

    def __post_init__(self):
        require_at_least("rl", self, 1, "rounds", "prompts", "mini_batches", "max_new_tokens", "slots", "patience")
        require_at_least("rl", self, 2, "group")
        require_at_least("rl", self, 0, "kl", "kl_every", "importance_cap", "max_drift")
        for name in ("temperature", "clip_low", "clip_high", "reward", "solved"):
            if not getattr(self, name) > 0:
                raise BarError(f"rl: {name} must be positive, got {getattr(self, name)}")
        if self.lag not in (0, 1) or (self.lag and self.importance_cap is None):
            raise BarError(f"rl: lag must be 0, or 1 with an importance_cap (2 is usual), got {self.lag}")
        if not all(self.stop):
            raise BarError("rl: stop has an empty text, which would end every answer")

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(max_new_tokens=self.max_new_tokens, temperature=self.temperature, stop=self.stop, slots=self.slots)


@dataclass
class _Pending:
    """Answers on their way: to which prompts, in groups of how many."""

    drawn: list[int]
    wait: Callable[[], list[Completion]]
    group: int

    def groups(self) -> list[list[Completion]]:
        flat = self.wait()
        return [flat[n : n + self.group] for n in range(0, len(flat), self.group)]

    def saved(self) -> dict:
        """As JSON; the answers are waited for."""
        done = self.wait()
        self.wait = lambda: done
        return {"drawn": self.drawn, "answers": [vars(completion) for completion in done]}


class Rollouts:
    """The answers of each round, from an engine that has the weights it should have."""

    PROBES, PROBE_TOKENS = 4, 32

    def __init__(self, trainer: Trainer, engine: Engine, tasks: list[Task], prompts: Prompts, config: GRPOConfig, pad_id: int):
        self.trainer, self.engine, self.tasks, self.prompts = trainer, engine, tasks, prompts
        self.config, self.pad_id, self.pending = config, pad_id, None

    def begin(self, number: int) -> None:
        """Round ``number``'s, by the weights as they are now."""
        config, seed = self.config, self.trainer.stage.seed + number
        drawn = self.prompts.draw(number, config.prompts)
        self.engine.sync()
        if config.lag:  # when the answers come, the trainer will have moved on
            self._probe([self.tasks[n].prompt for n in drawn[: self.PROBES]], seed)
        prompts = [self.tasks[n].prompt for n in drawn for _ in range(config.group)]
        self.pending = _Pending(drawn, self.engine.start(prompts, config.params, seed=seed), config.group)

    def _probe(self, prompts: list[list[int]], seed: int) -> None:
        short = replace(self.config.params, max_new_tokens=min(self.PROBE_TOKENS, self.config.max_new_tokens))
        answers = self.engine.start(prompts, short, seed=seed)()
        self.count(prompts, answers)
        documents = [
            (prompt + answer.ids, [False] * len(prompt) + [True] * len(answer.ids))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        logprobs = [[0.0] * len(prompt) + answer.logprobs for prompt, answer in zip(prompts, answers, strict=True)]
        tokens = in_memory(documents, logprobs=logprobs)
        rows = PackedRows([("probe", tokens)], self.trainer.stage.sequence, pad_id=self.pad_id)
        self.check(rows)

    def count(self, prompts: list[list[int]], answers: list[Completion]) -> None:
        """Adds answers to what the stage cost, whoever gave them."""
        self.trainer.meter.sample([(len(prompt), len(a.ids)) for prompt, a in zip(prompts, answers, strict=True)])

    def check(self, rows: PackedRows) -> float:
        return check_rollouts(self.trainer, self.engine, rows, _objective(self.config), limit=self.config.max_drift)

    def restore(self, saved: dict) -> None:
        done = [Completion(**answer) for answer in saved["answers"]]
        self.pending = _Pending(saved["drawn"], lambda: done, self.config.group)


Grade = Callable[[list[tuple[str, str, object]]], list[float]]
"""(verifier, answer, truth) of many answers to their scores, 0 to 1."""


class Rounds:
    """The rounds of one stage: what each answers, grades and learns, and what goes on from one to the next."""

    def __init__(self, name: str, rollouts: Rollouts, guard: Guard, tokenizer, grade: Grade):
        self.name, self.rollouts, self.guard, self.tokenizer, self.grade = name, rollouts, guard, tokenizer, grade
        self.trainer, self.config, self.prompts = rollouts.trainer, rollouts.config, rollouts.prompts
        self.done = self.idle = 0

    def saved(self) -> dict:
        """As JSON; answers on their way are waited for."""
        pending = self.rollouts.pending.saved() if self.rollouts.pending else None
        counts = {"round": self.done, "idle": self.idle}
        return counts | {"open": sorted(self.prompts.open), "pending": pending, "guard": self.guard.saved()}

    def restore(self, saved: dict) -> None:
        self.done, self.idle = saved["round"], saved["idle"]
        self.prompts.open = set(saved["open"])
        if saved["pending"] is not None:
            self.rollouts.restore(saved["pending"])

    def next(self) -> dict[str, float]:
        """One round; returns what is shown of it. Collective."""
        number, config, rollouts = self.done, self.config, self.rollouts
        if rollouts.pending is None:
            rollouts.begin(number)
        drawn, groups = rollouts.pending.drawn, rollouts.pending.groups()
        rollouts.pending = None
        if config.lag and number + 1 < config.rounds:
            rollouts.begin(number + 1)
        tasks = [rollouts.tasks[n] for n in drawn]
        for task, group in zip(tasks, groups, strict=True):
            rollouts.count([task.prompt] * len(group), group)
        scores = on_rank_zero(partial(_grade, tasks, groups, self.tokenizer, self.grade))
        for n, group in zip(drawn, scores, strict=True):
            self.prompts.record(n, sum(group) / len(group))
        kept = [n for n, group in enumerate(scores) if informative(group)]
        self.idle = 0 if kept else self.idle + 1
        if self.idle == config.patience:
            mean = sum(map(sum, scores)) / sum(map(len, scores))
            raise BarError(
                f"{self.name}: in {self.idle} rounds no group had answers of different rewards (mean reward {mean:.2f}): "
                f"nothing to learn from; expected prompts that are solved sometimes"
            )
        values = _summary(scores, groups, kept)
        if kept:
            rows = pack_rollouts(
                [tasks[n] for n in kept],
                [groups[n] for n in kept],
                [[score * config.reward for score in scores[n]] for n in kept],
                length=self.trainer.stage.sequence,
                pad_id=self.tokenizer.pad_id,
                longest=config.max_new_tokens,
                advantages=ADVANTAGES[config.advantages],
                truncated=config.truncated,
            )
            if not config.lag:
                values["drift"] = rollouts.check(rows)
            values |= self._learn(rows, [drawn[n] for n in kept])
        self.done += 1
        return values

    def _learn(self, rows: PackedRows, prompts: list[int]) -> dict[str, float]:
        """``mini_batches`` optimizer steps, each over its share of ``rows``: answers to ``prompts``, a group to each.

        The first step's ratios are 1 but for rounding.
        """
        config, trainer, objective = self.config, self.trainer, _objective(self.config)
        order = np.random.default_rng(self.done).permutation(len(rows))
        split = [share for share in np.array_split(order, config.mini_batches) if len(share)]
        shares = [_micro_batches(trainer, rows, share) for share in split]

        def scored(share: list[Batch]) -> list[Tensor]:
            return trainer.token_nll(share, objective)

        if config.importance_cap is not None:
            shares = [_with_extra(share, "trainer_logprobs", scored(share)) for share in shares]
        from_start = config.kl > 0 or (config.kl_every > 0 and (self.done + 1) % config.kl_every == 0)
        if from_start:
            with trainer.start_weights():
                shares = [_with_extra(share, "start_logprobs", scored(share)) for share in shares]
        found: dict[str, list[float]] = {}
        for index, share in zip(split, shares, strict=True):
            asked = sorted({prompts[document // config.group] for row in index for document in rows.row(row)})
            for name, value in self.guard.judge(trainer.done + 1, trainer.step(share, objective), {"prompts": asked}).items():
                found.setdefault(name, []).append(value)
        if not from_start:
            found.pop("kl_to_start", None)
        return {name: sum(v) if "tokens" in name or name == "skipped" else sum(v) / len(v) for name, v in found.items()}


def train(job: Job, stage: Stage, config: GRPOConfig, tasks: list[Task], chats: ChatFormat, grade: Grade) -> None:
    """Trains ``stage`` by GRPO and writes ``job.out``; resumes from its newest checkpoint.

    The verifier sees nothing of the policy but its text. Asked to stop by SIGTERM it saves after the round and exits.
    """
    job.check_out()
    trainer = Trainer(job.source, stage, steps=config.rounds * config.mini_batches)
    trainer.keep_start()
    prompts = Prompts(tasks, seed=stage.seed, solved=config.solved)
    everything = json.dumps([to_json(config), [vars(task) for task in tasks]])
    origin = {"source": trainer.source_hash, "tasks and rl": blake3(everything.encode()).hexdigest()}
    checkpoints = Checkpoints(trainer, job.checkpoints, name=job.name, origin=origin, unit="round")
    saved = checkpoints.resume()
    guarded = saved["guard"] if saved else None
    # The loss of a policy gradient lies around zero and has no usual size.
    guard = Guard(job.name, job.nonfinite, stage, start=trainer.done, saved=guarded, watched=("grad_norm",))
    handover = job.out.with_name(f".{job.out.name}.rollout")
    engine = build_engine(config.engine, trainer, chats, config.params, folder=handover)
    rollouts = Rollouts(trainer, engine, tasks, prompts, config, chats.tokenizer.pad_id)
    rounds = Rounds(job.name, rollouts, guard, chats.tokenizer, grade)
    if saved is not None:
        rounds.restore(saved)
    with closing(engine), trainer.stop, Log(job.name, job.logs, steps=config.rounds, start=rounds.done) as log:
        while rounds.done < config.rounds:
            values = rounds.next()
            log.step(rounds.done, values)
            trainer.stop.agree()  # a round in which nothing was learnt has told nobody
            checkpoints.after(rounds.done, rounds.saved, last=rounds.done == config.rounds)
        checkpoints.wait()
    cost = trainer.meter.cost(job.name, stage.name)
    trainer.save(job.out, manifest=partial(job.manifest, source_hash=trainer.source_hash, cost=cost))
    checkpoints.remove()


def _objective(config: GRPOConfig) -> ClippedPolicyGradient:
    return ClippedPolicyGradient(
        low=config.clip_low,
        high=config.clip_high,
        kl=config.kl,
        importance_cap=config.importance_cap,
        temperature=config.temperature,
    )


def check_rollouts(
    trainer: Trainer, engine: Engine, rows: PackedRows, objective: ClippedPolicyGradient, *, limit: float
) -> float:
    """Mean difference between the engine's and the trainer's log-probabilities of a few answers. Collective.

    Raises where it is above ``limit``, and where the own sampler's weights have changed since: then what trains is not what
    answered.
    """
    few = np.arange(min(len(rows), trainer.stage.micro_batch * trainer.data_size))
    (batch,) = _micro_batches(trainer, rows, few)
    (nll,) = trainer.token_nll([batch], objective)
    mask = (batch.labels >= 0).to(nll.device)
    difference = ((-nll - batch.extras["logprobs"].to(nll.device)).abs() * mask).double().sum()
    total = torch.stack([difference, mask.double().sum()])
    dist.all_reduce(total)
    drift = (total[0] / total[1].clamp(min=1)).item()
    if drift <= limit and not engine.changed():
        return drift
    ids = rows.take([0])
    first = ids.ids[0][ids.documents[0] == ids.documents[0, 0]].tolist()
    raise BarError(
        f"sampler and trainer differ by {drift:.2g} in the mean log-probability of an answer's token, "
        f"at most {limit:g} expected; {engine.difference(first)}"
    )


def _grade(tasks: list[Task], groups: list[list[Completion]], tokenizer, grade: Grade) -> list[list[float]]:
    items = [(t.verifier, tokenizer.decode(c.ids), t.truth) for t, group in zip(tasks, groups, strict=True) for c in group]
    flat, size = grade(items), len(groups[0])
    return [flat[n : n + size] for n in range(0, len(flat), size)]


def _summary(scores: list[list[float]], groups: list[list[Completion]], kept: list[int]) -> dict[str, float]:
    flat = [completion for group in groups for completion in group]
    return {
        "reward": sum(map(sum, scores)) / len(flat),
        "kept": len(kept) / len(groups),
        "length": sum(len(c.ids) for c in flat) / len(flat),
        "truncated": sum(not c.finished for c in flat) / len(flat),
        # The mean surprise of what was drawn from the policy estimates its entropy without bias.
        "entropy": -sum(sum(c.logprobs) for c in flat) / sum(len(c.ids) for c in flat),
    }


def _micro_batches(trainer: Trainer, rows: PackedRows, share: np.ndarray) -> list[Batch]:
    """This rank's part of the rows ``share``, filled up with rows without loss: as many batches of one shape on every rank."""
    size = trainer.stage.micro_batch
    missing = -len(share) % (size * trainer.data_size)
    mine = np.concatenate((share, np.full(missing, -1)))[trainer.data_rank :: trainer.data_size].tolist()
    return [rows.take(mine[n : n + size]) for n in range(0, len(mine), size)]


def _with_extra(batches: list[Batch], name: str, nlls: list[Tensor]) -> list[Batch]:
    return [replace(b, extras=b.extras | {name: -nll.cpu()}) for b, nll in zip(batches, nlls, strict=True)]
