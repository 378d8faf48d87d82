"""Proves from two folders that a stage moved nothing it may not have moved, bit by bit."""

import argparse
from pathlib import Path

from megatron_bar.cli import Call, command_parser, progress
from megatron_bar.weights.groups import POLICIES

EXAMPLE = "{program} math-midtrain math-sft --stage sft"


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, EXAMPLE)
    parser.add_argument("before", type=Path, metavar="BEFORE", help="the folder the stage read")
    parser.add_argument("after", type=Path, metavar="AFTER", help="the folder the stage wrote")
    parser.add_argument("--stage", choices=tuple(POLICIES), required=True, help="the freeze policy to prove")
    parser.add_argument(
        "--strict", action="store_true", help="fail too where a group that trains has not moved at all"
    )
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.experts.proof import verify_frozen
    from megatron_bar.weights.folder import Folder

    policy = POLICIES[args.stage]
    before = Folder.open(args.before)
    after = Folder.open(args.after)
    for row in verify_frozen(before, after, policy, strict=args.strict, progress=progress):
        verdict = "DID NOT MOVE" if row.stuck else "trained" if row.trains else "frozen, bit-identical"
        print(f"{row.group:15} {row.tensors:6} tensors {row.changed:6} changed  {verdict}")
    if policy.anchor_row_frozen:
        print("router row 0: frozen, bit-identical")
