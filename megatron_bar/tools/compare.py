"""Compares a new model with the old one, domain by domain: the regression gate.

It shows what each domain gained and how far the others moved. Status 1 where one got worse that was not to
change.
"""

import argparse
import json
from datetime import timedelta
from pathlib import Path

from megatron_bar.cli import Call, add_tensor, command_parser
from megatron_bar.errors import BarError

EXAMPLES = (
    "{program} runs/tiny/final runs/up/final --data runs/tiny/world --changed math",
    "{program} old new --data world --results-old old.json --results-new new.json --tolerance 2",
    "{program} old new --results-old old-bar19.json --results-new new-bar19.json",
)


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument("old", type=Path, metavar="OLD", help="the model before")
    parser.add_argument("new", type=Path, metavar="NEW", help="the model after; with OLD's tokenizer")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="of the toy's test_SKILL.jsonl; results of another suite are compared by themselves",
    )
    parser.add_argument(
        "--changed", nargs="+", default=[], metavar="DOMAIN", help="what was changed on purpose: not guarded"
    )
    parser.add_argument(
        "--results-old",
        type=Path,
        metavar="FILE",
        help="OLD's results (bar evaluate --out): not measured again",
    )
    parser.add_argument("--results-new", type=Path, metavar="FILE", help="NEW's")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, metavar="POINTS", help="a guarded domain may lose (default 0)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N items of every test")
    add_tensor(parser)
    parser.add_argument(
        "--pipeline", type=int, default=1, metavar="N", help="pipeline parallelism (default 1)"
    )
    parser.add_argument("--expert", type=int, default=1, metavar="N", help="expert parallelism (default 1)")
    parser.add_argument(
        "--batch", type=int, default=64, metavar="N", help="prompts answered at a time (default 64)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison there too")
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    if not args.tolerance >= 0:
        raise BarError(f"tolerance expected at least 0, got {args.tolerance}")
    if args.batch < 1:
        raise BarError(f"batch expected at least 1, got {args.batch}")
    files = [args.results_old, args.results_new]
    if files.count(None) == 1:
        raise BarError("--results-old and --results-new: expected both or neither, got one")
    if args.limit is not None and None not in files:
        raise BarError(f"--limit {args.limit}: expected none where results are given; theirs is used")
    from megatron_bar.evaluation.compare import compare, compare_results, lines, require_no_regression
    from megatron_bar.evaluation.results import read_results
    from megatron_bar.parallel.state import ParallelConfig, distributed, is_rank_zero

    layout = ParallelConfig(tensor=args.tensor, pipeline=args.pipeline, expert=args.expert)
    results = None if None in files else tuple(map(read_results, files))
    with distributed(timeout=timedelta(hours=2)):
        if args.data is None and results is None:
            raise BarError("expected --data FOLDER, or results of both models that need none, got neither")
        if args.data is None:
            found = compare_results(args.old, args.new, results, changed=args.changed)
        else:
            found = compare(
                args.old,
                args.new,
                args.data,
                changed=args.changed,
                results=results,
                limit=args.limit,
                layout=layout,
                slots=args.batch,
            )
        if is_rank_zero():
            print(*lines(found, args.tolerance), sep="\n", flush=True)
            if args.json:
                args.json.write_text(json.dumps(found.as_json(), indent=1) + "\n", encoding="utf-8")
        require_no_regression(found, args.tolerance)
