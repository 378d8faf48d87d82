"""What each GPU sends in a training step of a recipe, by formula: GB, a table in Markdown.

python tools/traffic.py olmo2_7b
python tools/traffic.py olmo2_7b --stage route --world-size 8 64 --set route.parallel.expert=8
"""

import argparse
from pathlib import Path

from megatron_bar import cli


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="as examples/pretrain_bar.py takes it")
    parser.add_argument("--stage", help="only this stage")
    parser.add_argument(
        "--world-size", type=int, nargs="+", default=[8, 16, 32, 64], metavar="N", help="GPUs (default: 8 16 32 64)"
    )
    parser.add_argument(
        "--set", dest="changes", nargs="+", action="extend", default=[], metavar="A.B=VALUE", help="change the recipe"
    )
    return parser.parse_args()


def main() -> None:
    args = parse()
    from megatron_bar.config import override
    from megatron_bar.planner.dry_run import traffic
    from megatron_bar.recipes import load_recipe
    from megatron_bar.run.pipeline import Pipeline

    recipe = override(load_recipe(args.recipe), args.changes)
    pipeline = Pipeline(recipe, Path("runs") / recipe.name)
    print(*traffic(pipeline, pipeline.select(stage=args.stage), tuple(args.world_size)), sep="\n")


if __name__ == "__main__":
    cli.run(main)
