"""Turns rows of text or chats into token files that training maps, with a manifest.

They are OUT/tokens.bin, .idx, and .learn for chats. It uses all cores; killed and started again by the same
command, it goes on where it was and ends with the same bytes.
"""

import argparse
import os
import time
from pathlib import Path

from megatron_bar.cli import Call, command_parser
from megatron_bar.data.templates import NAMES

EXAMPLES = (
    "{program} --input web.jsonl.zst --tokenizer OLMo-2-1124-7B --out tokens/web",
    "{program} --input sft.jsonl#500 --kind chat --template tulu --tokenizer OLMo-2-1124-7B --out tokens/sft",
    "{program} --input allenai/tulu-3-sft-mixture --kind chat --tokenizer OLMo-2-1124-7B --out tokens/tulu",
)


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        help=".jsonl (.gz, .zst), .parquet, a folder, or owner/name; #500: 500 rows",
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="a Hugging Face folder, or a SentencePiece .model"
    )
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument(
        "--kind",
        choices=("text", "fim", "chat"),
        default="text",
        help="rows of text, of text rendered for filling in the middle, or of messages (default text)",
    )
    parser.add_argument("--template", choices=NAMES, default="tulu", help="of chats (default tulu)")
    parser.add_argument("--last-turn", action="store_true", help="learn a chat's last answer only")
    parser.add_argument(
        "--share", type=float, default=1.0, help="a seeded sample of the rows (default 1: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of that sample (default 0)")
    parser.add_argument(
        "--dtype", choices=("uint16", "int32"), help="of the ids (default: what the vocabulary needs)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="refuse a text that its tokens do not decode back to"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave bad rows out and report them, instead of stopping"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: all cores")
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    args = parse(call)
    from megatron_bar.cli import ProgressLines
    from megatron_bar.data.preprocess import Options, preprocess
    from megatron_bar.data.sources import Source

    kept = ("template", "seed", "verify", "skip_bad", "dtype")
    options = Options(**{name: vars(args)[name] for name in kept})
    source = Source(path=args.input, kind=args.kind, share=args.share, last_turn=args.last_turn)
    place = source.place
    plain = place.is_file() and place.suffix == ".jsonl" and source.share == 1 and source.limit is None
    began = time.monotonic()
    meter = ProgressLines(str(args.input), total=place.stat().st_size if plain else None)
    processes = max(1, args.processes or 1)
    many = {"processes": processes, "say": meter.advance}
    found = preprocess(source, Path(), args.tokenizer, args.out, options, **many)
    for line in found["bad_rows"][:20]:
        print(f"skipped {line}")
    left_out = f", {len(found['bad_rows']):,} bad rows left out" if found["bad_rows"] else ""
    learnt = found["learnt"] / found["tokens"]
    print(
        f"{args.out}: {found['documents']:,} documents, {found['tokens']:,} tokens ({learnt:.1%} learnt) "
        f"as {found['dtype']} in {time.monotonic() - began:.1f} s{left_out}"
    )
