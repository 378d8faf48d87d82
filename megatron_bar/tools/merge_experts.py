"""Merges N experts of one branched folder, or N dense fine-tunes of one base, into a mixture of N+1.

Fine-tunes (--base and --dense) become experts by BTX."""

import argparse
from pathlib import Path
from typing import get_args

from megatron_bar.cli import Call, add_deltas, add_folder_out, add_verify, command_parser, progress
from megatron_bar.errors import BarError
from megatron_bar.experts.choices import Method

EXAMPLES = (
    "{program} --anchor branched --expert math=math --expert code=code --out merged",
    "{program} --base Llama-3.2-1B --dense math=tuned/math --dense code=tuned/code --out mixture",
)


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument(
        "--anchor",
        type=Path,
        metavar="HF",
        help="the branched folder all experts started from",
    )
    parser.add_argument(
        "--expert",
        action="append",
        default=[],
        metavar="NAME=HF",
        help="an expert; again for each, in the order of the slots 1, 2, ...",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="HF",
        help="in place of --anchor: the dense model, which becomes the anchor",
    )
    parser.add_argument(
        "--dense",
        action="append",
        default=[],
        metavar="NAME=HF",
        help="in place of --expert: a dense model that was fine-tuned from --base; its FFNs are an expert",
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
    add_deltas(parser, seed="dare's draws and of new router rows")
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
    from megatron_bar.experts.btx import mix
    from megatron_bar.experts.merge import merge, parse_experts
    from megatron_bar.experts.merge_report import markdown, measure
    from megatron_bar.experts.shared import Combination
    from megatron_bar.weights.describe import tick_table
    from megatron_bar.weights.manifest import ANCHOR, read_manifest
    from megatron_bar.weights.writer import WriteOptions, parse_size

    _check(args)
    size = parse_size(args.max_shard_size)
    options = WriteOptions(max_shard_bytes=size, verify=args.verify, progress=progress)
    experts = parse_experts(args.expert or args.dense)
    shared = Combination(
        method=args.shared,
        weights=_weights(args.weight, [ANCHOR, *experts]),
        scale=args.scale,
        density=args.density,
        seed=args.seed,
    )
    if args.base:
        folder = mix(args.base, experts, args.out, shared=shared, seed=args.seed, options=options)
    else:
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


def _check(args: argparse.Namespace) -> None:
    """Raises BarError unless the inputs are of one kind."""
    branched = {"--anchor": args.anchor, "--expert": args.expert}
    dense = {"--base": args.base, "--dense": args.dense}
    given = [name for name, value in (branched | dense).items() if value]
    if given not in (list(branched), list(dense)):
        raise BarError(
            "inputs expected as --anchor with --expert or as --base with --dense, "
            f"got {', '.join(given) or 'neither'}"
        )
    if args.base and args.report:
        raise BarError("--report expected with --anchor, which has what experts started from, got --base")


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
