"""Reinforcement learning with verified rewards: sample, verify, compare within groups, step (arXiv 2604.18473).

Each round draws ``prompts`` prompts, ``group`` answers to each, from the weights as they are; answers are rewarded by their
verifier alone; groups that agree are dropped; the rest makes ``mini_batches`` optimizer steps. A prompt that was solved
at least ``solved`` of the time is not drawn again. On policy: nothing is asynchronous.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from blake3 import blake3
from torch import Tensor

from megatron_bar.config import to_json
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import Document, in_memory
from megatron_bar.data.packing import Batch, PackedRows
from megatron_bar.errors import BarError, require_at_least
from megatron_bar.models.build import LanguageModel
from megatron_bar.parallel.state import on_rank_zero
from megatron_bar.rl.advantage import ADVANTAGES, Advantages, centred, informative
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
    advantages: Literal["centred", "standardised", "dr_grpo"] = "centred"
    """See advantage.py."""
    kl: float = 0.0
    """Weight of the KL to the start in the loss; published: none."""
    kl_every: int = 10
    """Rounds between measurements of the KL to the start where it is not in the loss; 0: never."""
    importance_cap: float | None = None
    """Truncated importance sampling, for a sampler that is not the trainer itself; see loss.py."""
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


@dataclass(frozen=True, kw_only=True)
class Task:
    prompt: list[int]
    """Token ids, generation prompt included."""
    verifier: str
    truth: object


def pack_rollouts(
    tasks: list[Task],
    groups: list[list[Completion]],
    rewards: list[list[float]],
    *,
    length: int,
    pad_id: int,
    longest: int,
    advantages: Advantages = centred,
    truncated: str = "score",
) -> PackedRows:
    """Prompt and answer as one document each; an answer's tokens carry their ``logprobs`` and ``advantages``."""
    documents: list[Document] = []
    logprobs: list[list[float]] = []
    weights: list[list[float]] = []
    for task, group, scores in zip(tasks, groups, rewards, strict=True):
        nothing = [0.0] * len(task.prompt)
        for completion, advantage in zip(group, advantages(scores, [len(c.ids) for c in group], longest), strict=True):
            ids = task.prompt + completion.ids
            if len(ids) > length:
                raise BarError(f"a rollout of {len(ids)} tokens does not fit the sequence length {length}")
            learn = completion.finished or truncated == "score"
            documents.append((ids, [False] * len(task.prompt) + [learn] * len(completion.ids)))
            logprobs.append(nothing + completion.logprobs)
            weights.append(nothing + [advantage] * len(completion.ids))
    rollouts = in_memory(documents, logprobs=logprobs, advantages=weights)
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
    trainer.keep_start()
    sampler = Sampler(trainer.model, eos_ids=chats.stop_ids, pad_id=tokenizer.pad_id)
    prompts = Prompts(tasks, seed=stage.seed, solved=config.solved)
    everything = json.dumps([to_json(config), [vars(task) for task in tasks]])
    origin = {"source": trainer.source_hash, "tasks and rl": blake3(everything.encode()).hexdigest()}
    saved = checkpoint.resume(trainer, job.checkpoints, origin=origin) or {
        "round": 0,
        "open": sorted(prompts.open),
        "tokens": 0,
        "idle": 0,
    }
    prompts.open, tokens, idle = set(saved["open"]), saved["tokens"], saved["idle"]
    with Log(job.name, job.logs, steps=config.rounds, start=saved["round"]) as log:
        for number in range(saved["round"], config.rounds):
            drawn = prompts.draw(number, config.prompts)
            weights = fingerprints(trainer.model)
            groups = rollout(sampler, [tasks[n] for n in drawn], config, seed=stage.seed + number)
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
                objective = _objective(config)
                values["drift"] = check_rollouts(trainer, rows, objective, weights, limit=config.max_drift)
                measured = config.kl > 0 or (config.kl_every > 0 and (number + 1) % config.kl_every == 0)
                values |= _steps(trainer, rows, config, objective, seed=number, from_start=measured)
                tokens += int(values["tokens"])
            log.step(number + 1, values)
            if stage.save_every and (number + 1) % stage.save_every == 0 and number + 1 < config.rounds:
                extra = {"round": number + 1, "open": sorted(prompts.open), "tokens": tokens, "idle": idle}
                checkpoint.save(trainer, job.checkpoints, extra=extra, origin=origin)
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


def fingerprints(model: LanguageModel) -> dict[str, float]:
    """A sum of every parameter of this rank, by the folder's name: a change shows."""
    ops = model.weight_ops().values()
    return {
        op.names[0]: float(param.detach().double().sum()) for (_, param), op in zip(model.named_parameters(), ops, strict=True)
    }


def check_rollouts(
    trainer: Trainer, rows: PackedRows, objective: ClippedPolicyGradient, weights: dict[str, float], *, limit: float
) -> float:
    """Mean difference between the sampler's and the trainer's log-probabilities of a few answers. Collective.

    ``weights``: `fingerprints` from before the answers were sampled. Raises where they are others now, or the difference is
    above ``limit``: then what trains is not what answered.
    """
    now = fingerprints(trainer.model)
    changed = [name for name, value in weights.items() if now[name] != value]
    (batch,) = _micro_batches(trainer, rows, np.arange(min(len(rows), trainer.stage.micro_batch * trainer.data_size)))
    (nll,) = trainer.token_nll([batch], objective)
    mask = (batch.labels >= 0).to(nll.device)
    difference = ((-nll - batch.extras["logprobs"].to(nll.device)).abs() * mask).double().sum()
    total = torch.stack([difference, mask.double().sum()])
    dist.all_reduce(total)
    drift = (total[0] / total[1].clamp(min=1)).item()
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, changed)
    changed = list(dict.fromkeys(name for part in everyone for name in part))
    if changed or not drift <= limit:
        where = f"changed since the answers were sampled: {', '.join(changed[:3])}" if changed else "no tensor changed"
        raise BarError(
            f"sampler and trainer differ by {drift:.2g} in the mean log-probability of an answer's token, "
            f"at most {limit:g} expected; {where}"
        )
    return drift


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
