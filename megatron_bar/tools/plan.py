"""Plans how a recipe's stages fit on GPUs: memory by kind, time, and the layout to take.

It needs no GPU. Status 1 where a stage fits in no layout.
"""

import argparse
from pathlib import Path

from megatron_bar.cli import Call, add_changes, command_parser
from megatron_bar.errors import BarError

EXAMPLES = (
    "{program} olmo2_7b --gpus 8 --gpu-memory 80GB",
    "{program} olmo2_7b --gpus 64 --gpu-memory 80GB --stage rlvr --set 'experts.*.rlvr.rl.slots=16'",
)


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument("recipe", help="a name, module:function or file.py:function")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="in all")
    parser.add_argument(
        "--gpu-memory", required=True, metavar="SIZE", help="of one: 80GB (1e9 bytes), 79.6GiB"
    )
    parser.add_argument(
        "--reserve", default="4GB", metavar="SIZE", help="of that, what no tensor can have (default 4GB)"
    )
    parser.add_argument(
        "--gpus-per-node", type=int, default=8, metavar="N", help="that are linked directly (default 8)"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="share of the peak reached, recomputation included (default 0.4)",
    )
    parser.add_argument(
        "--tflops", type=float, default=989, help="peak of one GPU (default 989: H100 SXM, bf16)"
    )
    parser.add_argument(
        "--memory-bandwidth",
        default="3.35TB",
        metavar="SIZE",
        help="of one GPU's memory, a second (default 3.35TB: H100 SXM)",
    )
    parser.add_argument(
        "--disk", default="2GB", metavar="SIZE", help="that a node writes or reads a second (default 2GB)"
    )
    parser.add_argument("--stage", metavar="NAME", help="only this stage: midtrain, sft, rlvr, route ...")
    add_changes(parser)
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.config import override
    from megatron_bar.planner.search import plan
    from megatron_bar.planner.show import lines, refusal
    from megatron_bar.planner.usage import Machine, parse_bytes
    from megatron_bar.recipes import load_recipe
    from megatron_bar.run.pipeline import Pipeline

    machine = Machine(
        gpus=args.gpus,
        memory=parse_bytes(args.gpu_memory),
        reserve=parse_bytes(args.reserve),
        node=args.gpus_per_node,
        tflops=args.tflops,
        mfu=args.mfu,
        bandwidth=parse_bytes(args.memory_bandwidth, "--memory-bandwidth"),
        disk=parse_bytes(args.disk, "--disk"),
    )
    recipe = override(load_recipe(args.recipe), args.changes)
    pipeline = Pipeline(recipe, Path("runs") / recipe.name)
    plans = plan(pipeline, pipeline.select(stage=args.stage), machine)
    if not plans:
        raise BarError(f"--stage {args.stage}: expected one that trains, got none")
    print(*lines(plans, machine), sep="\n", flush=True)
    if problem := refusal(plans, machine):
        raise BarError(problem)
