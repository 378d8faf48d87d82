"""How a report's numbers are worded, on a page as in Markdown: which are bold, how they are rounded, and the
sentences about them."""

from collections import Counter
from collections.abc import Sequence

from megatron_bar.report.report import ClaimResult, CostRow, Estimate, Provenance, Report, Row

GROUPS = {
    "start": "before",
    "experts": "single experts",
    "modular": "modular",
    "baselines": "baselines",
    "ablations": "ablations",
}
"""Groups of rows, in the order shown -> what they are called."""
COMPARABLE = ("start", "modular", "baselines")
"""Groups of models that are meant for every skill."""
OVERALL = "overall"
VERDICTS = {"holds": "hold", "does not hold": "do not hold", "not testable here": "not testable here"}
"""Verdict -> its wording where several are counted."""


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def half_width(score: Estimate) -> str:
    """Returns what stands after ±, in points."""
    return percent((score.high - score.low) / 2)


def points(score: Estimate) -> str:
    """Words a gain in points."""
    return f"{100 * score.mean:+.1f}"


def interval_of(score: Estimate, *, signed: bool = False) -> str:
    return f"{100 * score.low:{'+' * signed}.1f} to {100 * score.high:{'+' * signed}.1f}"


def seeds_of(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def sure(gain: Estimate) -> bool:
    """Returns whether the interval lies on one side of 0."""
    return gain.low > 0 or gain.high < 0


def scores_of(row: Row, skills: Sequence[str]) -> dict[str, Estimate | None]:
    """Returns the columns of the results: overall, then the skills; None where it was not measured."""
    return {OVERALL: row.overall} | {skill: row.scores.get(skill) for skill in skills}


def usual_seeds(report: Report) -> int:
    """Returns the number of seeds of most cells; the others state theirs."""
    counts = Counter(score.seeds for row in report.rows for score in row.scores.values())
    return counts.most_common(1)[0][0]


def best(report: Report) -> dict[str, str]:
    """Returns column -> the best mean as shown, of the models that are meant for everything (`COMPARABLE`);
    ties are all best."""
    rows = [scores_of(row, report.skills) for row in report.rows if row.group in COMPARABLE]
    columns = {skill: [row[skill].mean for row in rows if row[skill]] for skill in (OVERALL, *report.skills)}
    return {skill: percent(max(means)) for skill, means in columns.items() if means}


def is_best(row: Row, skill: str, score: Estimate, best_of: dict[str, str]) -> bool:
    return row.group in COMPARABLE and percent(score.mean) == best_of[skill]


def caption(report: Report) -> str:
    """Explains what a cell of the results is."""
    seeds = usual_seeds(report)
    mean = f"the mean of {seeds} seeds" if seeds > 1 else "of one seed"
    drawn = "seeds and items" if seeds > 1 else "items"
    groups = ", ".join(GROUPS[group] for group in COMPARABLE)
    return (
        f"Percent of held-out items solved, {mean} where a cell does not say otherwise (n=); "
        f"± is half the width of the 95 % bootstrap interval over {drawn}; "
        f"overall is the mean of the skills. Bold: the best of its column among {groups} "
        "(single experts and ablations are not meant for every skill)."
    )


def quantity(value: float) -> str:
    """Words a large number: 1234567 is 1.23 M."""
    for factor, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:  # shown with three digits, else 999.9 k would be 1e+03 k
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    """Words a time as hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def by_domain(costs: tuple[CostRow, ...]) -> dict[str, list[CostRow]]:
    """Returns the rows of each domain, in the order of their first ones."""
    domains: dict[str, list[CostRow]] = {}
    for cost in costs:
        domains.setdefault(cost.domain, []).append(cost)
    return domains


def mean_over_layers(layers: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(layers) for column in zip(*layers, strict=True)]


def tally(claims: tuple[ClaimResult, ...]) -> str:
    """Words how many claims got which verdict."""
    counts = Counter(claim.verdict for claim in claims)
    return ", ".join(f"{counts[verdict]} {words}" for verdict, words in VERDICTS.items() if counts[verdict])


def facts(provenance: Provenance) -> dict[str, str]:
    """Returns where the numbers come from, line by line."""
    return {
        "date": provenance.date,
        "code": provenance.commit or "unknown",
        "machine": provenance.machine,
        "seeds": ", ".join(map(str, provenance.seeds)),
        "held-out items a seed": ", ".join(f"{skill} {n:,}" for skill, n in provenance.items.items()),
        "versions": ", ".join(f"{name} {number}" for name, number in provenance.versions.items()),
    }
