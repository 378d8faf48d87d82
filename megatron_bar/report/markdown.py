"""report.md: the report as GitHub-flavoured Markdown."""

import re
from collections.abc import Sequence

from megatron_bar.report import wording
from megatron_bar.report.report import (
    ClaimResult,
    CostRow,
    Estimate,
    Provenance,
    Report,
    RoutingShares,
    SweepResult,
    Table,
    UpgradeResult,
)


def markdown(report: Report) -> str:
    """Returns the report as GitHub-flavoured Markdown."""
    parts = [f"# {_plain(report.title)}", *_results(report)]
    if report.claims:
        parts += ["## Claims", _claims(report.claims)]
    for table in report.tables:
        parts += [f"## {_plain(table.title)}", _shown(table)]
    if report.comparisons:
        parts.append("## One thing changed")
        parts.append(
            "Gains in points, paired by item; bold: the interval does not hold 0. KL: nats a token of "
            "the next-token distribution, before to after, on the domain's prompts."
        )
        for comparison in report.comparisons:
            parts += [f"### {_plain(comparison.name)}", _comparison(comparison)]
    if report.sweeps:
        parts.append("## One choice varied")
        for sweep in report.sweeps:
            parts += [f"### {_plain(sweep.name)}", _sweep(sweep, wording.usual_seeds(report))]
    if report.routing:
        parts += [
            "## Where tokens go",
            f"Mean router weight over {_layers(report.routing)}, percent.",
            _routing(report.routing),
        ]
    if report.costs:
        parts += ["## What it cost", _costs(report.costs)]
    parts += ["## Where the numbers come from", _provenance(report.provenance)]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Returns text that Markdown shows as it is, within a line or a cell."""
    # An underscore inside a word is no markup.
    return re.sub(r"([\\`*|<>\[\]#]|\b_|_\b)", r"\\\1", " ".join(text.split()))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Returns a table whose first ``left`` columns are text, the others numbers."""
    rule = ["---" if number < left else "---:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _results(report: Report) -> list[str]:
    usual = wording.usual_seeds(report)
    best_of = wording.best(report)
    rows = []
    for group, title in wording.GROUPS.items():
        for row in (row for row in report.rows if row.group == group):
            cells = []
            for skill, score in wording.scores_of(row, report.skills).items():
                if score is None:
                    cells.append("")
                    continue
                bold = "**" if wording.is_best(row, skill, score, best_of) else ""
                cells.append(f"{bold}{wording.percent(score.mean)}{bold} {_spread(score, usual)}")
            rows.append([_plain(row.model), title, *cells])
    return [
        "## Results",
        wording.caption(report),
        _table(["model", "", wording.OVERALL, *map(_plain, report.skills)], rows, left=2),
    ]


def _spread(score: Estimate, usual: int) -> str:
    return f"±{wording.half_width(score)}" + ("" if score.seeds == usual else f" (n={score.seeds})")


def _claims(claims: tuple[ClaimResult, ...]) -> str:
    rows = [
        [claim.verdict, _plain(claim.text), _plain(claim.evidence), _plain(claim.source)] for claim in claims
    ]
    return f"{wording.tally(claims)}.\n\n" + _table(["verdict", "claim", "evidence", "source"], rows, left=4)


def _shown(table: Table) -> str:
    head, *rows = [[_plain(cell) for cell in row] for row in table.rows]
    return "\n".join([_table(head, rows, left=len(head)), "", *(f"- {_plain(note)}" for note in table.notes)])


def _comparison(comparison: UpgradeResult) -> str:
    rows = []
    for skill in dict.fromkeys([*comparison.gains, *comparison.kl]):
        gain = comparison.gains.get(skill)
        kl = comparison.kl.get(skill)
        changed = "yes" if skill in comparison.changed else ""
        gained = ["", ""]
        if gain:
            bold = "**" if wording.sure(gain) else ""
            gained = [f"{bold}{wording.points(gain)}{bold}", wording.interval_of(gain, signed=True)]
        divergence = f"{kl.mean:.2g} ({kl.low:.2g} to {kl.high:.2g})" if kl else ""
        rows.append([_plain(skill), changed, *gained, divergence])
    head = ["skill", "meant to change", "gain", "95 % interval", "KL"]
    if not comparison.kl:
        head = head[:-1]
        rows = [row[:-1] for row in rows]
    seeds = max(score.seeds for score in (*comparison.gains.values(), *comparison.kl.values()))
    about = f"{_plain(comparison.before)} to {_plain(comparison.after)}, {wording.seeds_of(seeds)}."
    return f"{about}\n\n{_table(head, rows, left=2)}"


def _sweep(sweep: SweepResult, usual: int) -> str:
    rows = []
    for name, scores in sweep.rows.items():
        cells = [f"{wording.percent(s.mean)} {_spread(s, usual)}" if s else "" for s in scores]
        rows.append([_plain(name), *cells])
    return _table([_plain(sweep.x_label), *map(_plain, sweep.xs)], rows)


def _layers(routing: RoutingShares) -> str:
    count = len(next(iter(routing.layers.values()), ()))
    return "1 layer" if count == 1 else f"{count} layers"


def _routing(routing: RoutingShares) -> str:
    rows = [
        [_plain(domain), *map(wording.percent, wording.mean_over_layers(layers))]
        for domain, layers in routing.layers.items()
    ]
    return _table(["data", *map(_plain, routing.experts)], rows)


def _costs(costs: tuple[CostRow, ...]) -> str:
    rows = []
    for domain, parts in wording.by_domain(costs).items():
        for cost in parts:
            work = [f"{cost.tokens:,}", wording.quantity(cost.flops)]
            time = [wording.clock(cost.seconds), str(cost.devices)]
            rows.append([_plain(domain), _plain(cost.stage), *work, *time])
    return _table(["domain", "stage", "tokens", "FLOPs", "h:mm:ss", "devices"], rows, left=2)


def _provenance(provenance: Provenance) -> str:
    return "\n".join(f"- {name}: {_plain(value)}" for name, value in wording.facts(provenance).items())
