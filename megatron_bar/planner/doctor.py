"""What an environment has of what a run needs, item by item, and what each missing thing costs.

`local` looks at one machine, `folder` at the place that a run is to be written to, `together` at the
processes of torchrun and at what lies between their machines. Nothing of the project is imported before all
that it requires is known to be there. Left out: how fast the disk is, and whether a network is as fast as its
makers say; the figure is shown.
"""

import fcntl
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from megatron_bar.errors import BarError

GIB = 1 << 30
OPTIONAL = {
    "transformer-engine": "stages with attention=transformer_engine are refused; torch's kernels need nothing",
    "lm-eval": "no public benchmarks (tools/evaluate.py --suite bar19); the recipes' own tests need nothing",
    "reasoning-gym": "no tasks of the verifier reasoning_gym",
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True, kw_only=True)
class Item:
    name: str
    ok: bool
    found: str
    cost: str = ""
    """What one has to do without where it is missing, or what to do about it."""
    required: bool = False
    same: bool = False
    """Must be the same on every machine."""

    @property
    def line(self) -> str:
        state = "OK" if self.ok else "MISSING" if self.required else "missing"
        return f"{state:<8} {self.name:<24} {self.found}" + ("" if self.ok else f": {self.cost}")


def local(engine: Path | None = None) -> Iterator[Item]:
    """Of this machine; ``engine``: the Python that is to run vLLM, None: this one."""
    packages = list(_packages())
    yield from packages
    whole = all(item.ok for item in packages)
    if _version("torch"):
        yield from _gpus()
    if whole:
        yield from _kernels()
    yield from _optional(engine)
    yield from _machine()
    if whole:
        yield _sandbox()
    found = shutil.which("bwrap")
    cost = "needed only by an ordinary user where the kernel refuses namespaces (see sandbox)"
    yield Item(name="bubblewrap", ok=found is not None, found=found or "no bwrap", cost=cost)
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    yield Item(
        name="chromium",
        ok=found is not None,
        found=found or "none",
        cost="the report's browser tests are skipped, no more",
    )


def _packages() -> Iterator[Item]:
    """What setup.py requires."""
    version = platform.python_version()
    old = "Megatron-Core 0.19 needs 3.12"
    yield Item(
        name="python", ok=sys.version_info >= (3, 12), found=version, cost=old, required=True, same=True
    )
    wanted = metadata.requires("megatron_bar") if _version("megatron_bar") else None
    if wanted is None or not _version("packaging"):
        cost = "nothing runs: pip install -e . in the checkout"
        yield Item(name="megatron_bar", ok=False, found="not installed", cost=cost, required=True)
        return
    from packaging.requirements import Requirement

    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        ok = version is not None and requirement.specifier.contains(version, prereleases=True)
        found = (
            version if ok else f"{version or 'not installed'}, expected {str(requirement.specifier) or 'any'}"
        )
        cost = "nothing runs: pip install -e . in the checkout"
        yield Item(name=requirement.name, ok=ok, found=found, cost=cost, required=True, same=True)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> Iterator[Item]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(count):
        gpu = torch.cuda.get_device_properties(number)
        found = f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
        cost = "no bf16 in hardware: of no use for recipes in bfloat16"
        yield Item(name=f"GPU {number}", ok=gpu.major >= 8, found=found, cost=cost, same=True)
    if not count:
        driver = Path("/proc/driver/nvidia/version")
        has = "and a driver that torch cannot use" if driver.is_file() else "and no NVIDIA driver"
        cost = "all runs on the CPU, by gloo: good for the tiny recipes alone"
        yield Item(name="GPU", ok=False, found=f"none, CUDA {torch.version.cuda} {has}", cost=cost, same=True)
    has_nccl = torch.distributed.is_nccl_available()
    found = ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else "not in this torch"
    yield Item(
        name="NCCL",
        ok=has_nccl,
        found=found,
        cost="no GPUs together: install a CUDA build of torch",
        same=True,
    )


