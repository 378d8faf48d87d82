"""The parts of gpu_check.py that look at the machine: its packages and card, the tests, a whole recipe.

A part is given ``record``, to call with a figure once it is known, and a folder for its files. It ends by
``sys.exit`` with one line where it cannot go on.
"""

import ast
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
Record = Callable[..., None]
"""``record(name, value, unit, target=None, at_most=False, problem="")``: a figure of a part."""
PACKAGES = (
    "megatron-core",
    "torch",
    "triton",
    "transformers",
    "transformer-engine",
    "apex",
    "blake3",
    "datasets",
    "vllm",
)
CPU = "CPU"
"""What a part runs on without a GPU."""
OTHERS = 1.0
"""GiB that a card may have taken before anything runs: the driver's own."""
DOCUMENTS = [[300, 200, 12], [512]]
"""Lengths of the documents in each row that packed attention is compared on."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a part asks of a GPU."""

    name: str
    capability: tuple[int, int]
    free: int
    """Bytes that nobody has taken."""
    total: int

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies bf16 in hardware."""
        return self.capability >= (8, 0)

    def lacks(self, needed: int) -> str:
        """Returns in one line why a part that takes ``needed`` bytes cannot run on it; nothing if it can."""
        if not self.has_bf16:
            major, minor = self.capability
            return f"{self.name}: compute capability {major}.{minor}, expected 8.0 or newer, for bf16"
        if self.free < needed:
            gib = [number / 2**30 for number in (needed, self.free, self.total)]
            return (
                f"{self.name}: expected {gib[0]:.1f} GiB free, found {gib[1]:.1f} of {gib[2]:.1f}: end the "
                "processes on it (nvidia-smi), or take a larger one"
            )
        return ""


def card() -> Card | None:
    """Returns the GPU; None where there is none."""
    import torch

    if not has_gpu():
        return None
    gpu = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return Card(name=gpu.name, capability=(gpu.major, gpu.minor), free=free, total=total)


def need(nbytes: int) -> None:
    """Ends the part where the GPU cannot do it; ``nbytes``: what it takes."""
    found = card()
    if found is not None and (reason := found.lacks(nbytes)):
        sys.exit(reason)


def device() -> str:
    """Returns the name of the GPU, or `CPU`."""
    found = card()
    return CPU if found is None else found.name


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def versions(record: Record, out: Path) -> None:
    """Packages by what setup.py asks for, the card, and what it does at best."""
    import torch

    from megatron_bar.planner.machine_items import version_of

    record("python", sys.version.split()[0])
    for package in PACKAGES:
        version = version_of(package)
        record(package, version or "none", problem=trouble(package, version))
    found = card()
    if found is None:
        record("GPU", "none: the parts run on small shapes on the CPU, their figures mean nothing")
    else:
        describe(record, found)
    nccl = torch.distributed.is_nccl_available()
    version = ".".join(map(str, torch.cuda.nccl.version())) if nccl else "none"
    missing = "" if nccl or found is None else "expected in torch: install its CUDA build"
    record("NCCL", version, problem=missing)
    record("bf16 product", product_rate() / 1e12, "TFLOP/s")
    record("copy on the device", copy_rate() / 1e12, "TB/s")


def describe(record: Record, found: Card) -> None:
    """Records what the card is and how much of it others have taken."""
    record("GPU", found.name)
    record("memory", found.total / 2**30, "GiB")
    record("compute capability", ".".join(map(str, found.capability)))
    record("bf16 in hardware", found.has_bf16, problem=found.lacks(0))
    driver = Path("/proc/driver/nvidia/version")
    record("driver", re.search(r"\d+\.\d+[\d.]*", driver.read_text())[0] if driver.is_file() else "unknown")
    taken = (found.total - found.free) / 2**30
    busy = f"another process is on it, expected {OTHERS:g} at most: see nvidia-smi" if taken > OTHERS else ""
    record("taken by others", taken, "GiB", problem=busy)


def trouble(package: str, version: str | None) -> str:
    """Returns what is wrong with a package by setup.py, and whether it cannot be imported; nothing if all is
    well."""
    from megatron_bar.planner.machine_items import BUILT, import_error, unmet

    if package in BUILT and version is not None:
        return import_error(BUILT[package])
    wanted = [text for text in required() if re.match(r"[\w-]+", text)[0] == package]
    return unmet(wanted[0], version) if wanted else ""


def required() -> list[str]:
    """Returns what setup.py requires; the package itself may not be installed."""
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "install_requires":
            return ast.literal_eval(node.value)
    return []


def seconds(work: Callable[[], object], rounds: int = 10, warm: int = 2) -> float:
    """Median time of ``work``, which is waited for."""
    import torch

    took = []
    for number in range(warm + rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if number >= warm:
            took.append(time.perf_counter() - start)
    return median(took)


def product_rate() -> float:
    """Operations a second of a bare bf16 product of random values."""
    import torch

    from megatron_bar.parallel import cpu

    size = 8192 if has_gpu() else 256
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=cpu.device()) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, 20)


def copy_rate() -> float:
    """Bytes a second, read and written."""
    import torch

    from megatron_bar.parallel import cpu

    source = torch.empty(2**31 if has_gpu() else 2**20, dtype=torch.uint8, device=cpu.device())
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source))


def tests(record: Record, out: Path) -> None:
    """Packed attention's error, then every test that needs a GPU; without one, those of the same files."""
    packed_attention(record)
    files = [
        str(file)
        for file in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in file.read_text(encoding="utf-8")
    ]
    report = out.absolute() / "tests.xml"
    report.unlink(missing_ok=True)
    marker = ["-m", "gpu"] if has_gpu() else ["-m", "not gpu and not slow", "-k", "kernels or rope or norm"]
    options = ["-q", "-p", "no:cacheprovider", *marker, f"--junit-xml={report}"]
    status = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, check=False
    ).returncode
    if not report.is_file():
        sys.exit(f"pytest: expected a report, got status {status}")
    suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite")
    count = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    record("tests passed", count["tests"] - count["failures"] - count["errors"] - count["skipped"], "", 1)
    record("tests failed", count["failures"] + count["errors"], "", 0, at_most=True)
    record("tests skipped", count["skipped"])
    for case in suite:
        if case.find("failure") is not None:
            record("failed test", f"{case.get('name')}: {case.find('failure').get('message', '')[:200]}")
    sys.exit(status)


