"""Merges N experts trained from one branched folder into one folder with N+1 experts."""

import argparse
from pathlib import Path
from typing import get_args

from megatron_bar.cli import Call, add_deltas, add_folder_out, add_verify, command_parser, progress
from megatron_bar.errors import BarError
from megatron_bar.experts.choices import Method

EXAMPLE = "{program} --anchor branched --expert math=math --expert code=code --out merged"


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, EXAMPLE)
    parser.add_argument(
        "--anchor",
        type=Path,
        required=True,
        metavar="HF",
        help="the branched folder all experts started from",
    )
    parser.add_argument(
        "--expert",
        action="append",
        required=True,
        metavar="NAME=HF",
        help="an expert; again for each, in the order of the slots 1, 2, ...",
    )
    add_folder_out(parser)
    parser.add_argument(
        "--shared",
        choices=get_args(Method),
        default="mean",
        help="how anchor and shared tensors are combined (default mean)",
    )
    parser.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="NAME=W",
        help="of weighted: again for each input, anchor=W too",
    )
    add_deltas(parser, seed="dare's draws")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="write what the experts did to the shared tensors, as Markdown",
    )
    add_verify(parser)
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.experts.merge import merge, parse_experts
    from megatron_bar.experts.merge_report import markdown, measure
    from megatron_bar.experts.shared import Combination
    from megatron_bar.weights.describe import tick_table
    from megatron_bar.weights.manifest import ANCHOR, read_manifest
    from megatron_bar.weights.writer import WriteOptions, parse_size

    size = parse_size(args.max_shard_size)
    options = WriteOptions(max_shard_bytes=size, verify=args.verify, progress=progress)
    experts = parse_experts(args.expert)
    shared = Combination(
        method=args.shared,
        weights=_weights(args.weight, [ANCHOR, *experts]),
        scale=args.scale,
        density=args.density,
        seed=args.seed,
    )
    folder = merge(args.anchor, experts, args.out, shared=shared, options=options)
    if args.report:
        measured = measure(args.anchor, experts, progress=progress)
        args.report.write_text(markdown(measured, list(experts)), encoding="utf-8")
    for note in read_manifest(folder.path).notes:
        print(f"note: {note}")
    if options.verifies:
        print(*tick_table(folder.tensors, "read back, equal"), sep="\n")
    verified = "verified" if options.verifies else "not verified"
    print(f"{folder.path}: {folder.config.num_experts} experts, {folder.nbytes:,} bytes, {verified}")


def _weights(given: list[str], names: list[str]) -> tuple[float, ...]:
    """Returns them in the order of ``names``, each of which is given once; or none where none is given."""
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise BarError(f"weight expected as NAME=NUMBER, got {text!r}") from None
        if name not in names or name in found:
            raise BarError(f"weight expected once for each of {', '.join(names)}, got {text!r}")
        found[name] = number
    if given and len(found) < len(names):
        missing = ", ".join(name for name in names if name not in found)
        raise BarError(f"weight expected for each of {', '.join(names)}, missing {missing}")
    return tuple(found[name] for name in names) if given else ()
