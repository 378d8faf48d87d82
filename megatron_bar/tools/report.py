"""Renders a run's report anew from its report.json, as Markdown and as a page that opens from disk.

Results of published benchmarks go into it where they are given."""

import argparse
from dataclasses import replace
from pathlib import Path

from megatron_bar.cli import Call, command_parser

EXAMPLES = ("{program} runs/tiny", "{program} runs/bar --benchmarks bar19.json other-bar19.json")


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="with a report.json; report.md and .html are replaced"
    )
    about = "results of the suite bar19 (bar evaluate --out), in the place of those that the report has"
    parser.add_argument("--benchmarks", type=Path, nargs="+", default=[], metavar="FILE", help=about)
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.evaluation.benchmarks.table import shown_tables
    from megatron_bar.evaluation.results import read_results
    from megatron_bar.run.report_files import read_report, write_report

    report = read_report(args.folder)
    if args.benchmarks:
        tables = [table for file in args.benchmarks for table in shown_tables(read_results(file))]
        report = replace(report, tables=tuple(tables))
    write_report(report, args.folder)
    print(f"{args.folder}: report.md, report.html")
