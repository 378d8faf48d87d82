"""The report of a recipe as a value: what one or more of its runs measured, and which claims that
supports.

Every number comes from the runs' files, which `Provenance` names. `config.to_json` and `from_json` convert
the value; `markdown.markdown` and `html.html` show it.
"""

from dataclasses import dataclass, field
from typing import Literal

from megatron_bar.errors import BarError
from megatron_bar.report.bootstrap import Estimate

Group = Literal["start", "experts", "modular", "baselines", "ablations"]
Verdict = Literal["holds", "does not hold", "not testable here"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model in the table of results."""

    model: str
    group: Group
    scores: dict[str, Estimate]
    """Scores by skill; of the first row by all of them."""
    overall: Estimate | None
    """None where not all skills were measured."""


@dataclass(frozen=True, kw_only=True)
class UpgradeResult:
    """The same model before and after one thing changed, item by item."""

    name: str
    before: str
    after: str
    changed: tuple[str, ...]
    """Skills that were meant to change."""
    gains: dict[str, Estimate]
    kl: dict[str, Estimate] = field(default_factory=dict)
    """Domain -> the divergence of the next-token distribution on its prompts, in nats per token; none where
    it was not measured."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """One choice varied: active experts, the router's share of the data, experts added one by one."""

    name: str
    x_label: str
    xs: tuple[str, ...]
    rows: dict[str, tuple[Estimate | None, ...]]
    """A skill, or ``overall`` -> one score per x; None where it was not measured."""

    def __post_init__(self):
        for name, scores in self.rows.items():
            if len(scores) != len(self.xs):
                raise BarError(f"sweep {self.name}: {name} expected {len(self.xs)} scores, got {len(scores)}")


@dataclass(frozen=True, kw_only=True)
class Curves:
    title: str
    x: str
    y: str
    series: dict[str, tuple[tuple[float, ...], ...]]
    """Name of a series -> one curve per seed."""


@dataclass(frozen=True, kw_only=True)
class RoutingShares:
    """Where tokens go: the mean router weight."""

    experts: tuple[str, ...]
    domains: tuple[str, ...]
    layers: dict[str, tuple[tuple[float, ...], ...]]
    """Domain -> ``[layers][experts]``, fractions."""

    def __post_init__(self):
        if tuple(self.layers) != self.domains:
            raise BarError(
                f"routing: expected the domains {', '.join(self.domains)}, got {', '.join(self.layers)}"
            )
        for domain, shares in self.layers.items():
            if any(len(layer) != len(self.experts) for layer in shares):
                raise BarError(f"routing: {domain}: expected {len(self.experts)} experts in every layer")


DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
"""Digits of the weights of a lens, in base 64: one digit resolves 1 in 63, two 1 in 4095. None of them is
escaped in JSON or HTML."""


@dataclass(frozen=True, kw_only=True)
class LensText:
    """A text and its router weights, as strings of `DIGITS` so that a file of 10,000 tokens stays small."""

    domain: str
    tokens: tuple[str, ...]
    weights: str
    """``[tokens][experts]``, mean over layers, two digits each."""
    by_layer: str = ""
    """``[tokens][layers][experts]``, one digit each; empty where that would be too much."""


@dataclass(frozen=True, kw_only=True)
class Lens:
    experts: tuple[str, ...]
    layers: int
    """Layers of the model."""
    texts: tuple[LensText, ...]

    def __post_init__(self):
        for number, text in enumerate(self.texts):
            pairs = len(text.tokens) * len(self.experts)
            _check_digits(f"lens: text {number}: weights", text.weights, 2 * pairs)
            if text.by_layer:
                _check_digits(f"lens: text {number}: by_layer", text.by_layer, pairs * self.layers)


def _check_digits(name: str, digits: str, expected: int) -> None:
    if len(digits) != expected:
        raise BarError(f"{name} expected {expected} digits, got {len(digits)}")
    if set(digits) - set(DIGITS):
        raise BarError(f"{name} expected letters, digits, '-' and '_' only")


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """What one stage took."""

    domain: str
    stage: str
    tokens: int
    """Tokens trained on and, in RL, generated."""
    flops: float
    seconds: float
    """Wall-clock time."""
    devices: int


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """A statement and what the numbers say of it."""

    text: str
    source: str
    verdict: Verdict
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as it is shown, of what no step of the recipe measures: published benchmarks, say."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    """The first is the head."""
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if len({len(row) for row in self.rows}) != 1:
            raise BarError(f"table {self.title}: expected rows of one length, at least a head")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    date: str
    commit: str
    """Commit of this code; empty where it is unknown."""
    machine: str
    versions: dict[str, str]
    seeds: tuple[int, ...]
    """Seeds of the runs."""
    items: dict[str, int]
    """Skill -> held-out items per seed."""


@dataclass(frozen=True, kw_only=True)
class Report:
    title: str
    provenance: Provenance
    rows: tuple[Row, ...]
    comparisons: tuple[UpgradeResult, ...] = ()
    sweeps: tuple[SweepResult, ...] = ()
    curves: tuple[Curves, ...] = ()
    routing: RoutingShares | None = None
    lens: Lens | None = None
    costs: tuple[CostRow, ...] = ()
    claims: tuple[ClaimResult, ...] = ()
    tables: tuple[Table, ...] = ()

    def __post_init__(self):
        if not self.rows:
            raise BarError("report: expected at least one row of results, got none")
        for row in self.rows:
            measured = tuple(skill for skill in self.skills if skill in row.scores)
            if tuple(row.scores) != measured or not measured:
                raise BarError(
                    f"report: {row.model}: expected {', '.join(self.skills)}, got {', '.join(row.scores)}"
                )
            if (row.overall is not None) != (measured == self.skills):
                raise BarError(
                    f"report: {row.model}: expected an overall score if all skills are measured, else none"
                )

    @property
    def skills(self) -> tuple[str, ...]:
        return tuple(self.rows[0].scores)
