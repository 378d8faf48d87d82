"""Means over items and seeds with 95 % intervals, by the two-level bootstrap: seeds are drawn, then items of
each.

With one seed only items are drawn, and the interval says nothing about another training. Percentile method
(Efron and Tibshirani 1993, chapter 13; several levels: Davison and Hinkley 1997, section 3.8).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
FEW = 400
"""Resamples of a statistic that is no mean, and takes longer."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval. In a report it is a fraction (a gain may be negative) or, of a
    divergence, nats."""

    mean: float
    low: float
    high: float
    seeds: int
    """Number of runs that it is a mean over."""


def mean_interval(seeds: Sequence[Sequence[float]], *, seed: int = 0) -> Estimate:
    """Estimates the mean of one value per item; ``seeds``: the items of every seed."""
    return overall_interval([{"": items} for items in seeds], seed=seed)


def overall_interval(seeds: Sequence[Mapping[str, Sequence[float]]], *, seed: int = 0) -> Estimate:
    """Estimates the mean of the tests' means; ``seeds``: for every seed, each test's items."""
    rng = np.random.default_rng(seed)
    draws = np.empty((len(seeds), RESAMPLES))
    means = []
    for number, tests in enumerate(seeds):
        arrays = [np.asarray(items, np.float64) for items in tests.values()]
        means.append(np.mean([items.mean() for items in arrays]))
        draws[number] = np.mean([_resampled(items, rng) for items in arrays], axis=0)
    return _over_seeds(means, draws, rng)


def ratio_interval(
    tops: Sequence[Mapping[str, Sequence[float]]],
    bottoms: Sequence[Mapping[str, Sequence[float]]],
    *,
    seed: int = 0,
) -> Estimate:
    """Estimates the mean over seeds of ``top / bottom``, each the mean of the tests' means; the same items
    are drawn for both."""
    rng = np.random.default_rng(seed)
    draws = np.empty((len(tops), RESAMPLES))
    ratios = []
    for number, (top, bottom) in enumerate(zip(tops, bottoms, strict=True)):
        pairs = [np.stack([np.asarray(side[test], np.float64) for side in (top, bottom)], -1) for test in top]
        ratios.append(_ratio(np.mean([items.mean(0) for items in pairs], axis=0)))
        draws[number] = _ratio(np.mean([_resampled(items, rng) for items in pairs], axis=0))
    return _over_seeds(ratios, draws, rng)


def statistic_interval(statistic: Callable[[np.ndarray], float], items: int, *, seed: int = 0) -> Estimate:
    """Estimates ``statistic``, from the numbers of the items that are looked at to a value, of all of so many
    ``items``."""
    rng = np.random.default_rng(seed)
    draws = [statistic(rng.integers(0, items, items)) for _ in range(FEW)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(mean=statistic(np.arange(items)), low=float(low), high=float(high), seeds=1)


def _over_seeds(values: list[float], draws: np.ndarray, rng: np.random.Generator) -> Estimate:
    """Estimates the mean over seeds; ``draws``: ``[seeds, RESAMPLES]``, resamples of each seed's items."""
    seeds = len(values)
    # Each resample of the seeds takes, for every seed that it draws, a resample of that seed's items.
    chosen = rng.integers(0, seeds, (seeds, RESAMPLES))
    resample = rng.integers(0, RESAMPLES, (seeds, RESAMPLES)) if seeds > 1 else np.arange(RESAMPLES)[None]
    low, high = np.percentile(draws[chosen, resample].mean(0), [2.5, 97.5])
    return Estimate(mean=float(np.mean(values)), low=float(low), high=float(high), seeds=seeds)


def _ratio(pair: np.ndarray) -> np.ndarray:
    return pair[..., 0] / np.maximum(pair[..., 1], 1e-12)


def _resampled(items: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns ``[RESAMPLES, ...]``: the means of as many items, drawn with replacement."""
    return items[rng.integers(0, len(items), (RESAMPLES, len(items)))].mean(1)
