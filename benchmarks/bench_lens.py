"""What a lens of 10,000 tokens weighs and how long a browser takes to open it, from the start of the
navigation to the first frame that has it all; at the toy's shape and at the published one. Needs Chromium.
"""

import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "report")]

from browser import chromium, started, wait_until_rendered  # noqa: E402
from report_example import report  # noqa: E402
from side_by_side import figure  # noqa: E402

from megatron_bar.report.html import html  # noqa: E402

TOKENS, RUNS = 10_000, 5
SHAPES = {"toy": 4, "7b": 32}
"""Layers, of 5 experts."""
OPENED = """() => {
    const [page] = performance.getEntriesByType('navigation');
    return [performance.getEntriesByName('rendered')[0].startTime, page.domInteractive];
}"""


def main() -> None:
    if chromium() is None:
        sys.exit("error: no Chromium on the PATH (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder, started() as browser:
        for name, layers in SHAPES.items():
            file = Path(folder) / f"{name}.html"
            file.write_text(html(report(TOKENS, layers=layers, texts=50)), encoding="utf-8")
            opened, parsed = zip(*(opening(browser, file) for _ in range(RUNS)), strict=True)
            print(
                f"lens {name}: {TOKENS:,} tokens, {layers} layers; parsed after {median(parsed):.0f} ms, "
                f"median of {RUNS}"
            )
            figure(f"lens_{name}_megabytes", file.stat().st_size / 1e6, 3, at_most=True)
            figure(f"lens_{name}_open_ms", median(opened), 1000, at_most=True)


def opening(browser, file: Path) -> list[float]:
    """Milliseconds from the start of the navigation until all is drawn, and until the page was parsed, in a
    fresh profile."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    page.goto(file.as_uri())
    wait_until_rendered(page)
    found = page.evaluate(OPENED)
    assert page.locator(".t").count() == TOKENS
    context.close()
    return found


if __name__ == "__main__":
    main()
