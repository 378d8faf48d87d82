"""Adopts a folder that no stage of ours made: checks what its contents prove and writes its manifest."""

import argparse
from pathlib import Path

from megatron_bar.cli import Call, command_parser, progress
from megatron_bar.errors import BarError

EXAMPLES = (
    "{program} BAR-2x7B-Base --as branched",
    "{program} BAR-2x7B-Math --as expert --of BAR-2x7B-Base --name math",
    "{program} BAR-5x7B --as merged --of BAR-2x7B-Base --names anchor,math,code,safety,tool_use",
)
NEEDS = {"branched": (), "expert": ("of", "name"), "merged": ("names",)}
TAKES = {"branched": (), "expert": ("of", "name", "moved"), "merged": ("of", "names", "moved")}
"""Kind of folder -> the options that it must have, and those that it may have."""


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder without a manifest")
    about = "branched: where experts start from; expert: one trained from it; merged: a model of several"
    parser.add_argument("--as", dest="kind", choices=tuple(NEEDS), required=True, help=about)
    about = "the branched folder of an expert, or of a merged model's experts, which are looked for beside it"
    parser.add_argument("--of", type=Path, metavar="BRANCHED", help=about)
    parser.add_argument("--name", help="the expert's")
    about = "of a merged model's experts, in the order of the slots"
    parser.add_argument("--names", metavar="anchor,NAME,...", help=about)
    about = "how far the anchor may lie from BRANCHED's, as a share of each tensor's norm (default 0.25)"
    parser.add_argument("--moved", type=float, metavar="SHARE", help=about)
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    for option in ("of", "name", "names", "moved"):
        given = getattr(args, option) is not None
        if given and option not in TAKES[args.kind]:
            raise BarError(f"--as {args.kind}: expected no --{option}, got one")
        if not given and option in NEEDS[args.kind]:
            raise BarError(f"--as {args.kind}: expected --{option}, got none")
    from megatron_bar.experts.adopt import MOVED, adopt_branched, adopt_expert, adopt_merged

    moved = MOVED if args.moved is None else args.moved
    if args.kind == "branched":
        made = adopt_branched(args.folder, progress=progress)
    elif args.kind == "expert":
        made = adopt_expert(args.folder, args.of, args.name, moved=moved, progress=progress)
    else:
        made = adopt_merged(args.folder, args.names.split(","), args.of, moved=moved, progress=progress)
    print(*made.notes, sep="\n")
    print(f"{args.folder}: adopted as {args.kind}, its tensors as they were; manifest.json written")
