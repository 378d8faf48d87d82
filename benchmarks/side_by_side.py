"""What benchmarks share: alternated timings, and figures."""

import json
import os
import time
from collections.abc import Callable
from statistics import median, quantiles


def alternate(
    ways: dict[str, Callable[[], object]], rounds: int, *, before: Callable[[str], object] = lambda name: None
) -> dict[str, list[float]]:
    """Seconds of every way in every round, after one round to warm up; each round times all of them, in
    turn.

    ``before`` is called with a way's name, untimed, each time before it is its turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            before(name)
            start = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def over(other: list[float], ours: list[float]) -> list[float]:
    """How many times as long the other takes, round by round."""
    return [b / a for a, b in zip(ours, other, strict=True)]


def spread(values: list[float]) -> float:
    """How far the rounds' values lie apart: from their lower to their upper quartile. Of two or more."""
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low


def reached(value: float, target: float, *, at_most: bool, spread: float) -> str:
    """yes or no; where the spread is larger than the distance to the target, not decided."""
    if spread > abs(value - target):
        return "not decided"
    return "yes" if (value <= target if at_most else value >= target) else "no"


def figure(name: str, rounds: float | list[float], target: float, *, at_most: bool = False) -> None:
    """Prints it, as `make bench` shows it; the file that BENCH_FIGURES names, if it is set, gets it for
    collect.py.

    ``rounds``: the values of the rounds, of which the median counts, and whose spread may leave it undecided;
    or one value. ``at_most``: the target is an upper limit, else a lower one.
    """
    values = rounds if isinstance(rounds, list) else [rounds]
    value = median(values)
    apart = spread(values) if values[1:] else None
    line = f"ratio {name} {value:.3g} target {target:g}"
    found = {"name": name, "value": value, "target": target, "at_most": at_most}
    if apart is not None:
        line += f" spread {apart:.2g}"
        if reached(value, target, at_most=at_most, spread=apart) == "not decided":
            line += " not decided"
        found["spread"] = apart
    print(line, flush=True)
    if file := os.environ.get("BENCH_FIGURES"):
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps(found) + "\n")