def packed_attention(record: Record) -> None:
    """What bf16 costs attention within packed documents: the largest difference from fp64 over the largest
    value."""
    sys.path.insert(0, str(ROOT / "tests"))
    sys.path.insert(0, str(ROOT / "tests/models"))
    import test_attention
    import torch

    from megatron_bar.parallel import cpu

    _, found = test_attention.errors(DOCUMENTS, "torch", torch.bfloat16, cpu.device())
    record("packed attention in bf16 against fp64: output", found[0], "", 1e-2, at_most=True)
    record("packed attention in bf16 against fp64: gradients", max(found[1:]), "", 1e-2, at_most=True)


def smoke(record: Record, out: Path) -> None:
    """The recipe in one process, stopped by SIGTERM while a stage trains, then continued to the end."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "smoke"
        command = [sys.executable, "examples/pretrain_bar.py", "smoke", "--out", str(target)]
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        asked = False
        for text in process.stdout:
            print(text, end="", flush=True)
            if not asked and text.startswith("anchor ") and "loss" in text:
                process.send_signal(signal.SIGTERM)
                asked = True
        status = process.wait()
        record("smoke, stopped by SIGTERM: exit status", status)
        if not asked or status != os.EX_TEMPFAIL:
            sys.exit(
                f"SIGTERM {'was sent' if asked else 'found no training'}, status {status}; expected "
                f"{os.EX_TEMPFAIL}"
            )
        record("smoke, stopped: until then", time.perf_counter() - start, "s")
        start = time.perf_counter()
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        record("smoke, continued: exit status", status, "", 0, at_most=True)
        record("smoke, continued: to the end", time.perf_counter() - start, "s")
        record("smoke: folders", len(list(target.glob("*/manifest.json"))))
        if not (target / "report.md").is_file():
            sys.exit(status or "no report")
