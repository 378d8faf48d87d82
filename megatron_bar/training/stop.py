"""SIGTERM, a scheduler's warning, while a stage trains: the step is ended, the state saved, the process ends
with status 75.

Outside of training a termination is what cli.py makes of it. Left out: other signals, and a time limit of our
own.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from megatron_bar.parallel.state import any_rank, is_rank_zero


class Stop:
    """Notes a SIGTERM, for the life of the block, and does nothing else about it."""

    def __init__(self):
        self.asked = False
        """Whether this rank got one."""
        self.agreed = False
        """Whether every rank knows that one of them got one."""
        self._before: Callable | int | None = None

    def __enter__(self) -> "Stop":
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is not None and self.agreed:
            # On the way out, a second one would change how it ends.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            return
        signal.signal(signal.SIGTERM, self._before)
        if self.asked and kind is None:  # after the last exchange
            signal.raise_signal(signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def agree(self) -> bool:
        """Returns whether any rank was asked, where no step of the trainer has just told. Collective."""
        self.agreed = any_rank(self.asked or self.agreed)
        return self.agreed

    def leave(self, where: str) -> NoReturn:
        """Ends the process once ``where``, the step of the stage, is saved."""
        if is_rank_zero():
            print(f"stopped: {where} is saved; the same command goes on from it", file=sys.stderr, flush=True)
        sys.exit(os.EX_TEMPFAIL)
