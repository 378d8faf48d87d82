"""The report of a recipe as a value: what one or more of its runs measured, and what of the published claims that shows.

Every number comes from the runs' files; whoever fills the value says in `Provenance` which. `config.to_json` and `from_json`
keep it; `markdown` here and `html.html` show it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from megatron_bar.errors import BarError

GROUPS = {
    "start": "before",
    "experts": "single experts",
    "modular": "modular",
    "baselines": "baselines",
    "ablations": "ablations",
}
"""Of rows, in the order shown, and how they are called."""
COMPARABLE = ("start", "modular", "baselines")
"""The groups of models that are meant for every skill."""
OVERALL = "overall"
VERDICTS = {"holds": "hold", "does not hold": "do not hold", "not testable here": "not testable here"}
"""And how several are counted."""
Group = Literal["start", "experts", "modular", "baselines", "ablations"]
Verdict = Literal["holds", "does not hold", "not testable here"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean with its 95 % interval, as fractions (a gain may be negative; a divergence is in nats)."""

    mean: float
    low: float
    high: float
    seeds: int
    """Runs that it is a mean over."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model in the table of results."""

    model: str
    group: Group
    scores: dict[str, Score]
    """By skill."""
    overall: Score


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The same model before and after one thing changed, item by item."""

    name: str
    before: str
    after: str
    changed: tuple[str, ...]
    """The skills that were meant to change."""
    gains: dict[str, Score]
    kl: dict[str, Score] = field(default_factory=dict)
    """Domain -> the divergence of the next token on its prompts, in nats a token; none where it was not measured."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One choice varied: active experts, the router's share of the data, experts added one by one."""

    name: str
    x_label: str
    xs: tuple[str, ...]
    rows: dict[str, tuple[Score | None, ...]]
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
    """What is drawn -> one curve per seed."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Where tokens go: the mean router weight."""

    experts: tuple[str, ...]
    domains: tuple[str, ...]
    layers: dict[str, tuple[tuple[float, ...], ...]]
    """Domain -> ``[layers][experts]``, fractions."""

    def __post_init__(self):
        if tuple(self.layers) != self.domains:
            raise BarError(f"routing: expected the domains {', '.join(self.domains)}, got {', '.join(self.layers)}")
        for domain, shares in self.layers.items():
            if any(len(layer) != len(self.experts) for layer in shares):
                raise BarError(f"routing: {domain}: expected {len(self.experts)} experts in every layer")


DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
"""Of the weights of a lens, in base 64: one keeps 1 in 63, two 1 in 4095. None of them is escaped in JSON or HTML."""


