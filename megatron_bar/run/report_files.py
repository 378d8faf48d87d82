"""Writes a report's files: report.json holds all of it, report.html and report.md are made from it alone."""

import json
from pathlib import Path

from megatron_bar.config import from_json, to_json
from megatron_bar.errors import BarError
from megatron_bar.report.html import html
from megatron_bar.report.markdown import markdown
from megatron_bar.report.report import Report
from megatron_bar.weights.json_file import read_object
from megatron_bar.weights.whole import write_whole


def read_report(folder: Path) -> Report:
    """Returns the report whose JSON is in ``folder``."""
    file = folder / "report.json"
    value = read_object(file, expected="a report, as a run of a recipe with an evaluation leaves it")
    try:
        return from_json(Report, value)
    except BarError as error:
        raise BarError(f"{file}: {error}") from None


def write_report(report: Report, folder: Path) -> None:
    """Writes all three into ``folder``, each whole or not at all."""
    write_whole(folder / "report.json", json.dumps(to_json(report)))
    write_whole(folder / "report.html", html(report))
    write_whole(folder / "report.md", markdown(report))
