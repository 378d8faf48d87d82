"""An OLMo 2 or FlexOlmo folder -> a checkpoint in Megatron's torch_dist format; alone or under torchrun."""

import argparse
from pathlib import Path

from megatron_bar.cli import progress, run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/import_hf.py --hf BAR-5x7B --out checkpoint",
    )
    parser.add_argument("--hf", type=Path, required=True, metavar="HF", help="config.json, safetensors and tokenizer")
    parser.add_argument("--out", type=Path, required=True, metavar="CKPT", help="a new or empty folder")
    for name in ("tensor", "pipeline", "expert"):
        parser.add_argument(f"--{name}", type=int, default=1, metavar="N", help=f"{name} parallelism (default 1)")
    args = parser.parse_args()

    from megatron_bar.models.convert import import_folder  # here: Megatron takes seconds to import
    from megatron_bar.parallel.state import ParallelConfig, distributed, is_rank_zero

    with distributed():
        layout = ParallelConfig(tensor=args.tensor, pipeline=args.pipeline, expert=args.expert)
        import_folder(args.hf, args.out, layout=layout, progress=progress)
        if is_rank_zero():
            print(f"{args.out}: checkpoint of {args.hf}, verified bit for bit")


if __name__ == "__main__":
    run(main)