def _kernels() -> Iterator[Item]:
    """As the model finds them."""
    import torch

    from megatron_bar.models.attention import has_varlen
    from megatron_bar.models.olmo2 import has_fused_weight_gradients

    gpu = torch.cuda.is_available()
    yield Item(
        name="varlen attention",
        ok=gpu and has_varlen(torch.device("cuda"), torch.bfloat16),
        found="torch's, for packed documents" if gpu else "no GPU",
        cost="packed documents attend as a padded batch or by a mask: slower, and more memory (torch >= 2.10, 16 bit)",
        same=True,
    )
    yield Item(
        name="fused weight gradients",
        ok=has_fused_weight_gradients(),
        found="apex's kernel"
        if has_fused_weight_gradients()
        else "no apex (NVIDIA's PyTorch image has it)"
        if gpu
        else "no GPU",
        cost="gradients are made in 16 bit and then added in 32: one more pass over each",
        same=True,
    )


def _optional(engine: Path | None) -> Iterator[Item]:
    for name, cost in OPTIONAL.items():
        version = _version(name)
        yield Item(name=name, ok=version is not None, found=version or "not installed", cost=cost, same=True)
    python = str(engine or sys.executable)
    ask = "from importlib import metadata; print(metadata.version('vllm'))"
    try:
        asked = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=60, check=False)
        version = asked.stdout.strip()
    except OSError as error:
        version = ""
        python = f"{python} ({error.strerror})"
    cost = "answers of RLVR come from the trainer itself (engine.name=own)"
    yield Item(name="vllm", ok=bool(version), found=version or f"not in {python}", cost=cost, same=True)


def _machine() -> Iterator[Item]:
    cores = len(os.sched_getaffinity(0))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cost = "processes wait for each other: ask the scheduler for more (--cpus-per-task)"
    yield Item(name="CPUs", ok=cores >= processes, found=f"{cores} for {processes} processes", cost=cost)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Item(name="memory", ok=True, found=f"{memory / GIB:.1f} GiB")
    shared = shutil.disk_usage("/dev/shm")
    cost = "NCCL may fail with 'No space left on device': docker run --ipc=host, or --shm-size"
    yield Item(name="/dev/shm", ok=shared.total >= GIB, found=f"{shared.total / GIB:.2f} GiB", cost=cost)
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    cost = f"mapped data and many processes run out of them: ulimit -n {most}"
    yield Item(name="open files", ok=files >= 4096, found=f"{files}, at most {most}", cost=cost)


def _sandbox() -> Item:
    from megatron_bar.verifiers.sandbox import sandbox

    try:
        outcome = sandbox.run("print(6 * 7)")
        ok = outcome.stdout == b"42\n"
        found = "runs a program"
        cost = ""
    except BarError as error:
        ok = False
        found = "runs none"
        cost = f"no RLVR on code, no HumanEval+ and MBPP+: {error}"
    return Item(name="sandbox", ok=ok, found=found, cost=cost)


