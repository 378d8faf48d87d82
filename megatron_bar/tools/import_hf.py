"""Imports a folder, dense or a mixture, as a Megatron checkpoint (torch_dist), which every layout loads."""

import argparse
from pathlib import Path

from megatron_bar.cli import Call, command_parser, progress

EXAMPLE = "{program} --hf BAR-5x7B --out checkpoint"


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, EXAMPLE)
    parser.add_argument(
        "--hf", type=Path, required=True, metavar="HF", help="config.json, safetensors and tokenizer"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="CKPT", help="a new or empty folder")
    parser.add_argument(
        "--verify",
        choices=("none", "weights"),
        default="weights",
        help="weights: read back and compare hashes (default)",
    )
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.conversion.convert import import_folder
    from megatron_bar.weights.describe import tick_table
    from megatron_bar.weights.folder import Folder
    from megatron_bar.weights.hf_config import tensor_shapes

    config = import_folder(args.hf, args.out, verify=args.verify, progress=progress)
    for note in Folder.open(args.hf).notes:
        print(f"note: {note}")
    if args.verify != "none":
        print(*tick_table(tensor_shapes(config), "read back, equal"), sep="\n")
    said = "not verified" if args.verify == "none" else "verified bit for bit"
    print(f"{args.out}: checkpoint of {args.hf}, {said}")
