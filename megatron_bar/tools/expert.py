"""Extracts one expert as an artifact; adds, replaces, removes or lists the experts of a merged model."""

import argparse
from pathlib import Path

from megatron_bar.cli import Call, command_parser, progress

EXAMPLES = (
    "{program} extract --expert math-rlvr --anchor branched --out math-artifact",
    "{program} list --model final",
    "{program} replace --model final --expert math=math-2 --out final-2      then train the router again",
    "{program} add --model final --expert law=law-sft --artifacts experts/ --out final-3",
    "{program} remove --model final --name math --out final-4",
)


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    one = command(
        "extract", "a two-expert folder -> what its training made: FFNs, routers, changed shared tensors"
    )
    one.add_argument("--expert", type=Path, required=True, metavar="HF", help="a trained two-expert folder")
    one.add_argument(
        "--anchor",
        type=Path,
        required=True,
        metavar="HF",
        help="the branched folder that it was trained from",
    )
    changes = {
        "add": "one expert more",
        "replace": "another in the place of one",
        "remove": "one expert less",
    }
    for name, text in changes.items():
        one = command(
            name,
            f"a merged model with {text}, merged anew from what it was merged from; its router is then stale",
        )
        one.add_argument(
            "--model",
            type=Path,
            required=True,
            metavar="HF",
            help="a merged model, its router trained or not",
        )
        if name == "remove":
            one.add_argument("--name", required=True, help="the expert's")
        else:
            one.add_argument(
                "--expert",
                required=True,
                metavar="NAME=HF",
                help="a trained two-expert folder or an artifact",
            )
        one.add_argument(
            "--artifacts",
            type=Path,
            action="append",
            default=[],
            metavar="DIR",
            help="where experts' folders and artifacts lie, besides the model's parent folder; repeatable",
        )
    for one in list(commands.choices.values()):
        one.add_argument("--out", type=Path, required=True, metavar="HF", help="a new or empty folder")
        one.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="default 5GB")
        one.add_argument(
            "--verify",
            choices=("none", "weights"),
            default="weights",
            help="weights: look at all values, read all back (default)",
        )
    command("list", "the experts of a folder: slot, name, stages, what they were merged from").add_argument(
        "--model", type=Path, required=True, metavar="HF", help="any folder with a manifest"
    )
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.experts.artifact import extract
    from megatron_bar.experts.listing import listing
    from megatron_bar.experts.merge import parse_experts
    from megatron_bar.experts.upgrade import Merged, add, remove, replace_expert
    from megatron_bar.weights.writer import WriteOptions, parse_size

    if args.command == "list":
        print("\n".join(listing(args.model)))
        return
    options = WriteOptions(
        max_shard_bytes=parse_size(args.max_shard_size), verify=args.verify, progress=progress
    )
    verified = "verified" if options.verifies else "not verified"
    if args.command == "extract":
        made = extract(args.expert, args.anchor, args.out, options=options)
        size = sum(file.stat().st_size for file in args.out.glob("*.safetensors"))
        print(f"{args.out}: expert {made.experts[1].name}, {size:,} bytes, {verified}")
        return
    model = Merged.open(args.model, args.artifacts)
    if args.command == "remove":
        folder = remove(model, args.name, args.out, options=options)
    else:
        [(name, path)] = parse_experts([args.expert]).items()
        change = add if args.command == "add" else replace_expert
        folder = change(model, name, path, args.out, options=options)
    print("\n".join(listing(folder.path)))
    print(f"{folder.path}: {folder.config.num_experts} experts, {folder.nbytes:,} bytes, {verified}")
