"""Says what each GPU sends in a training step of a recipe, by formula: GB, a table in Markdown."""

import argparse
from pathlib import Path

from megatron_bar.cli import Call, add_changes, command_parser

EXAMPLES = (
    "{program} olmo2_7b",
    "{program} olmo2_7b --stage route --world-size 8 64 --set route.parallel.expert=8",
)


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument("recipe", help="as bar run takes it")
    parser.add_argument("--stage", help="only this stage")
    parser.add_argument(
        "--world-size",
        type=int,
        nargs="+",
        default=[8, 16, 32, 64],
        metavar="N",
        help="GPUs (default: 8 16 32 64)",
    )
    add_changes(parser)
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.config import override
    from megatron_bar.planner.dry_run import traffic
    from megatron_bar.recipes import load_recipe
    from megatron_bar.run.pipeline import Pipeline

    recipe = override(load_recipe(args.recipe), args.changes)
    pipeline = Pipeline(recipe, Path("runs") / recipe.name)
    steps = pipeline.select(stage=args.stage)
    print(*traffic(pipeline, steps, tuple(args.world_size)), sep="\n")
