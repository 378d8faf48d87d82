"""Exports a Megatron checkpoint (torch_dist) of any layout as the Hugging Face folder of its model."""

import argparse
from pathlib import Path

from megatron_bar.cli import Call, add_folder_out, command_parser, progress

EXAMPLE = "{program} --checkpoint checkpoint --out BAR-5x7B --verify logits"


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, EXAMPLE)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="CKPT",
        help="as bar import or Megatron-Core writes it",
    )
    add_folder_out(parser)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: the checkpoint's own")
    parser.add_argument(
        "--verify",
        choices=("none", "weights", "logits"),
        default="weights",
        help="weights: read back and compare hashes (default); logits: also run transformers on the folder, "
        "in fp32",
    )
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.conversion.convert import export_checkpoint
    from megatron_bar.weights.describe import tick_table
    from megatron_bar.weights.hf_config import tensor_shapes
    from megatron_bar.weights.writer import WriteOptions, parse_size

    options = WriteOptions(
        max_shard_bytes=parse_size(args.max_shard_size),
        verify="none" if args.verify == "none" else "weights",
        progress=progress,
    )
    check = None
    if args.verify == "logits":
        # Here, since Megatron takes seconds to import.
        from megatron_bar.models.logits import LOGITS_TOLERANCE, compare_logits

        check = compare_logits
    how = {"dtype": args.dtype, "check": check, "options": options}
    config, figure = export_checkpoint(args.checkpoint, args.out, **how)
    if options.verifies:
        print(*tick_table(tensor_shapes(config), "read back, equal"), sep="\n")
    if figure is not None:
        limit = f"limit {LOGITS_TOLERANCE:g}, fp32"
        print(f"  \u2713 logits within {figure:.1e} of those of transformers ({limit})")
    print(f"{args.out}: {'verified' if options.verifies else 'not verified'}")
