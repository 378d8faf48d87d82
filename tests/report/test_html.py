"""report.html in a real browser, from disk: it renders in silence, asks the network for nothing, and answers
mouse and keys."""

import json
import re
import time
from dataclasses import replace

import pytest
from browser import chromium, started, wait_until_rendered
from report_example import EXPERTS, HOSTILE, SKILLS, lens, report
from scripts import ROOT

from megatron_bar.config import from_json
from megatron_bar.report.html import html
from megatron_bar.report.report import DIGITS, Report
from megatron_bar.run.report_files import write_report

needs_browser = pytest.mark.skipif(
    chromium() is None, reason="no Chromium on the PATH (Debian: apt-get install chromium)"
)


def data_of(text: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    )


def test_no_text_ends_an_element():
    made = report()
    text = html(made)
    assert text.count("</script>") == 2 and text.count("<script") == 2, "the page's own two"
    assert tuple(data_of(text)["lens"]["texts"][0]["tokens"]) == made.lens.texts[0].tokens
    assert made.lens.texts[0].tokens[: len(HOSTILE)] == HOSTILE
    assert "BTX <b>" not in text and "BTX &lt;b&gt;" in text and "<more>" not in text


def test_ten_thousand_tokens_of_the_published_shape_stay_below_3_mb(record_property):
    size = len(html(report(10_000, layers=32)).encode())
    record_property(
        "figure", f"a lens of 10,000 tokens, 5 experts, 32 layers: {size / 1e6:.2f} MB, limit 3 MB"
    )
    assert size < 3e6


def test_what_was_not_measured_has_no_section():
    made = report()
    text = html(Report(title="t", provenance=made.provenance, rows=made.rows))
    assert re.findall(r'<section id="(\w+)">', text) == ["results", "provenance"]
    assert len(re.findall(r'<section id="(\w+)">', html(made))) == 9


@pytest.fixture(scope="module")
def browser():
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("html") / "report.html"
    path.write_text(html(report()), encoding="utf-8")
    return path


@pytest.fixture
def open_page(browser, file):
    """Opens the report (or another file), and in the end checks that nothing was said on the console or asked
    of a network."""
    pages, said, asked = [], [], []

    def open_(path=file, *, width: int = 1200, scheme: str = "light", scripts: bool = True):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=scripts
        )
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        if scripts:
            wait_until_rendered(page)
        pages.append((context, path.as_uri()))
        return page

    yield open_
    for context, _ in pages:
        context.close()
    assert said == []
    assert asked == [uri for _, uri in pages]


def tip(page) -> str | None:
    """What the tip says, None while it is hidden."""
    return page.locator("#tip").inner_text() if page.locator("#tip").is_visible() else None


def decoded(text, token: int) -> dict[str, float]:
    """Percent by expert, the mean over layers."""
    digits = [DIGITS.index(c) for c in text.weights]
    at = 2 * token * len(EXPERTS)
    return {
        name: 100 * (64 * digits[at + 2 * e] + digits[at + 2 * e + 1]) / 4095
        for e, name in enumerate(EXPERTS)
    }


@needs_browser
def test_every_section_is_there_and_links_lead_to_it(open_page):
    page = open_page()
    assert page.locator("h1").inner_text() == "The recipe tiny & <more>"
    names = page.locator("nav a").all_inner_texts()
    assert names == [
        "Results",
        "Claims",
        "Changes",
        "Sweeps",
        "Learning",
        "Routing",
        "Lens",
        "Costs",
        "Provenance",
    ]
    for name in names:
        page.locator("nav a", has_text=name).click()
        assert page.locator(f"section#{name.lower()} h2").is_visible()
    assert page.locator("#results tbody tr:not(.group)").count() == 7
    assert page.locator("svg.plot").count() == 4
    assert page.locator(".claims li").all_inner_texts()[0].startswith("✓ holds")


@needs_browser
def test_best_is_bold_and_a_cell_says_its_interval_and_seeds(open_page):
    page = open_page()
    row = page.locator("#results tr", has_text="BAR")
    assert row.locator("b").all_inner_texts() == ["86.9", "88.2", "59.2", "99.0", "100.0"]
    row.locator("td").nth(1).hover()
    assert tip(page) == "BAR, knowledge: 88.2\n95 % interval 85.2 to 91.2\n3 seeds"
    page.locator("h1").hover()
    assert tip(page) is None


@needs_browser
def test_hover_on_a_token_shows_all_weights(open_page):
    page, made = open_page(), lens()
    for number, token in ((0, 0), (0, 3), (1, 7), (3, 29)):
        page.locator(f"[data-text='{number}'] .t").nth(token).hover()
        expected = sorted(decoded(made.texts[number], token).items(), key=lambda item: -item[1])
        lines = page.locator("#tip tr").all_inner_texts()
        assert [line.split("\t")[:2] for line in lines] == [
            [name, f"{weight:.1f} %"] for name, weight in expected
        ]
        assert json.loads(page.locator("#tip code").inner_text()) == made.texts[number].tokens[token]


