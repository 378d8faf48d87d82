"""An OLMo 2 or FlexOlmo folder -> a checkpoint in Megatron's torch_dist format, which every layout loads."""

import argparse
from pathlib import Path

from megatron_bar.cli import progress, run
from megatron_bar.conversion.convert import import_folder
from megatron_bar.weights.describe import tick_table
from megatron_bar.weights.hf_config import tensor_shapes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/import_hf.py --hf BAR-5x7B --out checkpoint",
    )
    parser.add_argument("--hf", type=Path, required=True, metavar="HF", help="config.json, safetensors and tokenizer")
    parser.add_argument("--out", type=Path, required=True, metavar="CKPT", help="a new or empty folder")
    parser.add_argument(
        "--verify", choices=("none", "weights"), default="weights", help="weights: read back and compare hashes (default)"
    )
    args = parser.parse_args()

    config = import_folder(args.hf, args.out, verify=args.verify, progress=progress)
    if args.verify != "none":
        print(*tick_table(tensor_shapes(config), "read back, equal"), sep="\n")
    said = "not verified" if args.verify == "none" else "verified bit for bit"
    print(f"{args.out}: checkpoint of {args.hf}, {said}")


if __name__ == "__main__":
    run(main)
