"""What the command lines share: how they are called, arguments, how they end and show progress and tables."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from megatron_bar.errors import BarError, shown


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a command, and how its usage and its examples show it."""

    program: str
    """What the user typed: ``bar merge``, or ``python tools/merge_experts.py``."""
    script: str
    """What torchrun starts: ``-m megatron_bar merge``, or ``tools/merge_experts.py``."""
    arguments: Sequence[str]


def command_parser(call: Call, about: str, *examples: str) -> argparse.ArgumentParser:
    """Returns a parser whose help shows ``about`` first and ``examples`` last, in the words of the call.

    In an example {program} and {script} stand for those of the call.
    """
    shown = [example.format(program=call.program, script=call.script) for example in examples]
    return argparse.ArgumentParser(
        prog=call.program,
        description=about,
        epilog=f"example: {shown[0]}" if len(shown) == 1 else "\n  ".join(["examples:", *shown]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_folder_out(parser: argparse.ArgumentParser) -> None:
    """Adds where a Hugging Face folder is written, and how it is split."""
    parser.add_argument("--out", type=Path, required=True, metavar="HF", help="a new or empty folder")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="default 5GB")


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Adds whether what is read and written is looked through."""
    about = "weights: look at all values, read all back (default)"
    parser.add_argument("--verify", choices=("none", "weights"), default="weights", help=about)


def add_changes(parser: argparse.ArgumentParser, about: str = "change the recipe first") -> None:
    """Adds the changes of a recipe, a list of ``path=value`` (see `megatron_bar.config`)."""
    parser.add_argument(
        "--set", dest="changes", nargs="+", action="extend", default=[], metavar="A.B=VALUE", help=about
    )


def add_deltas(parser: argparse.ArgumentParser, seed: str) -> None:
    """Adds the numbers of the merges that combine deltas; ``seed``: of what the seed is."""
    about = "of task-arithmetic, ties and dare: factor of the combined delta (default 1)"
    parser.add_argument("--scale", type=float, default=1.0, help=about)
    about = "of ties and dare: share of a delta's entries that is kept (default 0.2)"
    parser.add_argument("--density", type=float, default=0.2, help=about)
    parser.add_argument("--seed", type=int, default=0, help=f"of {seed} (default 0)")


def add_tensor(parser: argparse._ActionsContainer) -> None:
    """Adds over how many processes a model's layers are cut."""
    about = "tensor parallelism, under torchrun (default 1)"
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help=about)


class Terminal:
    """A text stream through which only `shown` texts go."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(shown(text))
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def colours():
    """Returns a rich console on stdout itself, with its colours: what is printed there must be `shown`."""
    from rich.console import Console

    return Console(file=getattr(sys.stdout, "stream", sys.stdout), highlight=False)


def run(main: Callable[[], None]) -> NoReturn:
    """Calls ``main`` and exits: status 0, or one line and 1 for a user's mistake; a bug keeps its traceback.

    Where nobody reads the output any more (``| head``), it exits with status 1 and no word.
    """
    sys.stdout = Terminal(sys.stdout)
    # As an exception a termination passes through the code that removes half-written folders. Training has
    # its own way.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: terminated"))
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        sys.exit(1)
    except BarError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
    finally:
        sys.stdout = sys.stdout.stream
    sys.exit(0)


def _output_is_closed() -> bool:
    """Returns whether nobody reads stdout, and then sends the rest of its buffer nowhere: the interpreter
    would try again at its end and complain."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar over bytes on stderr, with speed and time left; nothing where stderr is not a terminal."""
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=total)
        yield lambda count: bars.advance(task, count)


def active_experts(text: str) -> int | tuple[int, ...]:
    """Parses an argument: ``2``, ``5,2,2`` (layer by layer), or a JSON file with such a list."""
    try:
        numbers = json.loads(
            Path(text).read_text(encoding="utf-8") if text.endswith(".json") else f"[{text}]"
        )
    except (OSError, ValueError) as error:
        raise BarError(
            f"active experts expected K, K,K,... or a JSON file with a list, got {text!r}: {error}"
        ) from None
    if not isinstance(numbers, list) or not numbers or any(type(k) is not int for k in numbers):
        got = "none" if isinstance(numbers, list) else "no list"
        raise BarError(f"active experts expected a list of whole numbers, got {got} in {text!r}")
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def aligned(rows: list[list[str]]) -> list[str]:
    """Pads the cells so that columns have equal width, and joins each row to a line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(cells).rstrip() for cells in padded]


class ProgressLines:
    """Lines on stderr, every five seconds at most: how much is done, tokens per second, and time left where
    it is known."""

    def __init__(self, what: str, *, total: int | None = None, every: float = 5.0):
        self.what = what
        self.total = total
        self.every = every
        self._began = self._shown = time.monotonic()
        self._amount = self._tokens = 0

    def advance(self, amount: int, tokens: int) -> None:
        self._amount += amount
        self._tokens += tokens
        now = time.monotonic()
        if now - self._shown < self.every:
            return
        self._shown = now
        elapsed = now - self._began
        line = f"{self.what}  {self._amount / 1e6:,.1f} MB"
        line += f"  {self._tokens:,} tokens  {self._tokens / elapsed:,.0f} tok/s"
        if self.total and self._amount:
            left = elapsed * max(0, self.total - self._amount) / self._amount
            line += f"  {self._amount / self.total:.0%}  left {int(left // 60)}:{int(left % 60):02d}"
        print(line, file=sys.stderr, flush=True)
