"""Files that anyone may have written: regular ones alone, inside their folder, and no larger than what they
are for."""

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from megatron_bar.errors import BarError


def require_inside(file: Path, folder: Path | None = None) -> None:
    """Raises BarError for a link out of ``folder`` (None: that of ``file``), for what it leads to would be
    read and copied; the files of a snapshot of the Hub are links to what its repository keeps beside."""
    if not os.path.islink(file):  # False, too, for a path that no file can have
        return
    home = Path(os.path.realpath(folder or file.parent))
    snapshots = (path for path in home.parents if path.name == "snapshots")
    repositories = (path.parent for path in snapshots if "--" in path.parent.name)
    found = Path(os.path.realpath(file))
    if not found.is_relative_to(next(repositories, home)):
        raise BarError(f"{file}: expected a file of this folder, got a link to {found}")


@contextmanager
def bounded_memory(most: int) -> Iterator[None]:
    """Lets the block take ``most`` bytes: a library that asks for more raises MemoryError. It holds for the
    process, and so for other threads meanwhile."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[5]) * resource.getpagesize()
    within = [taken + most, *(limit for limit in limits if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(within), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


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
