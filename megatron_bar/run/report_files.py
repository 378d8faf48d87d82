"""Writes a report's files: report.json holds all of it, report.html and report.md are made from it alone."""

import json
from pathlib import Path

from megatron_bar.config import from_json, to_json
from megatron_bar.errors import BarError, shown
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
    """Writes all three into ``folder``, each whole or not at all; control characters in names and texts are
    spelled out, for a page's attributes do not keep all of them."""
    value = _spelled_out(to_json(report))
    report = from_json(Report, value)
    write_whole(folder / "report.json", json.dumps(value))
    write_whole(folder / "report.html", html(report))
    write_whole(folder / "report.md", markdown(report))


def _spelled_out(value):
    if isinstance(value, dict):
        return {_spelled_out(key): _spelled_out(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled_out(part) for part in value]
    return shown(value) if isinstance(value, str) else value
