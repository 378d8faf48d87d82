"""A checkpoint in Megatron's torch_dist format, of any layout -> the Hugging Face folder of its model."""

import argparse
from pathlib import Path

from megatron_bar.cli import progress, run
from megatron_bar.conversion.convert import export_checkpoint
from megatron_bar.weights.describe import tick_table
from megatron_bar.weights.hf_config import tensor_shapes
from megatron_bar.weights.writer import WriteOptions, parse_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/export_hf.py --checkpoint checkpoint --out BAR-5x7B --verify logits",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="CKPT", help="as tools/import_hf.py writes it")
    parser.add_argument("--out", type=Path, required=True, metavar="HF", help="a new or empty folder")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: the checkpoint's own")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="default 5GB")
    parser.add_argument(
        "--verify",
        choices=("none", "weights", "logits"),
        default="weights",
        help="weights: read back and compare hashes (default); logits: also run transformers on the folder, in fp32",
    )
    args = parser.parse_args()
    options = WriteOptions(
        max_shard_bytes=parse_size(args.max_shard_size),
        verify="none" if args.verify == "none" else "weights",
        progress=progress,
    )

    check = None
    if args.verify == "logits":
        from megatron_bar.models.logits import LOGITS_TOLERANCE, compare_logits  # here: Megatron takes seconds to import

        check = compare_logits
    config, figure = export_checkpoint(
        args.checkpoint,
        args.out,
        dtype=args.dtype,
        check=check,
        options=options,
    )
    if options.verifies:
        print(*tick_table(tensor_shapes(config), "read back, equal"), sep="\n")
    if figure is not None:
        print(f"  \u2713 logits within {figure:.1e} of those of transformers (limit {LOGITS_TOLERANCE:g}, fp32)")
    print(f"{args.out}: {'verified' if options.verifies else 'not verified'}")


if __name__ == "__main__":
    run(main)
