"""Scores by generation: greedy answers to held-out prompts, judged by the verifiers that RLVR uses."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.sources import Source, read_rows
from megatron_bar.errors import BarError, require_at_least
from megatron_bar.evaluation.results import hash_items, new_results
from megatron_bar.models.build import build_model
from megatron_bar.models.shards import load_folder
from megatron_bar.parallel.state import ParallelConfig, on_rank_zero, set_layout
from megatron_bar.rl.sampler import Sampler
from megatron_bar.rl.verifiers import check_task, verify_many
from megatron_bar.weights.folder import Folder

Row = tuple[str, dict]
"""Where it stands (file:line), and its values."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    name: str
    """The skill it measures."""
    path: Path
    """JSONL of messages, verifier and truth."""
    max_new_tokens: int

    def __post_init__(self):
        require_at_least(f"test set {self.name}", self, 1, "max_new_tokens")


def load_model(folder: Path, layout: ParallelConfig, *, active_experts: int | None = None):
    """A folder's model for inference. ``active_experts``: how many a token uses; None: as config.json says. Collective."""
    set_layout(layout, seed=0)
    return load_beside(folder, layout, active_experts=active_experts)


def load_beside(folder: Path, layout: ParallelConfig, *, active_experts: int | None = None):
    """The same where ``layout`` is set already, by a model that stays. Collective."""
    opened = Folder.open(folder)
    if active_experts is not None:
        require_active(folder, opened.config.num_experts, active_experts)
        opened = Folder(opened.path, replace(opened.config, experts_per_token=active_experts), opened.tensors)
    model = build_model(opened.config, layout)
    load_folder(model, opened)
    return model.eval()


def require_active(folder: Path, num_experts: int, active_experts: int | None) -> None:
    if active_experts is not None and not 1 <= active_experts <= num_experts:
        wanted = f"from 1 to {num_experts}" if num_experts else "none of a dense model"
        raise BarError(f"{folder}: active experts expected {wanted}, got {active_experts}")


def read_tests(tests: tuple[TestSet, ...], root: Path, *, limit: int | None = None) -> dict[str, list[Row]]:
    """For every test set its checked rows and where each stands, at most ``limit``, in file order."""
    found = {}
    for test in tests:
        rows = read_rows(Source(path=test.path, kind="task"), root)[:limit]
        for where, row in rows:
            check_task(row["verifier"], row["truth"], where)
        found[test.name] = rows
    return found


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
    return _answer(model, chats, tests, read_tests(tests, root), slots, say)


def measure(
    folder: Path,
    model,
    chats: ChatFormat,
    tests: tuple[TestSet, ...],
    root: Path,
    *,
    limit: int | None = None,
    slots: int = 64,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """The same as results (see `results`), of ``limit`` items a test at most; ``folder``: where ``model`` is from. Collective."""
    active = model.shape.experts_per_token or None
    results = on_rank_zero(lambda: new_results(folder, "toy", active_experts=active, limit=limit))
    used = read_tests(tests, root, limit=limit)
    results["tests"] = {name: {"hash": hash_items([row for _, row in rows]), "items": len(rows)} for name, rows in used.items()}
    results["scores"] = _answer(model, chats, tests, used, slots, say)
    return results


def _answer(model, chats: ChatFormat, tests: tuple[TestSet, ...], used: dict[str, list[Row]], slots: int, say) -> dict:
    tokenizer, results = chats.tokenizer, {}
    sampler = Sampler(model, eos_ids=chats.stop_ids, pad_id=tokenizer.pad_id)
    for test in tests:
        rows = used[test.name]
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


def overall_interval(tests: list[list[float]], *, seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """The same of the mean of the tests' means; the items of each test are drawn apart from the others'."""
    rng, sums = np.random.default_rng(seed), np.zeros(resamples)
    for scores in tests:
        values = np.asarray(scores)
        sums += values[rng.integers(0, len(values), (resamples, len(values)))].mean(1)
    low, high = np.percentile(sums / len(tests), [2.5, 97.5])
    return float(low), float(high)
