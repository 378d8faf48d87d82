"""Says what each stage of a merged model cost, and one domain's update against retraining all.

It reads manifests alone.
"""

import argparse
import json
from pathlib import Path

from megatron_bar.cli import Call, command_parser
from megatron_bar.errors import BarError

EXAMPLE = "{program} runs/tiny/final --retrained runs/retrain/final --json"


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, EXAMPLE)
    parser.add_argument("final", type=Path, metavar="FINAL", help="a merged model, its router trained or not")
    parser.add_argument(
        "--retrained",
        type=Path,
        metavar="FOLDER",
        help="a model trained on all domains at once (default: the sum of domains)",
    )
    parser.add_argument(
        "--domains", type=int, metavar="N", help="how far to go on (default: twice as many as the model has)"
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.evaluation.cost import as_json, lines, read_bill, read_ledger

    bill = read_bill(args.final)
    monolithic = None if args.retrained is None else read_ledger(args.retrained)
    domains = 2 * len(bill.experts) if args.domains is None else args.domains
    if domains < 1:
        raise BarError(f"domains expected at least 1, got {domains}")
    if args.json:
        print(json.dumps(as_json(bill, monolithic, domains), indent=1))
    else:
        print("\n".join(lines(bill, monolithic, domains)))
