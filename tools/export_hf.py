"""A checkpoint in Megatron's torch_dist format -> the Hugging Face folder of its model; alone or under torchrun."""

import argparse
from pathlib import Path

from megatron_bar.cli import progress, run
from megatron_bar.weights.writer import parse_size


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
    for name in ("tensor", "pipeline", "expert"):
        parser.add_argument(f"--{name}", type=int, default=1, metavar="N", help=f"{name} parallelism (default 1)")
    args = parser.parse_args()
    max_shard_bytes = parse_size(args.max_shard_size)

    from megatron_bar.models.convert import LOGITS_TOLERANCE, export_checkpoint  # here: Megatron takes seconds to import
    from megatron_bar.parallel.state import ParallelConfig, distributed, is_rank_zero

    with distributed():
        figure = export_checkpoint(
            args.checkpoint,
            args.out,
            layout=ParallelConfig(tensor=args.tensor, pipeline=args.pipeline, expert=args.expert),
            dtype=args.dtype,
            max_shard_bytes=max_shard_bytes,
            verify=args.verify,
            progress=progress,
        )
        if is_rank_zero():
            said = "not verified" if args.verify == "none" else "verified"
            if figure is not None:
                said += f", logits within {figure:.1e} of those of transformers (limit {LOGITS_TOLERANCE:g}, fp32)"
            print(f"{args.out}: {said}")


if __name__ == "__main__":
    run(main)
