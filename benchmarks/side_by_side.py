"""What benchmarks share: alternated timings, and figures."""

import json
import os
import time
from collections.abc import Callable
from statistics import median


def alternate(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in every round, after one round to warm up; each round times all of them, in
    turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def over(other: list[float], ours: list[float]) -> float:
    """How many times as long the other takes: the median of the rounds'."""
    return median(b / a for a, b in zip(ours, other, strict=True))


def figure(name: str, value: float, target: float, *, at_most: bool = False) -> None:
    """Prints it, as `make bench` shows it; the file that BENCH_FIGURES names, if it is set, gets it for
    collect.py.

    ``at_most``: the target is an upper limit, else a lower one.
    """
    print(f"ratio {name} {value:.3g} target {target:g}", flush=True)
    if file := os.environ.get("BENCH_FIGURES"):
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps({"name": name, "value": value, "target": target, "at_most": at_most}) + "\n")
