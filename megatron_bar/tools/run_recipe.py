"""Runs a BAR recipe: all of it, one expert, or one stage; alone or under torchrun.

Run again, it continues where it stopped, on any number of processes. Status 0 only when everything asked for
is there; 75 when a SIGTERM came while it trained, and what was trained is saved.
"""

import argparse
from datetime import timedelta
from pathlib import Path

from megatron_bar.cli import Call, add_changes, command_parser

EXAMPLES = (
    "{program} tiny --out runs/tiny",
    "torchrun --nproc-per-node 2 {script} tiny --out runs/tiny --expert math --stage sft",
    "{program} olmo2_7b --dry-run",
    "{program} olmo2_7b --dry-run --world-size 64",
)


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument(
        "recipe",
        help="tiny, tiny_study, tiny_prenorm, untagged, sparse, smoke, smollm2, smollm2_study, olmo2_1b, "
        "_7b, _13b or _32b, qwen3_8b, llama31_8b, module:function or file.py:function",
    )
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/RECIPE)")
    parser.add_argument("--expert", help="only the steps of this expert")
    parser.add_argument(
        "--stage",
        help="only this stage: pretrain, posttrain, branch, midtrain, sft, rlvr, merge, route, evaluate, "
        "compare, lens, report",
    )
    add_changes(
        parser, "change the recipe, e.g. experts.math.sft.optim.lr=1e-4 or experts.*.sft.parallel.tensor=2"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done, stage by stage, and what trains"
    )
    parser.add_argument(
        "--world-size",
        type=int,
        metavar="N",
        help="with --dry-run: build every stage's model on each of N ranks, one after the other and without "
        "memory, and check that they fit together",
    )
    args = parser.parse_args(call.arguments)
    if args.world_size is not None and (args.world_size < 1 or not args.dry_run):
        parser.error("--world-size: expected a positive number, and --dry-run")
    return args


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.config import override
    from megatron_bar.parallel.state import distributed, is_rank_zero
    from megatron_bar.planner.dry_run import describe, rehearsed
    from megatron_bar.recipes import load_recipe
    from megatron_bar.run.pipeline import Pipeline

    def say(line: str) -> None:
        if is_rank_zero():
            print(line, flush=True)

    recipe = override(load_recipe(args.recipe), args.changes)
    pipeline = Pipeline(recipe, args.out or Path("runs") / recipe.name, say)
    steps = pipeline.select(expert=args.expert, stage=args.stage)
    if args.dry_run:
        pipeline.check(steps, args.world_size)
        pipeline.check_rows(steps, keep=False)
        if args.world_size is not None:
            for line in rehearsed(pipeline, steps, args.world_size):
                print(line, flush=True)
            return
        print(*describe(recipe, pipeline.shape), sep="\n")
        return
    with distributed(timeout=timedelta(hours=2)):
        pipeline.run(steps)
        if is_rank_zero() and steps[-1].stage == "report":
            print(pipeline.folder.path(steps[-1].name).read_text(encoding="utf-8"))
