"""Shows where a model sends the tokens of a text: each in the colour of the expert with the largest router weight."""

import argparse
import sys
from pathlib import Path

from megatron_bar.cli import run
from megatron_bar.errors import BarError

EXAMPLE = """examples:
  python tools/route.py runs/tiny/final "What is 3 * 4 + 5?" --chat
  python tools/route.py runs/tiny/final --file notes.txt --layer 2"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="HF", help="a folder with experts and a tokenizer")
    parser.add_argument("text", nargs="?", help="the text (or --file)")
    parser.add_argument("--file", type=Path, help="read the text from there, - for stdin")
    parser.add_argument("--chat", action="store_true", help="the text is a user's message, followed by the start of an answer")
    parser.add_argument("--template", choices=("tulu", "chatml", "own"), default="tulu", help="of --chat (default tulu)")
    parser.add_argument("--layer", type=int, help="of this layer alone, from 1 (default: the mean over layers)")
    return parser.parse_args()


def read(file: Path) -> str:
    try:
        return (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BarError(f"{file}: expected UTF-8 text, got {error}") from None


def main() -> None:
    args = parse()
    if (args.text is None) == (args.file is None):
        raise BarError(f"text: expected it as an argument or by --file, got {'neither' if args.text is None else 'both'}")
    text = args.text if args.file is None else read(args.file)
    from megatron_bar.evaluation.route import route

    route(args.model, text, template=args.template if args.chat else None, layer=args.layer)


if __name__ == "__main__":
    run(main)
