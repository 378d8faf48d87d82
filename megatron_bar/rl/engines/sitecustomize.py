"""Makes every Python process of an engine end with the one that started it; Python imports this file by its
name.

An engine's workers are children in sessions of their own: no signal to a process group reaches them, and one
that was killed has told nobody. The kernel does it (Linux, prctl(2) PR_SET_PDEATHSIG), however the parent
ends.
"""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_end_with_parent()
os.register_at_fork(after_in_child=_end_with_parent)  # a fork does not inherit it
