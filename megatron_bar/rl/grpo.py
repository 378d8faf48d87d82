"""Reinforcement learning with verified rewards: sample, verify, compare within groups, step (arXiv 2604.18473).

Each round draws ``prompts`` prompts, ``group`` answers to each, from the weights as they are; answers are rewarded by their
verifier alone; groups that agree are dropped; the rest makes ``mini_batches`` optimizer steps. A prompt that was solved
at least ``solved`` of the time is not drawn again. On policy: nothing is asynchronous.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np
from blake3 import blake3

from megatron_bar.config import to_json
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import Document, in_memory
from megatron_bar.data.packing import PackedRows
from megatron_bar.errors import BarError, require_at_least
from megatron_bar.parallel.state import on_rank_zero
from megatron_bar.rl.advantage import centred, informative
from megatron_bar.rl.loss import ClippedPolicyGradient
from megatron_bar.rl.sampler import Completion, Sampler
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
    reward: float = 10.0
    """Of an answer whose verifier says 1."""
    solved: float = 0.875
    """Pass rate from which on a prompt is not drawn again."""
    slots: int = 64
    """Sequences sampled at a time on each data-parallel rank."""

    def __post_init__(self):
        require_at_least("rl", self, 1, "rounds", "prompts", "mini_batches", "max_new_tokens", "slots")
        require_at_least("rl", self, 2, "group")
        for name in ("temperature", "clip_low", "clip_high", "reward", "solved"):
            if not getattr(self, name) > 0:
                raise BarError(f"rl: {name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Task:
    prompt: list[int]
    """Token ids, generation prompt included."""
    verifier: str
    truth: object


def pack_rollouts(
    tasks: list[Task], groups: list[list[Completion]], rewards: list[list[float]], *, length: int, pad_id: int
) -> PackedRows:
    """Prompt and answer as one document each; an answer's tokens carry their ``logprobs`` and ``advantages``."""
    documents: list[Document] = []
    logprobs: list[list[float]] = []
    advantages: list[list[float]] = []
    for task, group, scores in zip(tasks, groups, rewards, strict=True):
        nothing = [0.0] * len(task.prompt)
        for completion, advantage in zip(group, centred(scores), strict=True):
            ids = task.prompt + completion.ids
            if len(ids) > length:
                raise BarError(f"a rollout of {len(ids)} tokens does not fit the sequence length {length}")
            documents.append((ids, [False] * len(task.prompt) + [True] * len(completion.ids)))
            logprobs.append(nothing + completion.logprobs)
            advantages.append(nothing + [advantage] * len(completion.ids))
    rollouts = in_memory(documents, logprobs=logprobs, advantages=advantages)
    return PackedRows([("rollouts", rollouts)], length, pad_id=pad_id)


class Prompts:
    """The prompts still worth drawing; what is drawn in a round depends on the seed and on what was solved before."""

    def __init__(self, tasks: list[Task], *, seed: int, solved: float):
        if not tasks:
            raise BarError("RLVR needs at least one prompt")
        self.tasks, self.seed, self.solved = tasks, seed, solved
        self.open = set(range(len(tasks)))

    def draw(self, round_number: int, count: int) -> list[int]:
        """Numbers of ``count`` different prompts; fewer, when fewer are left."""
        if not self.open:
            raise BarError(f"every one of the {len(self.tasks)} prompts is solved at least {self.solved:.0%} of the time")
        return Random(f"{self.seed}/{round_number}").sample(sorted(self.open), min(count, len(self.open)))

    def record(self, number: int, pass_rate: float) -> None:
        if pass_rate >= self.solved:
            self.open.discard(number)


def rollout(sampler: Sampler, tasks: list[Task], config: GRPOConfig, *, seed: int) -> list[list[Completion]]:
    """``config.group`` completions per task."""
    prompts = [task.prompt for task in tasks for _ in range(config.group)]
    flat = sampler.generate(
        prompts, max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=seed, slots=config.slots
    )
    return [flat[n : n + config.group] for n in range(0, len(flat), config.group)]


