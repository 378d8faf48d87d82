"""report.html: the report as one file that opens from disk, with the routing lens; it asks no network for
anything.

Tables and charts are there without a script. The script (page/page.js) shows what lies behind a cell, a point
or a token, on hover, on touch and by the arrow keys; it turns the layers of the routing map and draws the
lens from its digits.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from megatron_bar.report import wording
from megatron_bar.report.plot import Line, Point, chart, expert_colour, line_chart
from megatron_bar.report.report import (
    Estimate,
    Lens,
    Report,
    RoutingShares,
    Row,
    SweepResult,
    Table,
    UpgradeResult,
)
from megatron_bar.report.wording import OVERALL, percent

PAGE = Path(__file__).parent / "page"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The page's content security policy: nothing is fetched."""
GLYPHS = {"holds": "✓", "does not hold": "✗", "not testable here": "·"}


def html(report: Report) -> str:
    """The whole page; every text of the report is escaped."""
    sections = {
        "Results": ("Results", _results(report)),
        "Claims": ("Claims", _claims(report)),
        "Benchmarks": ("Published benchmarks", "".join(map(_shown, report.tables))),
        "Changes": ("One thing changed", "".join(map(_comparison, report.comparisons))),
        "Sweeps": ("One choice varied", _grid(_sweep(sweep) for sweep in report.sweeps)),
        "Learning": (
            "Learning",
            _grid(line_chart(c.series, title=c.title, x=c.x, y=c.y) for c in report.curves),
        ),
        "Routing": ("Where tokens go", _routing(report.routing) if report.routing else ""),
        "Lens": ("Routing lens", _lens(report.lens) if report.lens else ""),
        "Costs": ("What it cost", _costs(report) if report.costs else ""),
        "Provenance": ("Where the numbers come from", _facts(wording.facts(report.provenance))),
    }
    sections = {name: (title, body) for name, (title, body) in sections.items() if body}
    data = {"routing": report.routing and asdict(report.routing), "lens": report.lens and asdict(report.lens)}
    seeds = len(report.provenance.seeds)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(report.title)}</title>
<style>
{(PAGE / "page.css").read_text(encoding="utf-8")}{_colours(report.lens)}</style>
</head>
<body>
<header>
<h1>{escape(report.title)}</h1>
<p>{escape(report.provenance.date)} · {wording.seeds_of(seeds)} · code {
        escape(report.provenance.commit or "unknown")
    }</p>
</header>
<nav aria-label="Sections">{"".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)}</nav>
<main>
{
        "".join(
            f'<section id="{n.lower()}"><h2>{title}</h2>{body}</section>{chr(10)}'
            for n, (title, body) in sections.items()
        )
    }</main>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="data">{_json(data)}</script>
