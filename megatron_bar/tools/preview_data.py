"""Shows what training will see: packed samples token by token, and how much of each source is learnt.

Green is trained, dim is read only, reversed is a special token, a bar ends a document.
"""

import argparse
from pathlib import Path

from megatron_bar.cli import Call, command_parser
from megatron_bar.data.templates import NAMES

EXAMPLES = (
    "{program} --input runs/tiny/world/sft_math.jsonl --tokenizer runs/tiny/anchor",
    "{program} --input sft.jsonl#200 --input general.jsonl#200 --template chatml --tokenizer HF",
)


def parse(call: Call) -> argparse.Namespace:
    parser = command_parser(call, __doc__, *EXAMPLES)
    parser.add_argument(
        "--input",
        dest="inputs",
        type=Path,
        required=True,
        action="append",
        help="rows as for bar preprocess; may be repeated",
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="a Hugging Face folder, or a SentencePiece .model"
    )
    parser.add_argument(
        "--kind", choices=("text", "fim", "chat"), default="chat", help="of the rows (default chat)"
    )
    parser.add_argument("--template", choices=NAMES, default="tulu", help="of chats (default tulu)")
    parser.add_argument("--last-turn", action="store_true", help="learn a chat's last answer only")
    parser.add_argument(
        "--packing", choices=("documents", "cut", "cut_masked"), default="documents", help="default documents"
    )
    parser.add_argument("--length", type=int, default=512, help="tokens in a row (default 512)")
    parser.add_argument("--rows", type=int, default=200, help="rows read of each source (default 200)")
    parser.add_argument("--samples", type=int, default=2, help="packed rows shown (default 2)")
    return parser.parse_args(call.arguments)


def main(call: Call) -> None:
    options = vars(parse(call))
    from megatron_bar.data.preview import preview

    preview(**options)
