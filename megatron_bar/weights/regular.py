"""Files that anyone may have written: regular ones alone, and no larger than what they are for."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from megatron_bar.errors import BarError


def open_regular(path: Path, most: int | None = None) -> BinaryIO:
    """Opens a file for reading; raises BarError for a pipe, a device or a folder, which could hold up a
    reader for ever, and for more than ``most`` bytes. FileNotFoundError and other OSErrors are the
    caller's."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and (most is None or found.st_size <= most):
        return file
    file.close()
    got = f"{found.st_size}" if stat.S_ISREG(found.st_mode) else "a pipe, a device or a folder"
    wanted = "a regular file" if most is None else f"a regular file of at most {most} bytes"
    raise BarError(f"{path}: expected {wanted}, got {got}")


def read_regular(path: Path, most: int) -> bytes:
    """Returns what is in a regular file of at most ``most`` bytes; raises as `open_regular` does."""
    with open_regular(path, most) as file:
        return file.read(most)