def folder(out: Path) -> Iterator[Item]:
    """Whether runs can be kept under ``out``: what they do there is done once."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".doctor.", dir=out) as name:
            for what, (work, required, cost) in _HABITS.items():
                try:
                    work(Path(name))
                    yield Item(name=what, ok=True, found=str(out), required=required)
                except OSError as error:
                    yield Item(
                        name=what, ok=False, found=f"{out}: {error.strerror}", cost=cost, required=required
                    )
    except OSError as error:
        cost = "nothing can be kept there"
        yield Item(name="out", ok=False, found=f"{out}: {error.strerror}", cost=cost, required=True)
        return
    disk = shutil.disk_usage(out)
    found = f"{disk.free / GIB:.1f} of {disk.total / GIB:.1f} GiB free"
    yield Item(
        name="disk",
        ok=disk.free >= 10 * GIB,
        found=found,
        cost="a full disk stops a run; what was finished stays",
    )


def _rename(place: Path) -> None:
    for name in ("old", "new"):
        (place / name).write_text(name)
        (place / f"{name}.folder").mkdir()
    (place / "new").rename(place / "old")
    (place / "new.folder").rename(place / "renamed")
    if (place / "old").read_text() != "new":
        raise OSError(0, "a renamed file is not there")


def _fsync(place: Path) -> None:
    for path, flags in ((place / "synced", os.O_CREAT | os.O_WRONLY), (place, os.O_RDONLY)):
        fd = os.open(path, flags)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _flock(place: Path) -> None:
    with (place / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_free(place / "lock"):
            raise OSError(0, "a lock does not hold")


def _is_free(lock: Path) -> bool:
    with lock.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _link(place: Path) -> None:
    (place / "linked").write_text("x")
    (place / "link").hardlink_to(place / "linked")


_HABITS: dict[str, tuple[Callable[[Path], None], bool, str]] = {
    "rename": (_rename, True, "folders appear by it when they are whole"),
    "fsync": (_fsync, True, "what was reported as saved could be lost"),
    "flock": (_flock, True, "two runs could write one folder (Lustre: mount with -o flock)"),
    "hard links": (_link, False, "stages that choose between learning rates fail (Run.rates)"),
}
"""What is done to files, whether a run needs it, and what for."""


def together(mine: list[Item], out: Path | None) -> Iterator[Item]:
    """Between the processes of torchrun, inside their group; ``mine``: the items of this machine, by its
    first process, and none by the others. What rank 0's machine has itself is not said again. Collective."""
    import torch.distributed as dist

    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (socket.gethostname(), mine))
    hosts = ", ".join(dict.fromkeys(host for host, _ in everyone))
    yield Item(name="processes", ok=True, found=f"{len(everyone)} on {hosts}")
    yield from _others(*everyone)
    yield _all_reduce()
    if out is not None:
        yield _one_folder(out)


def _others(first: tuple[str, list[Item]], *others: tuple[str, list[Item]]) -> Iterator[Item]:
    """What another machine has otherwise, or has not."""
    here = {item.name: item for item in first[1]}
    for host, items in others:
        for item in items:
            known = here.get(item.name)
            if item.same and (known is None or known.found != item.found):
                found = f"{item.found} on {host}, {known.found if known else 'none'} on {first[0]}"
                cost = (
                    "make them the same: ranks that differ compute different things, or wait for each other"
                )
                yield replace(item, ok=False, found=found, cost=cost, required=True)
            elif not item.ok and (known is None or known.ok):
                yield replace(item, found=f"{item.found} (on {host})")


def _all_reduce(repetitions: int = 5) -> Item:
    """A sum over all ranks, checked, then timed. Bandwidth of a ring: what each rank sends, 2 (n - 1) / n of
    the bytes."""
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
    found = (
        f"{size >> 20} MiB over {ranks} ranks in {1000 * seconds:.1f} ms, {speed:.1f} GB/s"
        if right
        else "a wrong sum"
    )
    return Item(
        name="all-reduce",
        ok=right,
        found=found,
        cost="the network or a device computes wrongly",
        required=True,
    )


def _one_folder(out: Path) -> Item:
    """Whether all ranks see one folder, and a lock of rank 0 holds everywhere."""
    import torch.distributed as dist

    from megatron_bar.parallel.state import is_rank_zero

    path = out / ".doctor.lock"
    held = None
    seen = [False] * dist.get_world_size()
    if is_rank_zero():
        held = path.open("w")
        fcntl.flock(held, fcntl.LOCK_EX)
    dist.barrier()
    dist.all_gather_object(seen, path.is_file() and not _is_free(path))
    if held is not None:
        held.close()
        path.unlink()
    without = [str(rank) for rank, ok in enumerate(seen) if not ok and rank]
    found = (
        f"{out}, the same for all"
        if not without
        else f"{out}: not one, or not locked, on rank {', '.join(without)}"
    )
    cost = "every rank must see what rank 0 writes, and its locks"
    return Item(name="one folder", ok=not without, found=found, cost=cost, required=True)
