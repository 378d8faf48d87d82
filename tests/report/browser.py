"""A real browser for tests and benchmarks: the system's Chromium, headless, driven by Playwright."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",  # which root may not have
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
RENDERED = "performance.getEntriesByName('rendered').length"


def chromium() -> str | None:
    """Where it is."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def started() -> Iterator[Browser]:
    """A browser with a fresh profile, which goes with it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


def wait_until_rendered(page) -> None:
    """Playwright's own wait for an expression evaluates it inside the page, whose policy forbids that."""
    deadline = time.monotonic() + 30
    while not page.evaluate(RENDERED):
        assert time.monotonic() < deadline, "the page did not finish"
        time.sleep(0.005)
