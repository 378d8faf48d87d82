"""Merges dense folders by their mean, or by BTX as a mixture of FFNs: BAR's two baselines."""

import argparse
from typing import get_args

from megatron_bar.cli import Call, add_deltas, add_folder_out, command_parser, progress
from megatron_bar.errors import BarError
from megatron_bar.experts.choices import Method

EXAMPLE = "{program} --expert anchor=anchor --expert math=math --how btx --out mixture"
METHODS = tuple(method for method in get_args(Method) if method not in ("weighted", "first"))


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, EXAMPLE)
    parser.add_argument(
        "--expert",
        action="append",
        required=True,
        metavar="NAME=HF",
        help="two or more; btx: the slots 0, 1, ...",
    )
    parser.add_argument(
        "--how", choices=("mean", "btx"), required=True, help="mean: one dense model; btx: one mixture"
    )
    add_folder_out(parser)
    parser.add_argument(
        "--shared",
        choices=METHODS,
        default="mean",
        help="how tensors are combined, the first folder the base",
    )
    parser.add_argument("--shared-from", metavar="NAME", help="of btx: take what is not an FFN from this one")
    add_deltas(parser, seed="dare's draws and btx's router rows")
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.experts.btx import btx
    from megatron_bar.experts.dense_merge import dense_merge
    from megatron_bar.experts.merge import parse_experts
    from megatron_bar.experts.shared import Combination
    from megatron_bar.weights.describe import tick_table
    from megatron_bar.weights.manifest import read_manifest
    from megatron_bar.weights.writer import WriteOptions, parse_size

    shared = Combination(method=args.shared, scale=args.scale, density=args.density, seed=args.seed)
    options = WriteOptions(max_shard_bytes=parse_size(args.max_shard_size), progress=progress)
    how = {"shared": shared, "options": options}
    if args.how == "btx":
        how |= {"shared_from": args.shared_from, "seed": args.seed}
    elif args.shared_from:
        raise BarError("--shared-from expected with --how btx, got --how mean")
    folder = {"mean": dense_merge, "btx": btx}[args.how](parse_experts(args.expert), args.out, **how)
    print(*(f"note: {note}" for note in read_manifest(folder.path).notes), sep="\n")
    print(*tick_table(folder.tensors, "read back, equal"), sep="\n")
    size = f"{folder.config.num_experts} experts" if folder.config.num_experts else "dense"
    print(f"{folder.path}: {size}, {folder.nbytes:,} bytes, verified")
