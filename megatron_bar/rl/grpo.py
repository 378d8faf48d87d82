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
from megatron_bar.parallel.state import on_rank_zero
from megatron_bar.rl.advantage import ADVANTAGES, informative
from megatron_bar.rl.engine import Drawing, Engine, EngineConfig, build_engine
from megatron_bar.rl.loss import ClippedPolicyGradient
from megatron_bar.rl.prompts import Prompts, Task, pack_rollouts
from megatron_bar.rl.sampler import Completion
from megatron_bar.training import checkpoint
from megatron_bar.training.fit import Job
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
    def drawing(self) -> Drawing:
        return Drawing(max_new_tokens=self.max_new_tokens, temperature=self.temperature, stop=self.stop, slots=self.slots)


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
        self.pending = _Pending(drawn, self.engine.start(prompts, config.drawing, seed=seed), config.group)

    def _probe(self, prompts: list[list[int]], seed: int) -> None:
        short = replace(self.config.drawing, max_new_tokens=min(self.PROBE_TOKENS, self.config.max_new_tokens))
        answers = self.engine.start(prompts, short, seed=seed)()
        documents = [
            (prompt + answer.ids, [False] * len(prompt) + [True] * len(answer.ids))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        logprobs = [[0.0] * len(prompt) + answer.logprobs for prompt, answer in zip(prompts, answers, strict=True)]
        tokens = in_memory(documents, logprobs=logprobs)
        rows = PackedRows([("probe", tokens)], self.trainer.stage.sequence, pad_id=self.pad_id)
        self.check(rows)

    def check(self, rows: PackedRows) -> float:
        return check_rollouts(self.trainer, self.engine, rows, _objective(self.config), limit=self.config.max_drift)

    def restore(self, saved: dict) -> None:
        done = [Completion(**answer) for answer in saved["answers"]]
        self.pending = _Pending(saved["drawn"], lambda: done, self.config.group)


Grade = Callable[[list[tuple[str, str, object]]], list[float]]
"""(verifier, answer, truth) of many answers to their scores, 0 to 1."""


def train(job: Job, stage: Stage, config: GRPOConfig, tasks: list[Task], chats: ChatFormat, grade: Grade) -> int:
    """Trains ``stage`` by GRPO and writes ``job.out``; resumes from its newest checkpoint. Returns tokens trained on.

    The verifier sees nothing of the policy but its text.
    """
    tokenizer = chats.tokenizer
    trainer = Trainer(job.source, stage, steps=config.rounds * config.mini_batches)
    trainer.keep_start()
    prompts = Prompts(tasks, seed=stage.seed, solved=config.solved)
    everything = json.dumps([to_json(config), [vars(task) for task in tasks]])
    origin = {"source": trainer.source_hash, "tasks and rl": blake3(everything.encode()).hexdigest()}
    saved = checkpoint.resume(trainer, job.checkpoints, origin=origin) or {
        "round": 0,
        "open": sorted(prompts.open),
        "tokens": 0,
        "idle": 0,
        "pending": None,
    }
    prompts.open, tokens, idle = set(saved["open"]), saved["tokens"], saved["idle"]
    handover = job.out.with_name(f".{job.out.name}.rollout")
    engine = build_engine(config.engine, trainer, chats, config.drawing, folder=handover)
    rollouts = Rollouts(trainer, engine, tasks, prompts, config, tokenizer.pad_id)
    if saved["pending"] is not None:
        rollouts.restore(saved["pending"])
    with closing(engine), Log(job.name, job.logs, steps=config.rounds, start=saved["round"]) as log:
        for number in range(saved["round"], config.rounds):
            if rollouts.pending is None:
                rollouts.begin(number)
            drawn, groups = rollouts.pending.drawn, rollouts.pending.groups()
            rollouts.pending = None
            if config.lag and number + 1 < config.rounds:
                rollouts.begin(number + 1)
            scores = on_rank_zero(partial(_grade, [tasks[n] for n in drawn], groups, tokenizer, grade))
            for n, group in zip(drawn, scores, strict=True):
                prompts.record(n, sum(group) / len(group))
            kept = [n for n, group in enumerate(scores) if informative(group)]
            idle = 0 if kept else idle + 1
            if idle == config.patience:
                mean = sum(map(sum, scores)) / sum(map(len, scores))
                raise BarError(
                    f"{job.name}: in {idle} rounds no group had answers of different rewards (mean reward {mean:.2f}): "
                    f"nothing to learn from; expected prompts that are solved sometimes"
                )
            values = _summary(scores, groups, kept)
            if kept:
                rewards = [[score * config.reward for score in scores[n]] for n in kept]
                rows = pack_rollouts(
                    [tasks[drawn[n]] for n in kept],
                    [groups[n] for n in kept],
                    rewards,
                    length=stage.sequence,
                    pad_id=tokenizer.pad_id,
                    longest=config.max_new_tokens,
                    advantages=ADVANTAGES[config.advantages],
                    truncated=config.truncated,
                )
                if not config.lag:
                    values["drift"] = rollouts.check(rows)
                measured = config.kl > 0 or (config.kl_every > 0 and (number + 1) % config.kl_every == 0)
                values |= _steps(trainer, rows, config, _objective(config), seed=number, from_start=measured)
                tokens += int(values["tokens"])
            log.step(number + 1, values)
            if stage.save_every and (number + 1) % stage.save_every == 0 and number + 1 < config.rounds:
                extra = {"round": number + 1, "open": sorted(prompts.open), "tokens": tokens, "idle": idle}
                pending = rollouts.pending.saved() if rollouts.pending else None
                checkpoint.save(trainer, job.checkpoints, extra=extra | {"pending": pending}, origin=origin)
    trainer.save(job.out, manifest=partial(job.manifest, source_hash=trainer.source_hash))
    checkpoint.remove(job.checkpoints)
    return tokens


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


def _steps(
    trainer: Trainer, rows: PackedRows, config: GRPOConfig, objective: ClippedPolicyGradient, *, seed: int, from_start: bool
) -> dict[str, float]:
    """``mini_batches`` optimizer steps, each over its share of ``rows``. The first step's ratios are 1 but for rounding."""
    order = np.random.default_rng(seed).permutation(len(rows))
    shares = [_micro_batches(trainer, rows, share) for share in np.array_split(order, config.mini_batches) if len(share)]

    def scored(share: list[Batch]) -> list[Tensor]:
        return trainer.token_nll(share, objective)

    if config.importance_cap is not None:
        shares = [_with_extra(share, "trainer_logprobs", scored(share)) for share in shares]
    if from_start:
        with trainer.start_weights():
            shares = [_with_extra(share, "start_logprobs", scored(share)) for share in shares]
    totals: dict[str, float] = {}
    for share in shares:
        for name, value in trainer.step(share, objective).items():
            totals[name] = totals.get(name, 0.0) + value
    if not from_start:
        del totals["kl_to_start"]
    return {name: value if "tokens" in name else value / len(shares) for name, value in totals.items()}
