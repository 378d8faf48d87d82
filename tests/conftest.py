"""What every test shares: one thread, no network, the same hypothesis examples everywhere, processes ended at
the end; and after the last test the table of what was promised and what was found.
"""

import os

# Before torch and transformers are imported. On few cores, threads of several processes only take turns.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import fcntl
from pathlib import Path

import hypothesis
import pytest
from demo import make_demo
from distributed import close_pool

# A deadline would fail on a busy machine, not on a defect.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def _test_processes():
    yield
    close_pool()


@pytest.fixture(scope="session")
def demo(tmp_path_factory, worker_id) -> tuple[Path, str]:
    """A checkout after `make demo`, and what that printed; all of pytest's processes have the same, so copy
    it first."""
    root = tmp_path_factory.getbasetemp()
    place = (root if worker_id == "master" else root.parent) / "demo"
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        printed = place.with_suffix(".log")
        if not printed.exists():
            printed.write_text(make_demo(place / "checkout"))
    return place / "checkout", printed.read_text()


def pytest_terminal_summary(terminalreporter):
    """What tests recorded by `record_property("figure", "promise: figure")`; of a failed one that it was not
    kept."""
    rows = []
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            if not isinstance(report, pytest.TestReport):  # a file that could not be imported
                continue
            properties = report.user_properties
            figures = [value for name, value in properties if name == "figure"]
            if outcome == "passed":
                rows += [figure.partition(": ")[::2] for figure in figures if report.when == "call"]
            elif figures or "faults" in report.keywords:
                rows.append(
                    (figures[-1].partition(": ")[0] if figures else "a promise", f"NOT KEPT: {report.nodeid}")
                )
    if rows:
        terminalreporter.section("promises")
        width = max(len(promise) for promise, _ in rows)
        for promise, figure in sorted(rows):
            terminalreporter.line(f"{promise:{width}}  {figure}")
