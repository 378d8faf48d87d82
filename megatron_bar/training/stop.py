"""SIGTERM, a scheduler's warning, while a stage trains: the step is ended, the state saved, and the process ends with status 75.

Outside of training a termination is what cli.py makes of it. Left out: other signals, and a time limit of our own.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist

from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import is_rank_zero


class Stop:
    """For the life of the block a SIGTERM is only noted: ``asked`` on this rank, ``agreed`` once every rank knows."""

    def __init__(self):
        self.asked = self.agreed = False

    def __enter__(self) -> "Stop":
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is not None and self.agreed:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # on the way out, a second one would change how it ends
            return
        signal.signal(signal.SIGTERM, self._before)
        if self.asked and kind is None:  # after the last exchange
            signal.raise_signal(signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def agree(self) -> bool:
        """Whether any rank was asked, where no step of the trainer has just told. Collective."""
        asked = torch.tensor(float(self.asked or self.agreed), device=cpu.device())
        dist.all_reduce(asked)
        self.agreed = asked.item() > 0
        return self.agreed

    def leave(self, where: str) -> NoReturn:
        """Ends the process once ``where``, the step of the stage, is saved."""
        if is_rank_zero():
            print(f"stopped: {where} is saved; the same command goes on from it", file=sys.stderr, flush=True)
        sys.exit(os.EX_TEMPFAIL)
