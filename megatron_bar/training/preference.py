"""Preferences: direct preference optimisation with length-normalised log-probabilities, the retrain
baselines' middle stage.

A pair's loss is -log sigmoid(beta (g_chosen - g_rejected)), where g is the mean over an answer's tokens of
log p - log p_start (DPO: arXiv 2305.18290, equation 7; the mean over tokens: Tulu 3, arXiv 2411.15124,
section 5.1.2, called dpo_norm in open-instruct). p_start is the model as the stage begins; its
log-probabilities are computed step by step, with a copy of what trains, so that a resumed stage has the same
ones. BAR's baselines use beta 5, one epoch, LR 1e-6 linear, sequence 4096.

A row holds whole pairs, so a stage's ``sequence`` bounds both answers with their prompts together: to let
each of them have 4096 tokens it is 8192.

Legend: b batch, s sequence, d documents of a row (the chosen and the rejected answers in turn), p = d / 2
pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_bar.data.chat import Chat, ChatFormat
from megatron_bar.data.indexed import in_memory
from megatron_bar.data.packing import Batch, PairRows, TooLong
from megatron_bar.data.sources import ANSWERS, Source, chosen_rows, parse
from megatron_bar.errors import BarError
from megatron_bar.models.attention import upload
from megatron_bar.training.fit import Job, fit
from megatron_bar.training.objective import START_LOGPROBS, Objective
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """The choices of preference optimisation."""

    beta: float = 5.0
    """Weight of a difference of mean log-ratios, in nats a token; the published value."""

    def __post_init__(self):
        if not self.beta > 0:
            raise BarError(f"dpo: beta must be positive, got {self.beta}")


@dataclass(frozen=True, kw_only=True)
class LengthNormalisedDPO(Objective):
    """DPO's loss over batches of `PairRows` with extras `START_LOGPROBS`; it reports means over pairs."""

    beta: float
    names = ("loss", "accuracy", "margin")
    """accuracy: share of pairs whose chosen answer gained more than the rejected one; margin: beta times by
    how much."""
    temperature = 1.0

    def units(self, batch: Batch) -> int:
        """Returns the pairs of a batch; the documents of a row are numbered from 0."""
        return int((batch.documents.amax(1) + 1).sum()) // 2

    def __call__(self, nll_bs: Tensor, lse_bs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the loss summed over pairs, and the sums named by ``names``."""
        mask_bs = batch.labels >= 0
        # A product and not an index_add, whose order of summation is not fixed on a GPU.
        numbers = torch.arange(int(batch.documents.max()) + 1)[:, None]
        member_bds = upload(batch.documents[:, None] == numbers, nll_bs.device) & mask_bs[:, None]
        gain_bs = torch.where(mask_bs, -nll_bs - batch.extras[START_LOGPROBS], 0.0)
        sizes_bd = member_bds.sum(-1)
        means_bd = (member_bds * gain_bs[:, None]).sum(-1) / sizes_bd.clamp(min=1)
        chosen_bp, rejected_bp = means_bd.unflatten(1, (-1, 2)).unbind(-1)
        present_bp = sizes_bd[:, ::2] > 0  # rows have different numbers of pairs
        margin_bp = self.beta * (chosen_bp - rejected_bp)  # 0 where there is none
        loss = -(F.logsigmoid(margin_bp) * present_bp).sum()
        reported = [loss, (margin_bp > 0).sum(), margin_bp.sum()]
        return loss, torch.stack([value.detach().to(loss.dtype) for value in reported])


def fit_preferences(job: Job, stage: Stage, config: DPOConfig, rows: PairRows) -> None:
    """Trains ``stage`` by length-normalised DPO on ``rows``, like `fit`: resumes, and writes ``job.out``."""
    objective = LengthNormalisedDPO(beta=config.beta)
    fit(job, stage, [rows], objective=objective, prepare=partial(_from_start, objective), keep_start=True)


def _from_start(objective: Objective, trainer: Trainer, micro_batches: list[Batch]) -> list[Batch]:
    # Before the step, whatever its number: a resumed stage has the same ones.
    with trainer.start_weights():
        return trainer.with_logprobs(micro_batches, START_LOGPROBS, objective)


def preference_rows(
    sources: Sequence[Source],
    root: Path,
    chats: ChatFormat,
    length: int,
    *,
    too_long: TooLong = "drop",
    seed: int = 0,
    skip_bad: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> PairRows:
    """Returns the pairs of ``sources``, of kind preference, in rows of ``length`` tokens; loss on the answers
    alone.

    ``say`` shows how many there are and what was dropped: pairs that no row can hold, and those of equal
    answers, from which nothing can be learnt. ``seed``: of the rows that a source's share takes.
    ``skip_bad``: leave bad rows out.
    """
    named = []
    equal = 0
    for source in sources:
        if source.kind != "preference":
            raise BarError(f"{source.path}: expected rows of preference, got {source.kind}")
        pairs, same = _pairs(source, root, chats, seed, length if too_long == "error" else None, skip_bad)
        documents = in_memory((chat.ids, chat.mask) for both in pairs for chat in both)
        named.append((source.name, documents))
        equal += same
    rows = PairRows(named, length, pad_id=chats.tokenizer.pad_id, too_long=too_long)
    dropped = f"dropped {rows.too_long:,} longer than a row and {equal:,} of equal answers"
    say(f"{rows.pairs:,} pairs in {len(rows):,} rows of {length}, {rows.efficiency:.1%} full; {dropped}")
    return rows


def _pairs(
    source: Source, root: Path, chats: ChatFormat, seed: int, longest: int | None, skip_bad: bool
) -> tuple[list[list[Chat]], int]:
    """Returns the chosen and the rejected chat of each row, and how many were left out for equal answers.

    Raises for a pair of more than ``longest`` tokens.
    """
    different = []
    equal = 0
    for where, raw in chosen_rows(source, root, seed=seed):
        try:
            both = _pair(parse(raw, source.kind, where), chats, longest, where)
        except BarError:
            if not skip_bad:
                raise
            continue
        if both[0] == both[1]:
            equal += 1
        else:
            different.append(both)
    return different, equal


def _pair(row: dict, chats: ChatFormat, longest: int | None, where: str) -> list[Chat]:
    tools = row.get("tools")
    both = [
        chats.render([*row["messages"], row[name]], tools=tools, last_turn=True, where=f"{where}: {name}")
        for name in ANSWERS
    ]
    size = sum(len(chat.ids) for chat in both)
    if longest is not None and size > longest:
        raise BarError(f"{where}: a pair of {size} tokens; a row holds {longest}")
    return both
