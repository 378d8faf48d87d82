"""Shows shape, parameters, experts, lineage, routing and hashes of a Hugging Face folder or a checkpoint."""

import argparse
from pathlib import Path

from megatron_bar.cli import Call, command_parser, progress

EXAMPLE = "{program} merged"


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, EXAMPLE)
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a folder with config.json and safetensors, or a checkpoint"
    )
    parser.add_argument("--no-hashes", action="store_true", help="read the headers only: instant on any size")
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.weights.describe import describe

    print("\n".join(describe(args.path, hashes=not args.no_hashes, progress=progress)))
