"""Shows where a model sends the tokens of a text, and how many experts each layer needs.

Each token has the colour of the expert with the largest router weight. --scan tries fewer experts layer by
layer, without training; --set-active writes a folder with the numbers that it chose.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from megatron_bar.cli import Call, active_experts, command_parser
from megatron_bar.data.templates import NAMES
from megatron_bar.errors import BarError

EXAMPLES = (
    '{program} runs/tiny/final "What is 3 * 4 + 5?" --chat',
    "{program} runs/tiny/final --file notes.txt --layer 2",
    "{program} runs/tiny/final --scan runs/tiny/world/validation_*.jsonl --tolerance 0.01 --out active.json",
    "{program} runs/tiny/final --scan runs/tiny/world/validation_*.jsonl --mean 2 --out active.json",
    "{program} runs/tiny/final --set-active active.json --out final_by_layer",
)
NOTE = (
    "note: transformers and vLLM know one number for all layers: they will use {k} (num_experts_per_tok); "
    "this project's tools read the list"
)


WITH = {
    "chat": ("text", "file"),
    "layer": ("text", "file"),
    "tolerance": ("scan",),
    "mean": ("scan",),
    "out": ("scan", "set_active"),
}
"""Options, and what is asked for where they mean something."""


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument("model", type=Path, metavar="HF", help="a folder with experts and a tokenizer")
    parser.add_argument("text", nargs="?", help="the text (or --file)")
    parser.add_argument("--file", type=Path, help="read the text from there, - for stdin")
    parser.add_argument(
        "--chat", action="store_true", help="the text is a user's message, followed by the start of an answer"
    )
    parser.add_argument(
        "--template",
        choices=NAMES,
        default="tulu",
        help="of --chat and --scan (default tulu)",
    )
    parser.add_argument(
        "--layer", type=int, help="of this layer alone, from 1 (default: the mean over layers)"
    )
    scan = parser.add_argument_group("active experts")
    scan.add_argument(
        "--scan", type=Path, nargs="+", metavar="JSONL", help="held-out chats, a file per domain"
    )
    scan.add_argument(
        "--tolerance",
        type=float,
        metavar="T",
        help="nats per token that may be lost (default 0.01, if there is no --mean)",
    )
    scan.add_argument(
        "--mean",
        type=float,
        metavar="M",
        help="experts a layer that are wanted, over all layers, whatever it costs",
    )
    scan.add_argument(
        "--set-active", metavar="K", help="write the folder with so many: K, K,K,... by layer, or FILE.json"
    )
    scan.add_argument(
        "--out", type=Path, metavar="PATH", help="--scan: JSON file of the numbers; --set-active: folder"
    )
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    given = [name for name in ("text", "file", "scan", "set_active") if getattr(args, name) is not None]
    if len(given) != 1:
        wanted = "a text, --file, --scan or --set-active"
        raise BarError(f"expected one of {wanted}, got {' and '.join(given) or 'none'}")
    for option, asked in WITH.items():
        if getattr(args, option) not in (None, False) and given[0] not in asked:
            raise BarError(
                f"--{option}: expected with {' or '.join(map(_flag, asked))}, got {_flag(given[0])}"
            )
    if args.scan is not None:
        scan(args)
    elif args.set_active is not None:
        set_active(args)
    else:
        from megatron_bar.evaluation.routing.terminal import route

        text = args.text if args.file is None else read(args.file)
        route(args.model, text, template=args.template if args.chat else None, layer=args.layer)


def _flag(name: str) -> str:
    return "a text" if name == "text" else f"--{name.replace('_', '-')}"


def read(file: Path) -> str:
    try:
        return (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BarError(f"{file}: expected UTF-8 text, got {error}") from None


def scan(args: argparse.Namespace) -> None:
    from megatron_bar.evaluation.routing.scan import lines, scan_folder
    from megatron_bar.weights.whole import write_whole

    def say(line: str) -> None:
        print(line, flush=True)

    if args.out and args.out.is_dir():
        raise BarError(f"{args.out}: expected a file to write to, got a folder")
    mean = 1.0 if args.mean is None else args.mean
    tolerance = args.tolerance
    if tolerance is None:
        tolerance = 0.01 if args.mean is None else math.inf
    how = {"template": args.template, "tolerance": tolerance, "mean": mean}
    found = scan_folder(args.model, args.scan, **how, say=say)
    print(*lines(found, tolerance), sep="\n")
    if args.out:
        write_whole(args.out, json.dumps(found.chosen) + "\n")


def set_active(args: argparse.Namespace) -> None:
    from megatron_bar.cli import progress
    from megatron_bar.experts.routers import rewrite
    from megatron_bar.weights.hf_config import show_active
    from megatron_bar.weights.writer import WriteOptions

    if args.out is None:
        raise BarError("--set-active: expected --out FOLDER, got none")
    active = active_experts(args.set_active)
    note = f"active experts set to {show_active(active)}"
    options = WriteOptions(progress=progress)
    folder = rewrite(args.model, args.out, active=active, note=note, options=options)
    config = folder.config
    print(
        f"{folder.path}: {show_active(config.experts_per_layer or config.experts_per_token)} active experts"
    )
    if config.experts_per_layer:
        print(NOTE.format(k=config.experts_per_token))