@dataclass(frozen=True, kw_only=True)
class LensText:
    """A text and its router weights as strings of `DIGITS`, which is what keeps a file of 10,000 tokens small."""

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
    """Of the model."""
    texts: tuple[LensText, ...]

    def __post_init__(self):
        for number, text in enumerate(self.texts):
            mean = len(text.tokens) * len(self.experts)
            for what, found, wanted in (("weights", text.weights, 2 * mean), ("by_layer", text.by_layer, mean * self.layers)):
                if len(found) != wanted and (found or what == "weights"):
                    raise BarError(f"lens: text {number}: {what} expected {wanted} digits, got {len(found)}")
                if set(found) - set(DIGITS):
                    raise BarError(f"lens: text {number}: {what} expected letters, digits, '-' and '_' only")


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """What one stage took."""

    domain: str
    stage: str
    tokens: int
    """Trained on, and in RL generated."""
    flops: float
    seconds: float
    """By the clock."""
    devices: int


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published statement and what the numbers say of it."""

    text: str
    source: str
    verdict: Verdict
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    date: str
    commit: str
    """Of this code; empty where it is unknown."""
    machine: str
    versions: dict[str, str]
    seeds: tuple[int, ...]
    """Of the runs."""
    items: dict[str, int]
    """Skill -> held-out items a seed."""


@dataclass(frozen=True, kw_only=True)
class Report:
    title: str
    provenance: Provenance
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    curves: tuple[Curves, ...] = ()
    routing: Routing | None = None
    lens: Lens | None = None
    costs: tuple[CostRow, ...] = ()
    claims: tuple[Claim, ...] = ()

    def __post_init__(self):
        if not self.rows:
            raise BarError("report: expected at least one row of results, got none")
        for row in self.rows:
            if tuple(row.scores) != self.skills:
                raise BarError(f"report: {row.model}: expected {', '.join(self.skills)}, got {', '.join(row.scores)}")

    @property
    def skills(self) -> tuple[str, ...]:
        return tuple(self.rows[0].scores)


def markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    parts = [f"# {_plain(report.title)}", *_results(report)]
    if report.claims:
        parts += ["## The published claims", _claims(report.claims)]
    if report.comparisons:
        parts.append("## One thing changed")
        parts.append("Gains in points, paired by item; bold: the interval does not hold 0. KL: nats a token of the next-token")
        parts[-1] += " distribution, before to after, on the domain's prompts."
        for comparison in report.comparisons:
            parts += [f"### {_plain(comparison.name)}", _comparison(comparison)]
    if report.sweeps:
        parts.append("## One choice varied")
        for sweep in report.sweeps:
            parts += [f"### {_plain(sweep.name)}", _sweep(sweep, usual_seeds(report))]
    if report.routing:
        parts += ["## Where tokens go", f"Mean router weight over {_layers(report.routing)}, percent.", _routing(report.routing)]
    if report.costs:
        parts += ["## What it cost", _costs(report.costs)]
    parts += ["## Where the numbers come from", _provenance(report.provenance)]
    return "\n\n".join(parts) + "\n"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def half_width(score: Score) -> str:
    """What stands after ±, in points."""
    return percent((score.high - score.low) / 2)


def points(score: Score) -> str:
    """A gain in points."""
    return f"{100 * score.mean:+.1f}"


def interval_of(score: Score, *, signed: bool = False) -> str:
    return f"{100 * score.low:{'+' * signed}.1f} to {100 * score.high:{'+' * signed}.1f}"


def seeds_of(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def sure(gain: Score) -> bool:
    """The interval lies on one side of 0."""
    return gain.low > 0 or gain.high < 0


def scores_of(row: Row) -> dict[str, Score]:
    """The columns of the results: overall, then the skills."""
    return {OVERALL: row.overall} | row.scores


def usual_seeds(report: Report) -> int:
    """Of most cells; the others say theirs."""
    counts = Counter(score.seeds for row in report.rows for score in scores_of(row).values())
    return counts.most_common(1)[0][0]


def best(report: Report) -> dict[str, str]:
    """Column -> the best mean as shown, of the models that are meant for everything (`COMPARABLE`); ties are all best."""
    rows = [scores_of(row) for row in report.rows if row.group in COMPARABLE]
    return {skill: percent(max(row[skill].mean for row in rows)) for skill in rows[0]} if rows else {}


def is_best(row: Row, skill: str, best_of: dict[str, str]) -> bool:
    return row.group in COMPARABLE and percent(scores_of(row)[skill].mean) == best_of[skill]


def caption(report: Report) -> str:
    """What a cell of the results is."""
    seeds = usual_seeds(report)
    what = f"the mean of {seeds} seeds" if seeds > 1 else "of one seed"
    drawn = "seeds and items" if seeds > 1 else "items"
    groups = ", ".join(GROUPS[group] for group in COMPARABLE)
    return (
        f"Percent of held-out items solved, {what} where a cell does not say otherwise (n=); ± is half the width of the 95 %"
        f" bootstrap interval over {drawn}; overall is the mean of the skills. Bold: the best of its column among {groups}"
        " (single experts and ablations are not meant for every skill)."
    )


def quantity(value: float) -> str:
    """1234567 as 1.23 M."""
    for factor, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:  # shown with three digits, else 999.9 k would be 1e+03 k
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def by_domain(costs: tuple[CostRow, ...]) -> dict[str, list[CostRow]]:
    found: dict[str, list[CostRow]] = {}
    for cost in costs:
        found.setdefault(cost.domain, []).append(cost)
    return found


def mean_over_layers(layers: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(layers) for column in zip(*layers, strict=True)]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, within a line or a cell."""
    # An underscore inside a word is no markup.
    return re.sub(r"([\\`*|<>\[\]#]|\b_|_\b)", r"\\\1", " ".join(text.split()))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """The first ``left`` columns are text, the others numbers."""
    rule = ["---" if number < left else "---:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _results(report: Report) -> list[str]:
    usual, best_of = usual_seeds(report), best(report)
    rows = []
    for group, title in GROUPS.items():
        for row in (row for row in report.rows if row.group == group):
            cells = [
                f"{'**' if is_best(row, skill, best_of) else ''}{percent(score.mean)}"
                f"{'**' if is_best(row, skill, best_of) else ''} {_spread(score, usual)}"
                for skill, score in scores_of(row).items()
            ]
            rows.append([_plain(row.model), title, *cells])
    return ["## Results", caption(report), _table(["model", "", OVERALL, *map(_plain, report.skills)], rows, left=2)]


def _spread(score: Score, usual: int) -> str:
    return f"±{half_width(score)}" + ("" if score.seeds == usual else f" (n={score.seeds})")


def _claims(claims: tuple[Claim, ...]) -> str:
    rows = [[claim.verdict, _plain(claim.text), _plain(claim.evidence), _plain(claim.source)] for claim in claims]
    return f"{tally(claims)}.\n\n" + _table(["verdict", "claim", "evidence", "source"], rows, left=4)


def tally(claims: tuple[Claim, ...]) -> str:
    """How many claims got which verdict."""
    counts = Counter(claim.verdict for claim in claims)
    return ", ".join(f"{counts[verdict]} {words}" for verdict, words in VERDICTS.items() if counts[verdict])


def _comparison(comparison: Comparison) -> str:
    rows = []
    for skill in dict.fromkeys([*comparison.gains, *comparison.kl]):
        gain, kl = comparison.gains.get(skill), comparison.kl.get(skill)
        bold = "**" if gain and sure(gain) else ""
        rows.append(
            [
                _plain(skill),
                "yes" if skill in comparison.changed else "",
                f"{bold}{points(gain)}{bold}" if gain else "",
                interval_of(gain, signed=True) if gain else "",
                f"{kl.mean:.2g} ({kl.low:.2g} to {kl.high:.2g})" if kl else "",
            ]
        )
    head = ["skill", "meant to change", "gain", "95 % interval", "KL"]
    if not comparison.kl:
        head, rows = head[:-1], [row[:-1] for row in rows]
    seeds = max(score.seeds for score in (*comparison.gains.values(), *comparison.kl.values()))
    return f"{_plain(comparison.before)} to {_plain(comparison.after)}, {seeds_of(seeds)}.\n\n" + _table(head, rows, left=2)


def _sweep(sweep: Sweep, usual: int) -> str:
    rows = [
        [_plain(name), *(f"{percent(score.mean)} {_spread(score, usual)}" if score else "" for score in scores)]
        for name, scores in sweep.rows.items()
    ]
    return _table([_plain(sweep.x_label), *map(_plain, sweep.xs)], rows)


def _layers(routing: Routing) -> str:
    count = len(next(iter(routing.layers.values()), ()))
    return "1 layer" if count == 1 else f"{count} layers"


def _routing(routing: Routing) -> str:
    rows = [[_plain(domain), *map(percent, mean_over_layers(layers))] for domain, layers in routing.layers.items()]
    return _table(["data", *map(_plain, routing.experts)], rows)


def _costs(costs: tuple[CostRow, ...]) -> str:
    rows = []
    for domain, parts in by_domain(costs).items():
        rows += [
            [_plain(domain), _plain(cost.stage), f"{cost.tokens:,}", quantity(cost.flops), clock(cost.seconds), str(cost.devices)]
            for cost in parts
        ]
    return _table(["domain", "stage", "tokens", "FLOPs", "h:mm:ss", "devices"], rows, left=2)


def _provenance(found: Provenance) -> str:
    lines = [f"- {name}: {_plain(value)}" for name, value in facts(found).items()]
    return "\n".join(lines)


def facts(found: Provenance) -> dict[str, str]:
    """Where the numbers come from, line by line."""
    return {
        "date": found.date,
        "code": found.commit or "unknown",
        "machine": found.machine,
        "seeds": ", ".join(map(str, found.seeds)),
        "held-out items a seed": ", ".join(f"{skill} {count:,}" for skill, count in found.items.items()),
        "versions": ", ".join(f"{name} {number}" for name, number in found.versions.items()),
    }
