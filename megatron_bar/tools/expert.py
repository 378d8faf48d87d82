"""Extracts one expert as an artifact; adds, replaces, removes or lists the experts of a merged model."""

import argparse
from pathlib import Path

from megatron_bar.cli import Call, add_folder_out, add_verify, command_parser, progress

EXAMPLES = (
    "{program} extract --expert math-rlvr --anchor branched --out math-artifact",
    "{program} extract --expert math-rlvr --anchor branched --rank 32 --out math-small",
    "{program} list --model final",
    "{program} replace --model final --expert math=math-2 --out final-2      then train the router again",
    "{program} add --model final --expert law=law-sft --artifacts experts/ --out final-3",
    "{program} remove --model final --name math --out final-4",
)
CHANGES = {"add": "one expert more", "replace": "another in the place of one", "remove": "one expert less"}


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    text = "a two-expert folder -> what its training made: FFNs, routers, changed shared tensors"
    one = command("extract", text)
    one.add_argument("--expert", type=Path, required=True, metavar="HF", help="a trained two-expert folder")
    about = "the branched folder that it was trained from"
    one.add_argument("--anchor", type=Path, required=True, metavar="HF", help=about)
    about = (
        "keep what training added to each matrix in rank R: smaller, and near to the expert (default: exact)"
    )
    one.add_argument("--rank", type=int, metavar="R", help=about)
    for name, change in CHANGES.items():
        text = (
            f"a merged model with {change}, merged anew from what it was merged from; its router is then "
            f"stale"
        )
        _add_change(command(name, text), named=name == "remove")
    for one in list(commands.choices.values()):
        add_folder_out(one)
        add_verify(one)
    one = command("list", "the experts of a folder: slot, name, stages, what they were merged from")
    one.add_argument("--model", type=Path, required=True, metavar="HF", help="any folder with a manifest")
    return parser.parse_args(call.arguments)


def _add_change(parser: argparse.ArgumentParser, *, named: bool) -> None:
    """Adds what a change of a merged model is given; ``named``: the expert's name alone."""
    about = "a merged model, its router trained or not"
    parser.add_argument("--model", type=Path, required=True, metavar="HF", help=about)
    if named:
        parser.add_argument("--name", required=True, help="the expert's")
    else:
        about = "a trained two-expert folder or an artifact"
        parser.add_argument("--expert", required=True, metavar="NAME=HF", help=about)
    about = "where experts' folders and artifacts lie, besides the model's parent folder; repeatable"
    parser.add_argument("--artifacts", type=Path, action="append", default=[], metavar="DIR", help=about)


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
    size = parse_size(args.max_shard_size)
    options = WriteOptions(max_shard_bytes=size, verify=args.verify, progress=progress)
    verified = "verified" if options.verifies else "not verified"
    if args.command == "extract":
        made = extract(args.expert, args.anchor, args.out, rank=args.rank, options=options)
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
