"""What the command lines share: how they end and how they show progress."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from megatron_bar.errors import BarError


def run(main: Callable[[], None]) -> NoReturn:
    """Exit status 0, or one line on stderr and 1 for a user's mistake; a bug keeps its traceback."""
    # As an exception a termination passes through the code that removes half-written folders.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: terminated"))
    try:
        main()
    except BarError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
    sys.exit(0)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over bytes on stderr, with speed and time left; nothing where stderr is not a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=total)
        yield lambda count: bars.advance(task, count)
