"""The report of a recipe as a value: what one or more of its runs measured, and what of the published claims that shows.

Every number comes from the runs' files; whoever fills the value says in `Provenance` which. `config.to_json` and `from_json`
keep it; `markdown` here and `html.html` show it.
"""

from dataclasses import dataclass, field
from typing import Literal

from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import interval

GROUPS = {
    "start": "before",
    "experts": "single experts",
    "modular": "modular",
    "baselines": "baselines",
    "ablations": "ablations",
}
"""Of rows, in the order shown, and how they are called."""
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


def _mean(items: list[dict]) -> float:
    return sum(item["score"] for item in items) / len(items)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join([_row(head), _row(["---"] * len(head)), *map(_row, rows)])


def scores_table(found: dict[str, dict]) -> str:
    """Models by skills, in percent; the best of a column in bold."""
    skills = list(next(iter(found.values()))["scores"])
    means = {model: [_mean(result["scores"][skill]) for skill in skills] for model, result in found.items()}
    best = [max(column) for column in zip(*means.values(), strict=True)]
    rows = []
    for model, values in means.items():
        cells = [f"**{_percent(v)}**" if v == top else _percent(v) for v, top in zip(values, best, strict=True)]
        rows.append([model, _percent(sum(values) / len(values)), *cells])
    return _table(["model", "overall", *skills], rows)


def margins(before: dict, after: dict, skills: tuple[str, ...]) -> list[tuple[str, float, float, float]]:
    """(skill, mean gain, low, high): the gain per item, with its 95 % bootstrap interval."""
    found = []
    for skill in skills:
        pairs = zip(before["scores"][skill], after["scores"][skill], strict=True)
        gains = [b["score"] - a["score"] for a, b in pairs]
        found.append((skill, sum(gains) / len(gains), *interval(gains)))
    return found


def margins_table(rows: list[tuple[str, float, float, float]]) -> str:
    body = [
        [
            skill,
            f"{100 * gain:+.1f}",
            f"{100 * low:+.1f} to {100 * high:+.1f}",
            "yes" if low > 0 else ("lower" if high < 0 else "no"),
        ]
        for skill, gain, low, high in rows
    ]
    return _table(["skill", "gain", "95 % interval", "higher"], body)


def routing_table(result: dict) -> str:
    """Domain by expert: mean router weight over layers, in percent."""
    rows = []
    for domain, layers in result["routing"].items():
        shares = [sum(column) / len(layers) for column in zip(*layers, strict=True)]
        rows.append([domain, *map(_percent, shares)])
    return _table(["data", *result["experts"]], rows)


def _verdicts(found: dict[str, dict], experts: dict[str, str], trained: tuple[str, ...]) -> list[str]:
    """The article's claims that this run can speak to, each with holds or does not hold, by the numbers."""
    lines = []

    def claim(text: str, holds: bool, evidence: str) -> None:
        lines.append(f"- {'Holds' if holds else 'Does NOT hold'}: {text} ({evidence}).")

    gains = margins(found["anchor"], found["final"], trained)
    claim(
        "the final model beats the anchor on every trained skill",
        all(low > 0 for _, _, low, _ in gains),
        ", ".join(f"{skill} {100 * gain:+.1f}" for skill, gain, *_ in gains),
    )
    for name, model in experts.items():
        if name in trained:
            ((_, gain, low, high),) = margins(found[model], found["final"], (name,))
            claim(
                f"merging costs {name} next to nothing against its own expert", low <= 0 <= high or gain > 0, f"{100 * gain:+.1f}"
            )
    routed = margins(found["merged"], found["final"], trained)
    claim(
        "router training helps the merged model",
        sum(gain for _, gain, *_ in routed) > 0,
        ", ".join(f"{skill} {100 * gain:+.1f}" for skill, gain, *_ in routed),
    )
    general = tuple(skill for skill in found["anchor"]["scores"] if skill not in trained)
    kept = margins(found["anchor"], found["final"], general)
    claim(
        "the skills that no expert was trained for are kept",
        all(high >= 0 for *_, high in kept),
        ", ".join(f"{skill} {100 * gain:+.1f}" for skill, gain, *_ in kept),
    )
    return lines


def write_report(name: str, found: dict[str, dict], *, experts: dict[str, str], trained: tuple[str, ...]) -> str:
    """``found``: model name to its evaluation, in the order shown; ``experts``: expert name to its model."""
    items = {skill: len(rows) for skill, rows in found["final"]["scores"].items()}
    sizes = ", ".join(f"{skill} {count}" for skill, count in items.items())
    parts = [
        f"# Report of the recipe {name}",
        f"Percent of held-out items solved by greedy generation ({sizes} items; one seed).",
        scores_table(found),
        "## Final model against the anchor",
        margins_table(margins(found["anchor"], found["final"], tuple(items))),
        "## Where tokens go in the final model (mean router weight, percent)",
        routing_table(found["final"]),
        "## The published claims, on this toy",
        "\n".join(_verdicts(found, experts, trained)),
        "Not tested here: everything about real benchmarks, baselines, upgrades and fewer active experts.",
    ]
    return "\n\n".join(parts) + "\n"
