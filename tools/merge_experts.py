"""N experts trained from one branched folder -> one FlexOlmo folder with N+1 experts."""

import argparse
from pathlib import Path

from megatron_bar.cli import progress, run
from megatron_bar.experts.merge import SHARED, merge, parse_experts
from megatron_bar.weights.manifest import read_manifest
from megatron_bar.weights.writer import parse_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/merge_experts.py --anchor branched --expert math=math --expert code=code --out merged",
    )
    parser.add_argument("--anchor", type=Path, required=True, metavar="HF", help="the branched folder all experts started from")
    parser.add_argument("--expert", action="append", required=True, metavar="NAME=HF", help="in the order of the slots 1, 2, ...")
    parser.add_argument("--out", type=Path, required=True, metavar="HF", help="a new or empty folder")
    parser.add_argument("--shared", choices=tuple(SHARED), default="mean", help="how anchor and shared tensors are combined")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="default 5GB")
    args = parser.parse_args()
    folder = merge(
        args.anchor,
        parse_experts(args.expert),
        args.out,
        shared=args.shared,
        max_shard_bytes=parse_size(args.max_shard_size),
        progress=progress,
    )
    for note in read_manifest(folder.path).notes:
        print(f"note: {note}")
    print(f"{folder.path}: {folder.config.num_experts} experts, {folder.nbytes:,} bytes, verified")


if __name__ == "__main__":
    run(main)
