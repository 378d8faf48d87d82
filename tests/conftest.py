"""What every test shares: one thread, no network, the same hypothesis examples everywhere, processes ended at the end; and
after the last test the table of what was promised and what was found.
"""

import os

# Before torch and transformers are imported. On few cores, threads of several processes only take turns.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
from distributed import close_pool

# A deadline would fail on a busy machine, not on a defect.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def _test_processes():
    yield
    close_pool()


def pytest_terminal_summary(terminalreporter):
    """What tests recorded by `record_property("figure", "promise: figure")`; of a failed one that it was not kept."""
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
                rows.append((figures[-1].partition(": ")[0] if figures else "a promise", f"NOT KEPT: {report.nodeid}"))
    if rows:
        terminalreporter.section("promises")
        width = max(len(promise) for promise, _ in rows)
        for promise, figure in sorted(rows):
            terminalreporter.line(f"{promise:{width}}  {figure}")