<script>
{(PAGE / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def _json(data: object) -> str:
    """JSON that ends no script element and opens no comment in one."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _colours(lens: Lens | None) -> str:
    return "".join(f".e{n}{{--c:{expert_colour(n)}}}\n" for n in range(len(lens.experts) if lens else 0))


def _grid(figures: Iterable[str]) -> str:
    figures = "".join(f"<figure data-rove>{figure}</figure>" for figure in figures)
    return f'<div class="grid">{figures}</div>' if figures else ""


def _table(head: Sequence[str], rows: Iterable[str], *, label: str, kind: str = "") -> str:
    """``head``: escaped cells; ``rows``: whole elements. It scrolls in its box, by keys too, and its first
    column stays."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return (
        f'<div class="wide" role="region" aria-label="{escape(label)}" tabindex="0"><table class="{kind}" '
        f"data-rove>"
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _tip(name: str, score: Estimate, *, signed: bool = False) -> str:
    """What a cell or a point says on hover."""
    mean = wording.points(score) if signed else percent(score.mean)
    return (
        f"{name}: {mean}\n95 % interval "
        f"{wording.interval_of(score, signed=signed)}\n{wording.seeds_of(score.seeds)}"
    )


def _results(report: Report) -> str:
    best = wording.best(report)
    rows = []
    for group, title in wording.GROUPS.items():
        members = [row for row in report.rows if row.group == group]
        if members:
            columns = len(report.skills) + 2
            cell = f'<th colspan="{columns}" scope="rowgroup"><span>{title}</span></th>'
            rows.append(f'<tr class="group">{cell}</tr>')
            rows += [_row(row, report.skills, best, wording.usual_seeds(report)) for row in members]
    head = ["model", OVERALL, *map(escape, report.skills)]
    return f"<p>{escape(wording.caption(report))}</p>" + _table(head, rows, label="Results", kind="scores")


def _row(row: Row, skills: Sequence[str], best: dict[str, str], usual: int) -> str:
    cells = []
    for skill, score in wording.scores_of(row, skills).items():
        if score is None:
            cells.append("<td></td>")
            continue
        mean = percent(score.mean)
        if wording.is_best(row, skill, score, best):
            mean = f"<b>{mean}</b>"
        more = "" if score.seeds == usual else f" n={score.seeds}"
        bar = f' style="--bar:{100 * min(1, max(0, score.mean)):.1f}%"' if skill == OVERALL else ""
        tip = escape(_tip(f"{row.model}, {skill}", score))
        cells.append(
            f'<td data-tip="{tip}"{bar}>{mean} <small>±{wording.half_width(score)}{more}</small></td>'
        )
    return f'<tr><th scope="row">{escape(row.model)}</th>{"".join(cells)}</tr>'


def _shown(table: Table) -> str:
    head, *rows = table.rows
    body = []
    for name, *cells in rows:
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body.append(f'<tr><th scope="row">{escape(name)}</th>{values}</tr>')
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    title = f"<h3>{escape(table.title)}</h3>"
    return (
        title
        + _table(list(map(escape, head)), body, label=table.title)
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def _claims(report: Report) -> str:
    if not report.claims:
        return ""
    items = "".join(
        f'<li class="{claim.verdict.replace(" ", "-")}"><span class="verdict">{GLYPHS[claim.verdict]} '
        f"{claim.verdict}</span>"
        f"<p>{escape(claim.text)}</p><p><small>{escape(claim.evidence)} — "
        f"{escape(claim.source)}</small></p></li>"
        for claim in report.claims
    )
    return f'<p>{wording.tally(report.claims)}.</p><ul class="claims">{items}</ul>'


def _comparison(comparison: UpgradeResult) -> str:
    reach = max(abs(bound) for gain in comparison.gains.values() for bound in (gain.low, gain.high)) or 1
    rows = []
    for skill in dict.fromkeys([*comparison.gains, *comparison.kl]):
        gain = comparison.gains.get(skill)
        kl = comparison.kl.get(skill)
        meant = ' <span class="meant">meant to change</span>' if skill in comparison.changed else ""
        cells = "<td></td><td></td>"
        if gain:
            shown = f"<b>{wording.points(gain)}</b>" if wording.sure(gain) else wording.points(gain)
            tip = escape(_tip(skill, gain, signed=True))
            cells = f'<td data-tip="{tip}">{shown}</td><td class="whisker">{_whisker(gain, reach)}</td>'
        if comparison.kl:
            cells += _divergence(skill, kl) if kl else "<td></td>"
        rows.append(f'<tr><th scope="row">{escape(skill)}{meant}</th>{cells}</tr>')
    head = [
        "skill",
        "gain",
        f"-{100 * reach:.0f} to +{100 * reach:.0f} points",
        *(["KL"] if comparison.kl else []),
    ]
    kl = " KL: nats a token of the next-token distribution, before to after." if comparison.kl else ""
    return (
        f"<h3>{escape(comparison.name)}</h3><p>{escape(comparison.before)} → {escape(comparison.after)}: "
        f"gains in points, paired"
        f" by item, with their 95 % intervals; bold where the interval does not hold 0.{kl}</p>"
        + _table(head, rows, label=comparison.name)
    )


def _divergence(skill: str, kl: Estimate) -> str:
    tip = (
        f"{skill}: KL {kl.mean:.3g} nats a token\n95 % interval {kl.low:.3g} to "
        f"{kl.high:.3g}\n{wording.seeds_of(kl.seeds)}"
    )
    return f'<td data-tip="{escape(tip)}">{kl.mean:.2g}</td>'


def _whisker(gain: Estimate, reach: float) -> str:
    """A gain and its interval on a line from -reach to reach."""
    low, mean, high = (100 + 95 * value / reach for value in (gain.low, gain.mean, gain.high))
    side = "up" if gain.low > 0 else "down" if gain.high < 0 else ""
    return (
        f'<svg viewBox="0 0 200 14" class="{side}" aria-hidden="true"><path class="zero" d="M100 0V14"/>'
        f'<path class="span" d="M{low:.1f} 7H{high:.1f}"/><circle cx="{mean:.1f}" cy="7" r="4"/></svg>'
    )


def _sweep(sweep: SweepResult) -> str:
    lines = []
    for name, scores in sweep.rows.items():
        points = tuple(
            Point(
                x=n,
                y=100 * s.mean,
                low=100 * s.low,
                high=100 * s.high,
                tip=_tip(f"{name}, {sweep.x_label} {x}", s),
            )
            for n, (x, s) in enumerate(zip(sweep.xs, scores, strict=True))
            if s
        )
        if points:
            lines.append(Line(name=name, points=points, strong=name == OVERALL))
    if not lines:
        return ""
    ticks = {float(n): x for n, x in enumerate(sweep.xs)}
    return chart(lines, title=sweep.name, x=sweep.x_label, y="percent solved", ticks=ticks, low=0, high=100)


def _routing(routing: RoutingShares) -> str:
    layers = len(next(iter(routing.layers.values())))
    rows = []
    for domain, shares in routing.layers.items():
        cells = "".join(
            f'<td style="--v:{share:.3f}" '
            f'data-tip="{escape(f"{domain} → {expert}: {percent(share)} %")}">{percent(share)}</td>'
            for expert, share in zip(routing.experts, wording.mean_over_layers(shares), strict=True)
        )
        rows.append(f'<tr data-domain="{escape(domain)}"><th scope="row">{escape(domain)}</th>{cells}</tr>')
    return (
        "<p>Mean router weight, percent, by data and expert; outlined: each row's largest.</p>"
        + _slider("routing-layer", layers)
        + _table(["data", *map(escape, routing.experts)], rows, label="Router weights", kind="heat")
    )


def _slider(name: str, layers: int) -> str:
    """0 is the mean over layers."""
    return (
        f'<p class="slider"><label for="{name}">layer</label><input type="range" id="{name}" min="0" '
        f'max="{layers}" value="0">'
        f'<output for="{name}">mean over {layers}</output></p>'
    )


def _lens(lens: Lens) -> str:
    tokens = sum(len(text.tokens) for text in lens.texts)
    legend = "".join(
        f'<button type="button" class="e{n}" data-expert="{n}" aria-pressed="false">{escape(name)}</button>'
        for n, name in enumerate(lens.experts)
    )
    domains = "".join(
        f"<option>{escape(domain)}</option>" for domain in dict.fromkeys(text.domain for text in lens.texts)
    )
    layered = all(text.by_layer for text in lens.texts)
    return (
        f"<p>{tokens:,} tokens. A token has the colour of the expert with the largest router weight, the "
        f"stronger the larger it"
        " is. Hover, tap, or go through the tokens with the arrow keys to see all weights. A name below "
        "shows that expert's"
        f' weights alone.</p><div class="controls"><p class="legend" role="group" '
        f'aria-label="Experts">{legend}</p>'
        '<p><label for="lens-domain">texts of</label><select id="lens-domain"><option value="">all '
        "domains</option>"
        f"{domains}</select></p>{_slider('lens-layer', lens.layers) if layered else ''}</div><div "
        f'id="texts"></div>'
        "<noscript><p>The lens is drawn by a script, which is off.</p></noscript>"
    )


def _costs(report: Report) -> str:
    top = max(cost.flops for cost in report.costs) or 1
    rows = []
    for domain, costs in wording.by_domain(report.costs).items():
        for number, cost in enumerate(costs):
            name = f'<th scope="rowgroup" rowspan="{len(costs)}">{escape(domain)}</th>' if number == 0 else ""
            rows.append(
                f"<tr>{name}<td>{escape(cost.stage)}</td><td>{cost.tokens:,}</td>"
                f'<td style="--bar:{100 * cost.flops / top:.1f}%">{wording.quantity(cost.flops)}</td>'
                f"<td>{wording.clock(cost.seconds)}</td><td>{cost.devices}</td></tr>"
            )
    return _table(
        ["domain", "stage", "tokens", "FLOPs", "h:mm:ss", "devices"], rows, label="Costs", kind="costs"
    )


def _facts(facts: dict[str, str]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
        + "</dl>"
    )
