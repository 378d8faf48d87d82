"""What an environment has of what a run needs, item by item, and what each missing thing costs.

`local` looks at one machine (machine_items.py), `folder` at the place that a run is to be written to,
`together` at the processes of torchrun and at what lies between their machines. Nothing of the project is
imported before all that it requires is known to be there. Left out: how fast the disk is, and whether a
network is as fast as its makers say; the figure is shown.
"""

import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from megatron_bar.planner import machine_items
from megatron_bar.planner.machine_items import GIB, Item


def local(engine: Path | None = None) -> Iterator[Item]:
    """Yields what this machine has; ``engine``: the Python that is to run vLLM, None: this one."""
    packages = list(machine_items.packages())
    yield from packages
    whole = all(item.ok for item in packages)
    if machine_items.version_of("torch"):
        yield from machine_items.gpus()
    if whole:
        yield from machine_items.kernels()
    yield from machine_items.optional(engine)
    yield from machine_items.machine()
    if whole:
        yield machine_items.sandbox()
    yield from machine_items.programs()


def folder(out: Path) -> Iterator[Item]:
    """Yields whether runs can be kept under ``out``: what they do to files is tried there once."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".doctor.", dir=out) as name:
            for operation, (attempt, required, cost) in _OPERATIONS.items():
                try:
                    attempt(Path(name))
                    yield Item(name=operation, ok=True, found=str(out), required=required)
                except OSError as error:
                    found = f"{out}: {error.strerror}"
                    yield Item(name=operation, ok=False, found=found, cost=cost, required=required)
    except OSError as error:
        cost = "nothing can be kept there"
        yield Item(name="out", ok=False, found=f"{out}: {error.strerror}", cost=cost, required=True)
        return
    disk = shutil.disk_usage(out)
    found = f"{disk.free / GIB:.1f} of {disk.total / GIB:.1f} GiB free"
    cost = "a full disk stops a run; what was finished stays"
    yield Item(name="disk", ok=disk.free >= 10 * GIB, found=found, cost=cost)


def _rename(parent: Path) -> None:
    for name in ("old", "new"):
        (parent / name).write_text(name)
        (parent / f"{name}.folder").mkdir()
    (parent / "new").rename(parent / "old")
    (parent / "new.folder").rename(parent / "renamed")
    if (parent / "old").read_text() != "new":
        raise OSError(0, "a renamed file is not there")


def _fsync(parent: Path) -> None:
    for path, flags in ((parent / "synced", os.O_CREAT | os.O_WRONLY), (parent, os.O_RDONLY)):
        fd = os.open(path, flags)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _flock(parent: Path) -> None:
    with (parent / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_free(parent / "lock"):
            raise OSError(0, "a lock does not hold")


def _is_free(lock: Path) -> bool:
    with lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _link(parent: Path) -> None:
    (parent / "linked").write_text("x")
    (parent / "link").hardlink_to(parent / "linked")


_OPERATIONS: dict[str, tuple[Callable[[Path], None], bool, str]] = {
    "rename": (_rename, True, "folders appear by it when they are whole"),
    "fsync": (_fsync, True, "what was reported as saved could be lost"),
    "flock": (_flock, True, "two runs could write one folder (Lustre: mount with -o flock)"),
    "hard links": (_link, False, "stages that choose between learning rates fail (Run.rates)"),
}
"""Operation on files -> how it is tried, whether a run needs it, and what for."""


def together(mine: list[Item], out: Path | None) -> Iterator[Item]:
    """Yields what lies between the processes of torchrun, inside their group. Collective.

    ``mine``: the items of this machine, given by its first process, and none by the others. What rank 0's
    machine has itself is not said again.
    """
    from megatron_bar.parallel.state import gather_objects

    everyone = gather_objects((socket.gethostname(), mine))
    hosts = ", ".join(dict.fromkeys(host for host, _ in everyone))
    yield Item(name="processes", ok=True, found=f"{len(everyone)} on {hosts}")
    yield from _others(*everyone)
    yield _all_reduce()
    if out is not None:
        yield _one_folder(out)


def _others(first: tuple[str, list[Item]], *others: tuple[str, list[Item]]) -> Iterator[Item]:
    """Yields what another machine has otherwise, or lacks."""
    cost = "make them the same: ranks that differ compute different things, or wait for each other"
    here = {item.name: item for item in first[1]}
    for host, items in others:
        for item in items:
            known = here.get(item.name)
            if item.same and (known is None or known.found != item.found):
                found = f"{item.found} on {host}, {known.found if known else 'none'} on {first[0]}"
                yield replace(item, ok=False, found=found, cost=cost, required=True)
            elif not item.ok and (known is None or known.ok):
                yield replace(item, found=f"{item.found} (on {host})")


def _all_reduce(repetitions: int = 5) -> Item:
    """Checks a sum over all ranks, and times it. The bandwidth is that of a ring, in which each rank sends
    2 (n - 1) / n of the bytes."""
    import torch
    import torch.distributed as dist

    from megatron_bar.parallel import cpu

    ranks = dist.get_world_size()
    size = (256 if torch.cuda.is_available() else 16) << 20
    values = torch.full((size // 4,), float(dist.get_rank()), device=cpu.device())
    dist.all_reduce(values)
    right = bool((values == ranks * (ranks - 1) / 2).all())
    torch.cuda.synchronize()
    began = time.monotonic()
    for _ in range(repetitions):
        dist.all_reduce(values)
    torch.cuda.synchronize()
    seconds = (time.monotonic() - began) / repetitions
    speed = 2 * (ranks - 1) / ranks * size / seconds / 1e9
    timed = f"{size >> 20} MiB over {ranks} ranks in {1000 * seconds:.1f} ms, {speed:.1f} GB/s"
    found = timed if right else "a wrong sum"
    cost = "the network or a device computes wrongly"
    return Item(name="all-reduce", ok=right, found=found, cost=cost, required=True)


def _one_folder(out: Path) -> Item:
    """Checks that all ranks see one folder, and that a lock of rank 0 holds everywhere."""
    import torch.distributed as dist

    from megatron_bar.parallel.state import gather_objects, is_rank_zero

    path = out / ".doctor.lock"
    lock = None
    if is_rank_zero():
        lock = path.open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    dist.barrier()
    seen = gather_objects(path.is_file() and not _is_free(path))
    if lock is not None:
        lock.close()
        path.unlink()
    without = [str(rank) for rank, ok in enumerate(seen) if not ok and rank]
    found = f"{out}, the same for all"
    if without:
        found = f"{out}: not one, or not locked, on rank {', '.join(without)}"
    cost = "every rank must see what rank 0 writes, and its locks"
    return Item(name="one folder", ok=not without, found=found, cost=cost, required=True)
