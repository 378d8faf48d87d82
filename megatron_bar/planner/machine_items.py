"""What one machine has of what a run needs, item by item: packages, GPUs, kernels, memory, the sandbox.

Nothing of the project is imported before all that it requires is known to be there.
"""

import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from megatron_bar.errors import BarError

GIB = 1 << 30
FALLBACKS = {
    "varlen attention": "packed documents attend as a padded batch or by a mask: slower, and more memory "
    "(not measured on a GPU)",
    "fused weight gradients": "gradients are made in 16 bit and then added in 32: one more pass over each "
    "(not measured; an H200 trained at 67 % of a bare product's rate without)",
    "Triton kernels": "RoPE and SwiGLU by torch's operations, 2 to 3 times their bytes (steps: not measured)",
    "cuDNN attention": "sampling by torch's other kernels: a token takes 1.1 to 1.2 times as long (H200)",
}
"""Kernel -> what is used without it, and what that costs; factors: benchmarks/results/nvidia_h200.md."""
OPTIONAL = {
    "transformer-engine": "stages with attention=transformer_engine are refused; "
    "attention=torch, which is the default, needs nothing (one against the other: not measured)",
    "lm-eval": "no benchmarks of lm-eval (bar evaluate --suite bar19-lm-eval); bar19 has its own",
    "reasoning-gym": "no tasks of the verifier reasoning_gym",
}
"""Optional package -> what is missing without it."""
BUILT = {"transformer-engine": "transformer_engine.pytorch"}
"""Package that is built for one torch -> module that says whether it is this one."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something that a run needs, and what was found of it."""

    name: str
    ok: bool
    found: str
    cost: str = ""
    """Consequence where it is missing, or what to do about it."""
    required: bool = False
    same: bool = False
    """Whether it must be the same on every machine."""

    @property
    def line(self) -> str:
        """Line that the doctor prints."""
        state = "OK" if self.ok else "MISSING" if self.required else "missing"
        return f"{state:<8} {self.name:<24} {self.found}" + ("" if self.ok else f": {self.cost}")


def packages() -> Iterator[Item]:
    """Yields Python and what setup.py requires."""
    right = sys.version_info >= (3, 12)
    old = "Megatron-Core 0.19 needs 3.12"
    yield Item(name="python", ok=right, found=platform.python_version(), cost=old, required=True, same=True)
    wanted = metadata.requires("megatron_bar") if version_of("megatron_bar") else None
    cost = "nothing runs: pip install -e . in the checkout"
    if wanted is None or not version_of("packaging"):
        yield Item(name="megatron_bar", ok=False, found="not installed", cost=cost, required=True)
        return
    from packaging.requirements import Requirement

    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name)
        missing = unmet(text, version)
        found = missing or version
        yield Item(name=requirement.name, ok=not missing, found=found, cost=cost, required=True, same=True)


def unmet(requirement: str, version: str | None) -> str:
    """Returns how a package's ``version`` (None: not installed) misses a requirement such as ``torch>=2.11``;
    nothing if it does not. NVIDIA's images call their builds pre-releases: 2.11.0a0 counts as 2.11."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    specifier = Requirement(requirement).specifier
    if version is not None and specifier.contains(Version(version).base_version):
        return ""
    return f"{version or 'not installed'}, expected {str(specifier) or 'any'}"


def import_error(module: str) -> str:
    """Returns why ``module`` cannot be imported, in one line; nothing if it can. Another process tries."""
    command = [sys.executable, "-c", f"import {module}"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    last = tried.stderr.strip().rpartition("\n")[2] or f"status {tried.returncode}"
    return f"cannot be imported: {last}" if tried.returncode else ""


def version_of(package: str) -> str | None:
    """Returns the version of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def gpus() -> Iterator[Item]:
    """Yields the GPUs, or what keeps torch from having any, and NCCL."""
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
    cost = "no GPUs together: install a CUDA build of torch"
    yield Item(name="NCCL", ok=has_nccl, found=found, cost=cost, same=True)


def kernels() -> Iterator[Item]:
    """Yields the kernels, as the model finds them, and what is used instead of each that is missing."""
    import torch

    from megatron_bar.models import kernels as fused
    from megatron_bar.models.attention import has_varlen
    from megatron_bar.models.block import has_fused_weight_gradients

    gpu = torch.cuda.is_available()
    cudnn = torch.backends.cudnn.is_available() and torch.backends.cuda.cudnn_sdp_enabled()
    varlen = gpu and has_varlen(torch.device("cuda"), torch.bfloat16)
    triton = gpu and fused.triton is not None
    apex = has_fused_weight_gradients()
    for name, there, found, without in (
        ("varlen attention", varlen, "torch's, for packed documents", "not in this torch"),
        ("fused weight gradients", apex, "apex's kernel", "no apex (NVIDIA's PyTorch image has it)"),
        ("Triton kernels", triton, "for RoPE and SwiGLU", "no triton"),
        ("cuDNN attention", gpu and cudnn, "torch's, in sampling", "off, or no cuDNN"),
    ):
        shown = found if there else without if gpu else "no GPU"
        yield Item(name=name, ok=there, found=shown, cost=FALLBACKS[name], same=True)


def optional(engine: Path | None) -> Iterator[Item]:
    """Yields the optional packages; ``engine``: the Python that is to run vLLM, None: this one."""
    for name, cost in OPTIONAL.items():
        version = version_of(name)
        found = version or "not installed"
        broken = import_error(BUILT[name]) if version and name in BUILT else ""
        found = f"{found}, {broken}" if broken else found
        yield Item(name=name, ok=bool(version and not broken), found=found, cost=cost, same=True)
    yield vllm(str(engine or sys.executable))


def vllm(python: str) -> Item:
    """Returns whether ``python`` has vLLM, of a version that was tried."""
    script = Path(__file__).parent.parent / "rl/engines/server.py"
    try:
        asked = subprocess.run(
            [python, "-P", script, "vllm", "--check"], capture_output=True, text=True, timeout=60, check=False
        )
        found = (
            asked.stdout.strip() or (asked.stderr.strip().splitlines() or [f"status {asked.returncode}"])[-1]
        )
        ok = asked.returncode == 0
    except OSError as error:
        found = f"not in {python} ({error.strerror})"
        ok = False
    cost = "answers of RLVR come from the trainer itself (engine.name=own)"
    return Item(name="vllm", ok=ok, found=found, cost=cost, same=True)


def machine() -> Iterator[Item]:
    """Yields processors, memory, shared memory and the limit of open files."""
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


def sandbox() -> Item:
    """Returns whether the sandbox runs a program."""
    from megatron_bar.verifiers.sandbox.sandbox import run

    try:
        outcome = run("print(6 * 7)")
    except BarError as error:
        cost = f"no RLVR on code, no HumanEval+ and MBPP+: {error}"
        return Item(name="sandbox", ok=False, found="runs none", cost=cost)
    found = "runs a program: namespaces, listed system calls, a limit on each of its two processes"
    return Item(name="sandbox", ok=outcome.stdout == b"42\n", found=found)


def programs() -> Iterator[Item]:
    """Yields the programs that some parts start."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    cost = "the report's browser tests are skipped, no more"
    yield Item(name="chromium", ok=browser is not None, found=browser or "none", cost=cost)
