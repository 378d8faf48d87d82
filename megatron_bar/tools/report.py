"""Renders a run's report anew from its report.json, as Markdown and as a page that opens from disk."""

import argparse
from pathlib import Path

from megatron_bar.cli import Call, command_parser

EXAMPLE = "{program} runs/tiny"


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, EXAMPLE)
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="with a report.json; report.md and .html are replaced"
    )
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.run.report_files import read_report, write_report

    write_report(read_report(args.folder), args.folder)
    print(f"{args.folder}: report.md, report.html")
