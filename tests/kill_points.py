"""Every call of a piece of code into the operating system, counted, and a SIGKILL at a chosen one.

Seen by the interpreter's own profiler, in all threads: nothing is replaced.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = {
    "open",
    "mkdir",
    "write",
    "flush",
    "fsync",
    "close",
    "rename",
    "replace",
    "unlink",
    "rmdir",
    "update_mmap",
    "flock",
}


def count_calls(below: str, report: Path, kill_at: int | None, fn: Callable, *args: Any) -> None:
    """``fn(*args)``; the calls under the source file ``below``, before and after each, are written to
    ``report`` as JSON.

    With ``kill_at`` the process is killed at that one, whose name is what ``report`` then says.
    """
    count, lock = [], threading.Lock()

    def counts(frame) -> bool:
        while frame is not None:
            if frame.f_code.co_filename == below:
                return True
            frame = frame.f_back
        return False

    def note(frame, event: str, function) -> None:
        if event not in ("c_call", "c_return") or function.__name__ not in CALLS or not counts(frame):
            return
        with lock:
            count.append(f"{'before' if event == 'c_call' else 'after'} {function.__name__}")
            if len(count) == kill_at:
                report.write_text(count[-1])
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        fn(*args)
    finally:
        sys.setprofile(None)
        if kill_at is None:
            report.write_text(json.dumps(count))
