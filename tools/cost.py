"""What each stage of a merged model cost, and what updating one domain costs against retraining all, from manifests alone."""

import argparse
import json
from pathlib import Path

from megatron_bar.cli import run
from megatron_bar.errors import BarError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python tools/cost.py runs/tiny/final --retrained runs/retrain/final --json"
    )
    parser.add_argument("final", type=Path, metavar="FINAL", help="a merged model, its router trained or not")
    parser.add_argument(
        "--retrained",
        type=Path,
        metavar="FOLDER",
        help="a model trained on all domains at once (default: the sum of domains)",
    )
    parser.add_argument("--domains", type=int, metavar="N", help="how far to go on (default: twice as many as the model has)")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    args = parser.parse_args()
    from megatron_bar.evaluation.cost import as_json, lines, read_bill, read_ledger

    bill = read_bill(args.final)
    monolithic = None if args.retrained is None else read_ledger(args.retrained)
    domains = 2 * len(bill.experts) if args.domains is None else args.domains
    if domains < 1:
        raise BarError(f"domains expected at least 1, got {domains}")
    print(json.dumps(as_json(bill, monolithic, domains), indent=1) if args.json else "\n".join(lines(bill, monolithic, domains)))


if __name__ == "__main__":
    run(main)
