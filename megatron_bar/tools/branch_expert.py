"""Branches two dense folders of one family into a mixture of an anchor and a domain expert."""

import argparse
from pathlib import Path
from typing import get_args

from megatron_bar.cli import Call, add_folder_out, add_verify, command_parser, progress
from megatron_bar.experts.choices import RouterInit

EXAMPLE = "{program} --anchor BAR-7B --domain-init OLMo-2-1124-7B --out branched --seed 1"


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, EXAMPLE)
    parser.add_argument(
        "--anchor",
        type=Path,
        required=True,
        metavar="HF",
        help="post-trained: expert 0 and everything shared",
    )
    parser.add_argument(
        "--domain-init", type=Path, required=True, metavar="HF", help="pretrained: the FFN of expert 1"
    )
    add_folder_out(parser)
    parser.add_argument(
        "--router-init",
        choices=get_args(RouterInit),
        default="normal",
        help="default: normal, N(0, 0.02) or less",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of --router-init normal; the same for all experts (default 0)"
    )
    parser.add_argument(
        "--general-text",
        type=Path,
        metavar="FILE",
        help="--router-init domain or hidden: text for the anchor's row; normal: to measure logits, where "
        "norms stand before the blocks",
    )
    parser.add_argument("--domain-text", type=Path, metavar="FILE", help="the same for the domain's row")
    add_verify(parser)
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.experts.branch import branch
    from megatron_bar.weights.describe import tick_table
    from megatron_bar.weights.writer import WriteOptions, parse_size

    options = WriteOptions(
        max_shard_bytes=parse_size(args.max_shard_size), verify=args.verify, progress=progress
    )
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
