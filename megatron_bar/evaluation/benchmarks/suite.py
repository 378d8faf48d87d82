"""A suite, the toy's, and means over a suite: a category is the mean of its benchmarks, Overall the mean of
the categories (arXiv 2604.18473)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megatron_bar.data.world import SKILLS
from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import TestSet


class Named(Protocol):
    name: str


class Benchmark(Named, Protocol):
    category: str


@dataclass(frozen=True, kw_only=True)
class Suite[Member: Named]:
    name: str
    benchmarks: tuple[Member, ...]

    def choose(self, names: Iterable[str]) -> tuple[Member, ...]:
        """Returns the benchmarks called ``names``; none named: all. Raises BarError for an unknown name, with
        the known ones."""
        names = list(names)
        known = [benchmark.name for benchmark in self.benchmarks]
        if unknown := [name for name in names if name not in known]:
            raise BarError(f"task {unknown[0]}: expected one of suite {self.name}'s: {', '.join(known)}")
        return tuple(benchmark for benchmark in self.benchmarks if not names or benchmark.name in names)


@dataclass(frozen=True, kw_only=True)
class Average:
    """The mean of what was measured of a category, or of the categories."""

    mean: float | None
    measured: int
    of: int
    partial: bool
    """Whether anything in it was not measured."""


def category_means(benchmarks: Sequence[Benchmark], scores: dict[str, float]) -> dict[str, Average]:
    """Returns the mean of every category; ``scores``: by name, of the benchmarks that were measured."""
    names: dict[str, list[str]] = {}
    for benchmark in benchmarks:
        names.setdefault(benchmark.category, []).append(benchmark.name)
    means = {}
    for category, members in names.items():
        values = [scores[name] for name in members if name in scores]
        means[category] = _average(values, len(members), partial=len(values) < len(members))
    return means


def overall(categories: dict[str, Average]) -> Average:
    values = [average.mean for average in categories.values() if average.mean is not None]
    return _average(values, len(categories), partial=any(average.partial for average in categories.values()))


def _average(values: list[float], of: int, *, partial: bool) -> Average:
    mean = sum(values) / len(values) if values else None
    return Average(mean=mean, measured=len(values), of=of, partial=partial)


TOY = Suite(
    name="toy",
    benchmarks=tuple(
        TestSet(name=skill, path=Path(f"test_{skill}.jsonl"), max_new_tokens=64) for skill in SKILLS
    ),
)