Grade = Callable[[list[tuple[str, str, object]]], list[float]]
"""(verifier, answer, truth) of many answers to their scores, 0 to 1."""


def train(job: Job, stage: Stage, config: GRPOConfig, tasks: list[Task], chats: ChatFormat, grade: Grade) -> int:
    """Trains ``stage`` by GRPO and writes ``job.out``; resumes from its newest checkpoint. Returns tokens trained on.

    The verifier sees nothing of the policy but its text.
    """
    tokenizer = chats.tokenizer
    trainer = Trainer(job.source, stage, steps=config.rounds * config.mini_batches)
    sampler = Sampler(trainer.model, eos_ids=chats.stop_ids, pad_id=tokenizer.pad_id)
    prompts = Prompts(tasks, seed=stage.seed, solved=config.solved)
    everything = json.dumps([to_json(config), [vars(task) for task in tasks]])
    origin = {"source": trainer.source_hash, "tasks and rl": blake3(everything.encode()).hexdigest()}
    saved = checkpoint.resume(trainer, job.checkpoints, origin=origin) or {"round": 0, "open": sorted(prompts.open), "tokens": 0}
    prompts.open, tokens = set(saved["open"]), saved["tokens"]
    objective = ClippedPolicyGradient(low=config.clip_low, high=config.clip_high)
    with Log(job.name, job.logs, steps=config.rounds, start=saved["round"]) as log:
        for number in range(saved["round"], config.rounds):
            drawn = prompts.draw(number, config.prompts)
            groups = rollout(sampler, [tasks[n] for n in drawn], config, seed=stage.seed + number)
            scores = on_rank_zero(partial(_grade, [tasks[n] for n in drawn], groups, tokenizer, grade))
            for n, group in zip(drawn, scores, strict=True):
                prompts.record(n, sum(group) / len(group))
            kept = [n for n, group in enumerate(scores) if informative(group)]
            values = _summary(scores, groups, kept)
            if kept:
                rewards = [[score * config.reward for score in scores[n]] for n in kept]
                rows = pack_rollouts(
                    [tasks[drawn[n]] for n in kept],
                    [groups[n] for n in kept],
                    rewards,
                    length=stage.sequence,
                    pad_id=tokenizer.pad_id,
                )
                values |= _steps(trainer, rows, config, objective, seed=number)
                tokens += int(values["tokens"])
            log.step(number + 1, values)
            if stage.save_every and (number + 1) % stage.save_every == 0 and number + 1 < config.rounds:
                extra = {"round": number + 1, "open": sorted(prompts.open), "tokens": tokens}
                checkpoint.save(trainer, job.checkpoints, extra=extra, origin=origin)
    trainer.save(job.out, manifest=partial(job.manifest, source_hash=trainer.source_hash))
    checkpoint.remove(job.checkpoints)
    return tokens


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
    }


def _steps(trainer: Trainer, rows: PackedRows, config: GRPOConfig, objective, *, seed: int) -> dict[str, float]:
    """``mini_batches`` optimizer steps, each over its share of ``rows``. The first step's ratios are 1 but for rounding."""
    order = np.random.default_rng(seed).permutation(len(rows))
    unit = trainer.stage.micro_batch * trainer.data_size
    totals: dict[str, float] = {}
    shares = [share for share in np.array_split(order, config.mini_batches) if len(share)]
    for share in shares:
        # Filled up with rows that carry no loss, so that every rank has as many micro-batches of the same shape.
        missing = -len(share) % unit
        mine = np.concatenate((share, np.full(missing, -1)))[trainer.data_rank :: trainer.data_size]
        micro = [
            rows.take(mine[n : n + trainer.stage.micro_batch].tolist()) for n in range(0, len(mine), trainer.stage.micro_batch)
        ]
        for name, value in trainer.step(micro, objective).items():
            totals[name] = totals.get(name, 0.0) + value
    return {name: value if "tokens" in name else value / len(shares) for name, value in totals.items()}
