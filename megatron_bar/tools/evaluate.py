"""Scores a Hugging Face folder on the toy's tests, or on the published nineteen benchmarks.

The toy's are answered by our sampler and judged by our verifiers, the published ones run by lm-eval.
"""

import argparse
from datetime import timedelta
from pathlib import Path

from megatron_bar.cli import Call, active_experts, command_parser

EXAMPLES = (
    "{program} runs/tiny/final --suite toy --out final.json",
    "torchrun --nproc-per-node 2 {script} runs/tiny/final --suite toy --tensor 2 --active-experts 3",
    "{program} HF --suite bar19 --limit 50 --out bar19.json",
    "{program} HF --suite bar19 --task gsm8k --task math --server http://localhost:8000",
)


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="HF", help="a folder with tokenizer and chat template")
    parser.add_argument("--suite", required=True, help="toy or bar19")
    parser.add_argument(
        "--task",
        dest="tasks",
        action="append",
        default=[],
        metavar="NAME",
        help="only this one of the suite; may be repeated",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="at most N items of every test (bar19: of every lm-eval task)"
    )
    parser.add_argument(
        "--active-experts",
        metavar="K",
        help="experts of a token; K,K,... or FILE.json: layer by layer (default: as the folder says)",
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="prompts at a time (default 64)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the results are written, every answer with its score; replaced if there",
    )
    toy = parser.add_argument_group("toy")
    toy.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of test_SKILL.jsonl (default: world beside HF)"
    )
    toy.add_argument(
        "--tensor", type=int, default=1, metavar="N", help="tensor parallelism, under torchrun (default 1)"
    )
    toy.add_argument(
        "--judge",
        metavar="URL",
        help="an OpenAI-like server of WildGuard, which judges safety in the place of phrase lists",
    )
    toy.add_argument(
        "--judge-model",
        metavar="NAME",
        default="allenai/wildguard",
        help="the server's name for it (default allenai/wildguard)",
    )
    bar19 = parser.add_argument_group("bar19")
    bar19.add_argument(
        "--server",
        metavar="URL",
        help="an OpenAI-like server of this folder (vLLM); default: transformers here",
    )
    bar19.add_argument(
        "--tasks-dir",
        type=Path,
        metavar="DIR",
        help="lm-eval tasks (YAML), in the place of those of their names",
    )
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    options = vars(parse(call))
    out = options.pop("out")
    active = options.pop("active_experts")
    url = options.pop("judge")
    model = options.pop("judge_model")
    from megatron_bar.evaluation.benchmarks.folder import evaluate_folder
    from megatron_bar.evaluation.benchmarks.table import table
    from megatron_bar.evaluation.results import write_results
    from megatron_bar.parallel.state import distributed, is_rank_zero
    from megatron_bar.verifiers.judge import Judge

    judge = Judge(url=url, model=model)
    with distributed(timeout=timedelta(hours=2)):
        results = evaluate_folder(
            **options, judge=judge, active_experts=None if active is None else active_experts(active)
        )
        if is_rank_zero():
            print(*table(results), sep="\n")
            if out:
                write_results(out, results)