@needs_browser
def test_tokens_are_shown_as_text_in_the_winners_colour(open_page):
    page, made = open_page(), lens()
    shown = page.locator("[data-text='0'] .t").all_text_contents()
    hostile = [
        "</script>",
        "<img src=x onerror=alert(1)>",
        "\"'&amp;",
        "<!--",
        "\u2028",
        "⏎\n",
        "·",
        "→\t",
        "é",
    ]
    assert shown[: len(HOSTILE)] == hostile
    assert page.locator("main img").count() == 0
    classes = page.locator("[data-text='1'] .t").evaluate_all("tokens => tokens.map(t => t.className)")
    for token, name in enumerate(classes):
        weights = decoded(made.texts[1], token)
        assert f"e{EXPERTS.index(max(weights, key=weights.get))}" in name.split()
    colours = page.locator(".legend button").evaluate_all(
        "all => all.map(b => getComputedStyle(b).borderLeftColor)"
    )
    assert len(set(colours)) == len(EXPERTS)


@needs_browser
def test_keys_go_through_the_tokens(open_page):
    page = open_page()
    page.locator("[data-text='0'] .t").first.focus()
    first = tip(page)
    assert first.startswith('"</script>" token 1,')
    page.keyboard.press("ArrowRight")
    assert '"<img src=x onerror=alert(1)>" token 2,' in tip(page)
    page.keyboard.press("End")
    assert "token 30," in tip(page)
    page.keyboard.press("ArrowUp")
    assert "token 30," not in tip(page), "a line further up"
    page.keyboard.press("Home")
    assert tip(page) == first
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
    page.keyboard.press("Escape")
    assert tip(page) is None
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.parentElement.dataset.text") == "1", "a text is one stop"


@needs_browser
def test_keys_go_through_tables_and_charts(open_page):
    page = open_page()
    page.locator("#results td").first.focus()
    for key, start in (
        ("ArrowRight", "anchor, knowledge: 86.3"),
        ("ArrowDown", "math-rlvr, knowledge: 82.4"),
        ("ArrowLeft", "math-rlvr, overall"),
    ):
        page.keyboard.press(key)
        assert tip(page).startswith(start)
    page.locator("#sweeps circle").first.focus()
    assert tip(page).startswith("overall, active experts k 1: 30.0\n95 % interval 27.0 to 33.0\n3 seeds")
    page.keyboard.press("ArrowRight")
    assert tip(page).startswith("overall, active experts k 2: 40.0")


@needs_browser
def test_the_layer_of_the_routing_map(open_page):
    page, shares = open_page(), report().routing.layers["sft_math"]
    cells = page.locator("#routing tr[data-domain=sft_math] td")
    assert cells.all_inner_texts() == ["20.0", "50.0", "15.0", "7.5", "7.5"]
    before = cells.nth(0).evaluate("cell => getComputedStyle(cell).backgroundColor")
    page.locator("#routing-layer").focus()
    for layer in shares:
        page.keyboard.press("ArrowRight")
        assert cells.all_inner_texts() == [f"{100 * share:.1f}" for share in layer]
    assert page.locator("#routing output").inner_text() == "4 of 4"
    page.locator("#routing-layer").fill("1")
    assert cells.nth(0).evaluate("cell => getComputedStyle(cell).backgroundColor") != before
    assert page.locator("#routing tr[data-domain=sft_math] .top").all_inner_texts() == ["70.0"]


@needs_browser
def test_a_domain_of_characters_that_html_changes_keeps_its_layers(open_page, tmp_path):
    made = report()
    layers = {f"a\0b\r{name}\ud800<\u2028": shares for name, shares in made.routing.layers.items()}
    routing = replace(made.routing, domains=tuple(layers), layers=layers)
    write_report(replace(made, routing=routing), tmp_path)
    page = open_page(tmp_path / "report.html")
    before = page.locator("#routing tr[data-domain] td").all_inner_texts()
    page.locator("#routing-layer").fill("1")
    after = page.locator("#routing tr[data-domain] td").all_inner_texts()
    assert before != after and len(after) == len(before)
    assert {file.name for file in tmp_path.iterdir()} == {"report.html", "report.json", "report.md"}


@needs_browser
def test_layers_domains_and_single_experts_in_the_lens(open_page):
    page, made = open_page(), lens()
    page.locator("#lens-layer").fill("2")
    page.locator("[data-text='1'] .t").nth(5).hover()
    at = (5 * made.layers + 1) * len(EXPERTS)
    weights = [100 * DIGITS.index(c) / 63 for c in made.texts[1].by_layer[at : at + len(EXPERTS)]]
    lines = [line.split("\t")[:2] for line in page.locator("#tip tr").all_inner_texts()]
    assert sorted(lines) == sorted(
        [name, f"{weight:.1f} %"] for name, weight in zip(EXPERTS, weights, strict=True)
    )
    assert "layer: 2 of 4" in tip(page)
    page.locator("#lens-domain").select_option("code")
    assert page.locator(".tokens").evaluate_all("all => all.map(t => t.dataset.text)") == ["2"]
    math = page.locator(".legend button", has_text="math")
    math.click()
    assert math.get_attribute("aria-pressed") == "true"
    assert page.locator(".t.e1").count() == page.locator(".t").count()
    math.click()
    assert page.locator(".t.e1").count() < page.locator(".t").count()


