"""How seconds grow with the size of the work: exponents by least squares over the logarithms, and where they
bend."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import linear_regression, median

from side_by_side import alternate, figure, spread

BEND = 0.1
"""Least change of the exponent at a size that is called a bend; it is also larger than the rounds' spread."""
LINEAR = 1.05


@dataclass(frozen=True, kw_only=True)
class Work:
    """A piece of work of one size."""

    size: float
    run: Callable[[], object]
    """What is timed."""
    before: Callable[[], object] = lambda: None
    """What comes before it each time, untimed."""
    end: Callable[[], object] = lambda: None
    """What gives back what it holds."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What is measured, and what theory says of it."""

    name: str
    over: str
    """What a size counts."""
    sizes: tuple[int, ...]
    make: Callable[[Path, tuple[int, ...]], list[Work]]
    """The works of these sizes, in an empty folder; a `Work.size` may count something else, such as bytes."""
    expected: float
    """Exponent that theory says, without what costs the same at any size."""
    why: str
    linear: bool = True
    """Whether an exponent above `LINEAR` is a defect."""
    rounds: int = 5


@dataclass(frozen=True)
class Growth:
    """What was measured: rising sizes, and the seconds of each in every round."""

    sizes: list[float]
    seconds: list[list[float]]

    @property
    def medians(self) -> list[float]:
        return [median(times) for times in self.seconds]

    @property
    def exponents(self) -> list[float]:
        """Every round's: the slope of the line that fits its logarithms best, so what slows a whole round down
        does not move it."""
        return [exponent(self.sizes, times) for times in zip(*self.seconds, strict=True)]

    @property
    def slopes(self) -> list[list[float]]:
        """Every round's exponent between a size and the next."""
        found = []
        for n in range(len(self.sizes) - 1):
            pairs = zip(self.seconds[n], self.seconds[n + 1], strict=True)
            found.append([exponent(self.sizes[n : n + 2], pair) for pair in pairs])
        return found

    @property
    def bend(self) -> int | None:
        """Number of the size at which the exponent changes most, None where it nowhere changes by more than
        `BEND` and than the rounds differ."""
        before_and_behind = zip(self.slopes, self.slopes[1:], strict=False)
        changes = [[b - a for a, b in zip(*pair, strict=True)] for pair in before_and_behind]
        clear = [n for n, c in enumerate(changes) if abs(median(c)) > max(BEND, spread(c))]
        return max(clear, key=lambda n: abs(median(changes[n])), default=-1) + 1 or None

    @property
    def fixed(self) -> tuple[float, float]:
        """Seconds at any size and seconds a unit of size: the line through the medians that errs least, in
        shares of them."""
        # Of a + b x = t, each equation divided by its t, the normal equations.
        u = [1 / t for t in self.medians]
        v = [x / t for x, t in zip(self.sizes, self.medians, strict=True)]
        uu, uv, vv = (sum(a * b for a, b in zip(*pair, strict=True)) for pair in ((u, u), (u, v), (v, v)))
        determinant = uu * vv - uv * uv
        a, b = (vv * sum(u) - uv * sum(v)) / determinant, (uu * sum(v) - uv * sum(u)) / determinant
        return a, b


def exponent(sizes, seconds) -> float:
    """Returns the slope of log seconds over log size, by least squares."""
    return linear_regression([log(x) for x in sizes], [log(t) for t in seconds]).slope


def grow(quantity: Quantity, works: list[Work]) -> Growth:
    """Times the works, all of them in turn in each of the quantity's rounds."""
    named = {f"{work.size:,.0f}": work for work in works}
    assert len(named) == len(works), "sizes that look alike"
    ways = {name: work.run for name, work in named.items()}
    seconds = alternate(ways, quantity.rounds, before=lambda name: named[name].before())
    return Growth([work.size for work in works], list(seconds.values()))


def tell(quantity: Quantity, found: Growth) -> str:
    """Prints a table and, of what should be linear, two figures: the exponent over all sizes, and that between
    the two largest, where no cost that stays the same hides what grows faster. Returns the quantity's row of
    the summary."""
    print(f"\n{quantity.name}: expected exponent {quantity.expected:g}: {quantity.why}")
    print(f"{quantity.over:>22} {'seconds':>9} {'spread':>8} {'exponent from the size before':>30}")
    for n, (size, times) in enumerate(zip(found.sizes, found.seconds, strict=True)):
        step = "" if not n else f"{median(found.slopes[n - 1]):.2f} spread {spread(found.slopes[n - 1]):.2f}"
        print(f"{size:>22,.0f} {median(times):>9.4g} {spread(times):>8.2g} {step:>30}")
    if quantity.linear:
        for what, exponents in (("exponent", found.exponents), ("last_exponent", found.slopes[-1])):
            name = f"growth_{quantity.name}_{what}"
            figure(name, exponents, LINEAR, at_most=True)
    low, high = found.medians[0], found.medians[-1]
    span = f"{found.sizes[0]:,.0f} to {found.sizes[-1]:,.0f}: {low:.3g} to {high:.3g} s"
    theory = f"{quantity.expected:g}: {quantity.why}"
    fit = f"{median(found.exponents):.2f}, spread {spread(found.exponents):.2f}"
    return f"| {quantity.name} | {quantity.over} | {theory} | {span} | {fit} | {bends(quantity, found)} |"


def bends(quantity: Quantity, found: Growth) -> str:
    """Returns in words where the exponent changes, and what part of the time does not grow."""
    where = "nowhere"
    if (n := found.bend) is not None:
        before, behind = median(found.slopes[n - 1]), median(found.slopes[n])
        where = f"at {found.sizes[n]:,.0f}: {before:.2f} below, {behind:.2f} above"
    if quantity.expected != 1:
        return where
    fixed, unit = found.fixed
    if fixed > 0 and unit > 0:
        where += f"; {fixed:.2g} s at any size, the time of {fixed / unit:,.0f} {quantity.over}"
    return where


SUMMARY = "| quantity | over | theory | seconds | exponent | where it bends |\n|---|---|---|---|---|---|\n"
