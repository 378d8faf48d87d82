"""Two dense OLMo 2 folders -> one FlexOlmo folder {anchor, domain expert}."""

import argparse
from pathlib import Path
from typing import get_args

from megatron_bar.cli import progress, run
from megatron_bar.experts.branch import RouterInit, branch
from megatron_bar.weights.describe import tick_table
from megatron_bar.weights.writer import WriteOptions, parse_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/branch_expert.py --anchor BAR-7B --domain-init OLMo-2-1124-7B --out branched --seed 1",
    )
    parser.add_argument("--anchor", type=Path, required=True, metavar="HF", help="post-trained: expert 0 and everything shared")
    parser.add_argument("--domain-init", type=Path, required=True, metavar="HF", help="pretrained: the FFN of expert 1")
    parser.add_argument("--out", type=Path, required=True, metavar="HF", help="a new or empty folder")
    parser.add_argument("--router-init", choices=get_args(RouterInit), default="normal", help="default: normal, N(0, 0.02)")
    parser.add_argument("--seed", type=int, default=0, help="of --router-init normal; the same for all experts (default 0)")
    parser.add_argument("--general-text", type=Path, metavar="FILE", help="--router-init domain: text for the anchor's row")
    parser.add_argument("--domain-text", type=Path, metavar="FILE", help="--router-init domain: text for the domain's row")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="default 5GB")
    parser.add_argument(
        "--verify", choices=("none", "weights"), default="weights", help="weights: look at all values, read all back (default)"
    )
    args = parser.parse_args()
    options = WriteOptions(max_shard_bytes=parse_size(args.max_shard_size), verify=args.verify, progress=progress)
    folder, notes = branch(
        args.anchor,
        args.domain_init,
        args.out,
        router_init=args.router_init,
        seed=args.seed,
        general_text=args.general_text,
        domain_text=args.domain_text,
        options=options,
    )
    for note in notes:
        print(f"note: {note}")
    if options.verifies:
        print(*tick_table(folder.tensors, "read back, equal"), sep="\n")
    verified = "verified" if options.verifies else "not verified"
    print(f"{folder.path}: 2 experts, {folder.nbytes:,} bytes, {verified}")


if __name__ == "__main__":
    run(main)
