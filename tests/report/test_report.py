"""The report as a value and as Markdown: it survives JSON, refuses what does not fit, and says what its
numbers say."""

import json
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from report_example import EXPERTS, SKILLS, lens, report, row, score

from megatron_bar.config import from_json, to_json
from megatron_bar.errors import BarError
from megatron_bar.report.html import html
from megatron_bar.report.markdown import markdown
from megatron_bar.report.report import Report, RoutingShares, Row, SweepResult
from megatron_bar.report.wording import clock, quantity


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, as its cells' source, by a Markdown parser."""
    found = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level >= 4:
            found[-1][-1].append(token.content)
    return found


def test_it_survives_json():
    made = report()
    assert from_json(Report, json.loads(json.dumps(to_json(made)))) == made


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda r: replace(r, rows=()), "expected at least one row"),
        (
            lambda r: replace(
                r, rows=(*r.rows, Row(model="m", group="start", scores={}, overall=score(0.5)))
            ),
            "m: expected knowledge,",
        ),
        (
            lambda r: SweepResult(name="k", x_label="k", xs=("1", "2"), rows={"math": (None,)}),
            "sweep k: math expected 2 scores, got 1",
        ),
        (
            lambda r: RoutingShares(experts=EXPERTS, domains=("a",), layers={"b": ()}),
            "expected the domains a, got b",
        ),
        (
            lambda r: RoutingShares(experts=EXPERTS, domains=("a",), layers={"a": ((0.1,),)}),
            "a: expected 5 experts",
        ),
        (lambda r: replace(lens(), experts=("one",)), "text 0: weights expected 60 digits, got 300"),
        (lambda r: replace(lens(), layers=3), "text 0: by_layer expected 450 digits, got 600"),
        (
            lambda r: replace(lens(), texts=(replace(lens().texts[0], weights="<" * 300),)),
            "text 0: weights expected letters, digits",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(BarError, match=message):
        make(report())


def test_every_cell_of_the_results_has_its_interval_and_its_seeds():
    text = markdown(report())
    table = tables(text)[0]
    assert table[0] == ["model", "", "overall", *SKILLS]
    rows = {cells[0]: cells[1:] for cells in table[1:]}
    assert rows["anchor"] == [
        "before",
        "34.7 ±1.0",
        "86.3 ±3.0",
        "48.3 ±3.0",
        "**92.5** ±3.0",
        *["0.0 ±3.0"] * 3,
        "15.8 ±3.0",
    ]
    assert rows[r"BTX \<b\>"][-1] == "**99.0** ±3.0 (n=1)"
    assert all("±" in cell for cells in rows.values() for cell in cells[1:])
    assert "the mean of 3 seeds" in text and "95 %" in text


def test_best_is_bold_among_comparable_rows_and_ties_are_all_best():
    rows = {cells[0]: cells[2:] for cells in tables(markdown(report()))[0][1:]}
    bold = {
        name: [n for n, cell in enumerate(cells) if cell.startswith("**")] for name, cells in rows.items()
    }
    assert bold == {
        "anchor": [3],
        "math-rlvr": [],
        "code-rlvr": [],
        "BAR": [0, 1, 2, 5, 6],
        "retrain": [1],
        r"BTX \<b\>": [4, 7],
        "domain-only SFT": [],
    }


def test_what_was_not_measured_is_blank():
    made = report()
    partial = replace(made.rows[1], scores={"math": made.rows[1].scores["math"]}, overall=None)
    shown = replace(made, rows=(made.rows[0], partial, *made.rows[2:]))
    text = markdown(shown)
    assert html(shown).count("<td></td>") - html(made).count("<td></td>") == len(made.skills)
    cells = {cells[0]: cells[2:] for cells in tables(text)[0][1:]}[partial.model]
    assert [n for n, cell in enumerate(cells) if cell] == [1 + made.skills.index("math")]
    with pytest.raises(BarError, match="expected an overall score if all skills are measured, else none"):
        replace(made, rows=(made.rows[0], replace(partial, overall=made.rows[0].overall)))


def test_one_seed_is_told_as_one_seed():
    text = markdown(replace(report(), rows=(row("m", "modular", [0.5] * 7, seeds=1),)))
    assert "of one seed" in text and "interval over items" in text


def test_gains_are_bold_where_the_interval_does_not_hold_zero():
    upgrade, plain = tables(markdown(report()))[2:4]
    assert upgrade[0] == ["skill", "meant to change", "gain", "95 % interval", "KL"]
    assert ["code", "yes", "**+16.5**", "+14.5 to +18.5", ""] in upgrade
    assert ["math", "", "-0.4", "-2.4 to +1.6", "0.011 (0.009 to 0.013)"] in upgrade
    assert plain[0][-1] == "95 % interval"
    assert "final-old to final, 3 seeds." in markdown(report()) and "a to b, 1 seed." in markdown(report())


def test_sweeps_routing_costs_and_claims():
    text = markdown(report())
    claims, sweep, routing, costs = (tables(text)[n] for n in (1, 5, 6, 7))
    assert "1 hold, 1 do not hold, 1 not testable here." in text
    assert claims[1][:2] == ["holds", "Router training helps | the merged model"]
    assert sweep[0] == ["share of the data, percent", "1", "5", "100"]
    assert sweep[2] == ["math", "49.7 ±3.0", "", "43.8 ±3.0"]
    assert routing[2] == ["sft_math", "20.0", "50.0", "15.0", "7.5", "7.5"], "the mean over the layers"
    assert "over 4 layers" in text
    assert costs[1] == ["math", "sft", "1,234,567", "3.21 T", "0:01:02", "2"]
    assert costs[-1][1] == "route", (
        "nothing is added up: what the modular and the retrained model took stand side by side"
    )


def test_provenance_is_told():
    text = markdown(report())
    for told in (
        "2026-01-02",
        "0123456789ab",
        "A processor, 2 cores",
        "torch 2.13",
        "seeds: 0, 1, 2",
        "math 120",
    ):
        assert told in text


def test_what_was_not_measured_has_no_section():
    made = report()
    text = markdown(Report(title="t", provenance=made.provenance, rows=made.rows))
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# t",
        "## Results",
        "## Where the numbers come from",
    ]


def test_names_are_shown_as_they_are():
    html = MarkdownIt("commonmark").enable("table").render(markdown(report()))
    assert "<td>BTX &lt;b&gt;</td>" in html and "<h1>The recipe tiny &amp; &lt;more&gt;</h1>" in html


def test_quantities():
    assert [quantity(v) for v in (0, 12, 1234, 9.999e5, 1.5e6, 3.21e12, 2e18)] == [
        "0",
        "12",
        "1.23 k",
        "1 M",
        "1.5 M",
        "3.21 T",
        "2 E",
    ]
    assert [clock(v) for v in (0, 59.6, 3661)] == ["0:00:00", "0:01:00", "1:01:01"]
