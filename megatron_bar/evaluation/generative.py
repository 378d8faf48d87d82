"""Scores by generation: greedy answers to held-out prompts, judged by the verifiers that RLVR uses."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.sources import Source, read_rows
from megatron_bar.errors import require_at_least
from megatron_bar.models.build import build_model
from megatron_bar.models.shards import load_folder
from megatron_bar.parallel.state import ParallelConfig, on_rank_zero, set_layout
from megatron_bar.rl.sampler import Sampler
from megatron_bar.rl.verifiers import verify_many
from megatron_bar.weights.folder import Folder


@dataclass(frozen=True, kw_only=True)
class TestSet:
    name: str
    """The skill it measures."""
    path: Path
    """JSONL of messages, verifier and truth."""
    max_new_tokens: int

    def __post_init__(self):
        require_at_least(f"test set {self.name}", self, 1, "max_new_tokens")


def load_model(folder: Path, layout: ParallelConfig):
    """A folder's model for inference."""
    opened = Folder.open(folder)
    set_layout(layout, seed=0)
    model = build_model(opened.config, layout)
    load_folder(model, opened)
    return model.eval()


def evaluate(
    model,
    chats: ChatFormat,
    tests: tuple[TestSet, ...],
    root: Path,
    *,
    slots: int = 64,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, list[dict]]:
    """For every test set: prompt, answer and score of every item, in file order. Collective."""
    tokenizer = chats.tokenizer
    sampler = Sampler(model, eos_ids=chats.stop_ids, pad_id=tokenizer.pad_id)
    results = {}
    for test in tests:
        rows = read_rows(Source(path=test.path, kind="task"), root)
        prompts = [chats.prompt(row["messages"], tools=row.get("tools"), where=where) for where, row in rows]
        done = sampler.generate(prompts, max_new_tokens=test.max_new_tokens, temperature=0.0, slots=slots)
        answers = [tokenizer.decode(completion.ids) for completion in done]
        scores = on_rank_zero(
            lambda: verify_many([(row["verifier"], answer, row["truth"]) for (_, row), answer in zip(rows, answers, strict=True)])  # noqa: B023
        )
        say(f"  {test.name}: {sum(scores):g} of {len(scores)} solved")
        results[test.name] = [
            {"prompt": row["messages"][-1]["content"], "answer": answer, "score": score}
            for (_, row), answer, score in zip(rows, answers, scores, strict=True)
        ]
    return results


def interval(scores: list[float], *, seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean (percentile method; Efron and Tibshirani 1993, chapter 13)."""
    values = np.asarray(scores)
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)
