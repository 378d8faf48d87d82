"""The doctor's lines against what Python, psutil and the kernel say of this machine, and in environments that
lack something."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from broken_engine import SYMBOL, broken_engine
from distributed import run_distributed
from scripts import ROOT

from megatron_bar.planner.doctor import Item, folder, together
from megatron_bar.planner.machine_items import FALLBACKS


def doctor(*arguments, python=(), launcher=(), **environment) -> tuple[int, dict[str, str], str]:
    """Status, the lines by the item's name, stderr."""
    command = [sys.executable, *python, *launcher, ROOT / "tools/doctor.py", *arguments]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("OK ", "missing ", "MISSING "))]
    return done.returncode, {line[9:33].strip(): line for line in lines}, done.stderr


def line(state: str, name: str, found: str) -> str:
    return f"{state:<8} {name:<24} {found}"


def test_it_says_what_python_psutil_and_the_kernel_say(tmp_path):
    status, lines, err = doctor("--out", tmp_path / "new/runs")
    assert (status, err) == (0, "")
    for name in ("torch", "megatron-core", "transformers", "rich"):
        assert lines[name] == line("OK", name, metadata.version(name))
    assert lines["memory"] == line("OK", "memory", f"{psutil.virtual_memory().total / 2**30:.1f} GiB")
    assert lines["CPUs"] == line("OK", "CPUs", f"{len(psutil.Process().cpu_affinity())} for 1 processes")
    files, most = psutil.Process().rlimit(psutil.RLIMIT_NOFILE)
    assert lines["open files"].split(maxsplit=3)[3].startswith(f"{files}, at most {most}")
    assert f"{psutil.disk_usage('/dev/shm').total / 2**30:.2f} GiB" in lines["/dev/shm"]
    assert f" of {psutil.disk_usage(str(tmp_path)).total / 2**30:.1f} GiB free" in lines["disk"]
    for habit in ("rename", "fsync", "flock", "hard links"):
        assert lines[habit] == line("OK", habit, str(tmp_path / "new/runs"))
    assert not list((tmp_path / "new/runs").iterdir())
    assert lines["lm-eval"] == line("OK", "lm-eval", metadata.version("lm-eval"))
    assert ("GPU 0" in lines) == torch.cuda.is_available()


def test_what_is_required_and_missing_ends_with_status_1():
    status, lines, err = doctor(python=("-S",), PATH="/nowhere")  # without the installed packages
    assert status == 1 and err == "error: required and missing: megatron_bar\n"
    assert lines["megatron_bar"].startswith(
        line("MISSING", "megatron_bar", "not installed: nothing runs: pip install")
    )
    assert lines["chromium"].startswith(line("missing", "chromium", "none: "))
    assert "sandbox" not in lines  # nothing of ours was imported


def test_another_version_than_required_is_named(tmp_path):
    (tmp_path / "megatron_core-0.16.1.dist-info").mkdir()
    (tmp_path / "megatron_core-0.16.1.dist-info/METADATA").write_text(
        "Name: megatron-core\nVersion: 0.16.1\n"
    )
    status, lines, err = doctor("--engine", "/nowhere/python", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert status == 1 and err == "error: required and missing: megatron-core\n"
    assert lines["megatron-core"].startswith(line("MISSING", "megatron-core", "0.16.1, expected ==0.19.2: "))
    assert "not in /nowhere/python (No such file or directory)" in lines["vllm"]


def test_an_engine_of_another_torch_is_told(tmp_path):
    status, lines, err = doctor(PYTHONPATH=f"{broken_engine(tmp_path)}:{ROOT}")
    assert status == 0 and err.startswith("transformer_engine: left out") and err.count("\n") == 1
    found = f"2.3.0, cannot be imported: ImportError: {SYMBOL}: "
    assert lines["transformer-engine"].startswith(line("missing", "transformer-engine", found))


def test_what_falls_back_is_told_with_its_cost():
    _, lines, _ = doctor()
    assert {*FALLBACKS} <= lines.keys()
    for name, cost in FALLBACKS.items():
        assert lines[name].startswith("OK ") or lines[name].endswith(f": {cost}")
        assert "not measured" in cost or "times as long (H200)" in cost
    table = (ROOT / "benchmarks/results/nvidia_h200.md").read_text()
    token = {
        (slots, cudnn): float(
            re.search(rf"a token, {slots} slots, cuDNN {cudnn}, graphs +([\d.]+) ms", table)[1]
        )
        for slots in (16, 64)
        for cudnn in ("on", "off")
    }
    factors = [f"{token[slots, 'off'] / token[slots, 'on']:.1f}" for slots in (16, 64)]
    assert f"{factors[0]} to {factors[1]} times" in FALLBACKS["cuDNN attention"]


def test_a_place_that_keeps_nothing_is_told(tmp_path):
    (only,) = folder(Path("/proc/runs"))
    assert only.required and only.line.startswith(line("MISSING", "out", "/proc/runs: "))
    (tmp_path / "file").touch()
    (only,) = folder(tmp_path / "file")
    assert "File exists" in only.line


def test_under_torchrun_it_speaks_once_and_adds_up(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    status, lines, err = doctor("--out", tmp_path, launcher=launcher)
    assert status == 0, err
    assert lines["processes"].startswith(line("OK", "processes", "2 on "))
    assert lines["all-reduce"].startswith("OK ") and " over 2 ranks in " in lines["all-reduce"]
    assert lines["one folder"] == line("OK", "one folder", f"{tmp_path}, the same for all")
    assert f"{len(psutil.Process().cpu_affinity())} for 2 processes" in lines["CPUs"]
    assert not list(tmp_path.iterdir())


def on_two_machines(place: Path) -> list[str]:
    """What ranks that differ in a version, in a library and in their folder are told."""
    rank = dist.get_rank()
    mine = [
        Item(name="torch", ok=True, found=f"2.{rank}", required=True, same=True),
        Item(name="numpy", ok=True, found="2", required=True, same=True),
        Item(name="chromium", ok=rank == 0, found="somewhere" if rank == 0 else "none", cost="no tests"),
        Item(name="lm-eval", ok=False, found="none", cost="no matter"),
    ]
    (place / str(rank)).mkdir()
    return [item.line for item in together(mine, place / str(rank))]


def test_machines_that_differ_are_told_apart(tmp_path):
    first, second = run_distributed(on_two_machines, 2, tmp_path)
    told = {said[9:33].strip(): said for said in first}
    assert list(told) == ["processes", "torch", "chromium", "all-reduce", "one folder"]
    assert [said[9:33].strip() for said in second] == list(told)
    assert (
        told["torch"].startswith("MISSING ") and "2.1 on " in told["torch"] and ", 2.0 on " in told["torch"]
    )
    assert told["chromium"].startswith(line("missing", "chromium", "none (on "))
    assert (
        told["one folder"].startswith("MISSING ")
        and "not one, or not locked, on rank 1" in told["one folder"]
    )
