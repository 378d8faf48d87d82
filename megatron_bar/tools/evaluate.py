"""Scores a Hugging Face folder on the toy's tests, or on the nineteen published benchmarks.

The toy's are answered by our sampler and judged by our verifiers. The published ones are answered by our
sampler or by a server of the folder, and then scored: answers are kept, so the same command goes on where it
was ended, several of them share the work, and scoring can be repeated without a model.
"""

import argparse
import sys
from datetime import timedelta
from pathlib import Path

from megatron_bar.cli import Call, active_experts, add_tensor, command_parser

EXAMPLES = (
    "{program} runs/tiny/final --suite toy --out final.json",
    "torchrun --nproc-per-node 2 {script} runs/tiny/final --suite toy --tensor 2 --active-experts 3",
    "{program} HF --suite bar19 --data DATA --limit 50 --out bar19.json",
    "{program} HF --suite bar19 --data DATA --server http://localhost:8000 --out bar19.json",
    "{program} HF --suite bar19 --data DATA --score-only --judge wildguard=http://localhost:8001 "
    "--out bar19.json",
    "{program} HF --suite bar19-lm-eval --task gsm8k --server http://localhost:8000",
)


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="HF", help="a folder with tokenizer and chat template")
    parser.add_argument(
        "--suite", required=True, help="toy, bar19 or, to compare with, lm-eval's: bar19-lm-eval"
    )
    parser.add_argument(
        "--task",
        dest="tasks",
        action="append",
        default=[],
        metavar="NAME",
        help="only this one of the suite; may be repeated",
    )
    about = (
        "at most N items of every test (bar19: spread evenly over its file; bar19-lm-eval: of every lm-eval "
        "task)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help=about)
    parser.add_argument(
        "--active-experts",
        metavar="K",
        help="experts of a token; K,K,... or FILE.json: layer by layer (default: as the folder says)",
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="prompts at a time (default 64)")
    add_tensor(parser)
    about = "toy: folder of test_SKILL.jsonl (default: world beside HF); bar19: of `bar prepare bar19`"
    parser.add_argument("--data", type=Path, metavar="DIR", help=about)
    about = (
        "an OpenAI-like server of the judge wildguard, grader or pairwise; MODEL where it has several; may "
        "be repeated. toy: wildguard judges safety in the place of phrase lists"
    )
    parser.add_argument(
        "--judge", dest="judges", action="append", default=[], metavar="NAME=URL[,MODEL]", help=about
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the results are written, every answer with its score; replaced if there",
    )
    bar19 = parser.add_argument_group("bar19")
    about = "published (default): each benchmark's own sampling; greedy: the likeliest tokens, one answer"
    bar19.add_argument("--protocol", metavar="NAME", help=about)
    about = "an OpenAI-like server of this folder (vLLM); default: our sampler, or transformers for lm-eval"
    bar19.add_argument("--server", metavar="URL", help=about)
    about = "requests under way at the server (default 32)"
    bar19.add_argument("--requests", type=int, metavar="N", help=about)
    about = "time for one reply of the server (default 600); then it is asked again, some times"
    bar19.add_argument("--patience", type=float, metavar="SECONDS", help=about)
    about = "folder of the answers, which a later run goes on with (default: OUT with .answers)"
    bar19.add_argument("--answers", type=Path, metavar="DIR", help=about)
    about = "score the answers that are there, and ask for none"
    bar19.add_argument("--score-only", action="store_true", help=about)
    bar19.add_argument(
        "--tasks-dir",
        type=Path,
        metavar="DIR",
        help="bar19-lm-eval: lm-eval tasks (YAML), in the place of those of their names",
    )
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    options = vars(parse(call))
    out = options.pop("out")
    active = options.pop("active_experts")
    texts = options.pop("judges")
    if options["suite"] == "bar19" and options["answers"] is None and out is not None:
        options["answers"] = out.with_suffix(".answers")
    from megatron_bar.evaluation.benchmarks.folder import evaluate_folder
    from megatron_bar.evaluation.benchmarks.judges import read_judges
    from megatron_bar.evaluation.benchmarks.table import table
    from megatron_bar.evaluation.results import write_results
    from megatron_bar.parallel.state import distributed, is_rank_zero

    judges = read_judges(texts, options["answers"])
    with distributed(timeout=timedelta(hours=2)):
        results = evaluate_folder(
            **options,
            judges=judges,
            active_experts=None if active is None else active_experts(active),
            say=lambda line: print(line, file=sys.stderr, flush=True) if is_rank_zero() else None,
        )
        if is_rank_zero():
            print(*table(results), sep="\n")
            if out:
                write_results(out, results)