@needs_browser
def test_a_lens_without_layers_has_no_layers_to_choose(open_page, tmp_path):
    made = report()
    short = replace(made.lens, texts=tuple(replace(text, by_layer="") for text in made.lens.texts))
    (tmp_path / "r.html").write_text(html(replace(made, lens=short)), encoding="utf-8")
    page = open_page(tmp_path / "r.html")
    assert page.locator("#lens-layer").count() == 0
    page.locator(".t").first.hover()
    assert "layer" not in tip(page)


def contrast(page, selector: str) -> float:
    """The least that WCAG's contrast is between a text and what is painted behind it."""
    script = """elements => {
        const paint = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
        const read = (...layers) => {
            for (const layer of layers) { paint.fillStyle = layer; paint.fillRect(0, 0, 1, 1); }
            return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        return elements.map(element => {
            const style = getComputedStyle(element);
            const under = [getComputedStyle(document.body).backgroundColor, style.backgroundColor];
            return [read(...under, style.color), read(...under)];
        });
    }"""
    pairs = page.locator(selector).evaluate_all(script)
    lights = [sorted(map(luminance, pair)) for pair in pairs]
    return min((light + 0.05) / (dark + 0.05) for dark, light in lights)


def luminance(colour: list[int]) -> float:
    linear = [
        v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (part / 255 for part in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(open_page, scheme):
    page = open_page(scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
    for selector in ("h1", "header p", "#results td", ".heat td", ".verdict", "nav a", "[data-text='0'] .t"):
        assert contrast(page, selector) >= 4.5, selector
    # The strongest colours that a token can have.
    page.evaluate(
        "document.querySelectorAll('[data-text=\"1\"] .t').forEach((t, n) => t.className = `t e${n % 5} a7`)"
    )
    assert contrast(page, "[data-text='1'] .t") >= 4.5


@needs_browser
@pytest.mark.parametrize("width", [390, 768])
def test_a_narrow_page_does_not_scroll_sideways(open_page, width):
    page = open_page(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    token = page.locator("[data-text='0'] .t").nth(1)
    token.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    assert page.locator("#results td").nth(len(SKILLS)).count() == 1


def boxes(page) -> list[tuple[int, int]]:
    """Returns the width of every table's box and of what is in it."""
    return page.locator(".wide").evaluate_all("all => all.map(box => [box.clientWidth, box.scrollWidth])")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_published_tables_fit_a_window_of_1300_pixels(open_page, tmp_path, scheme):
    made = from_json(Report, json.loads((ROOT / "docs/results/report.json").read_text(encoding="utf-8")))
    (tmp_path / "r.html").write_text(html(made), encoding="utf-8")
    page = open_page(tmp_path / "r.html", width=1300, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 1300
    assert len(boxes(page)) == 5 and all(width == inside for width, inside in boxes(page))


MOVED = """(box, distance) => {
    const x = (element) => element.getBoundingClientRect().x;
    const [name, first, second] = ["thead th:first-child", "tbody tr:nth-child(2) th", "tbody tr:nth-child(2) td"]
        .map((place) => box.querySelector(place));
    const group = box.querySelector("tr.group span");
    const before = [name, group, first, second].map(x);
    box.scrollLeft = distance;
    const after = [name, group, first, second].map(x);
    const {left, top, height} = first.getBoundingClientRect();
    return {
        scrolled: box.scrollLeft,
        moved: before.map((start, n) => start - after[n]),
        seen: document.elementFromPoint(left + 20, top + height / 2) === first,
        behind: [name, first].map((cell) => getComputedStyle(cell).backgroundColor),
    };
}"""
"""Scrolls a box; says how far the names and the first column of numbers went, and what is seen where the
names are."""


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_wide_table_scrolls_in_its_box_and_its_first_column_stays(open_page, tmp_path, scheme):
    tests = [f"benchmark number {n}" for n in range(19)]
    rows = tuple(replace(r, scores=dict.fromkeys(tests, r.overall)) for r in report().rows)
    (tmp_path / "r.html").write_text(html(replace(report(), rows=rows)), encoding="utf-8")
    page = open_page(tmp_path / "r.html", width=1300, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 1300
    width, inside = boxes(page)[0]
    assert width <= 1300 < inside

    results = page.locator("#results .wide")
    found = results.evaluate(MOVED, 600)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert found["scrolled"] == 600 and found["moved"] == [0, 0, 0, 600]
    assert found["seen"] and found["behind"] == [paper, paper], "nothing shines through the names"
    assert page.evaluate("document.documentElement.scrollWidth") == 1300

    results.focus()
    page.keyboard.press("ArrowRight")  # by keys, too
    deadline = time.monotonic() + 10
    while results.evaluate("box => box.scrollLeft") <= 600:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@needs_browser
def test_tables_and_charts_need_no_script(open_page):
    page = open_page(scripts=False)
    assert page.locator("#results td").count() == 7 * 8 and page.locator("svg.plot").count() == 4
    assert page.locator("noscript").is_visible()
