"""`make gpu-check` on a CPU: every part runs, says so, and what goes wrong is one line beside the others."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from broken_engine import broken_engine
from scripts import ROOT

from megatron_bar.planner.machine_items import unmet

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_check
import gpu_machine
from gpu_machine import Card

GIB = 2**30


def check(out: Path, *only: str, path: Path = ROOT) -> tuple[int, str, dict[str, list[dict]]]:
    """Status, the table, and the figures by part."""
    command = [sys.executable, ROOT / "benchmarks/gpu_check.py", "--out", out]
    command += ["--only", *only] if only else []
    env = os.environ | {"PYTHONPATH": f"{path}:{ROOT}", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=420, check=False)
    rows: dict[str, list[dict]] = {}
    for row in json.loads((out / "gpu_check.json").read_text())["rows"]:
        rows.setdefault(row["part"], []).append(row)
    return done.returncode, done.stdout[done.stdout.rindex("\n-- versions") :], rows


def failures(rows: dict[str, list[dict]]) -> dict[str, str]:
    return {part: row["ended"] for part, mine in rows.items() for row in mine if row["failed"]}


def test_one_part_that_fails_does_not_stop_the_others(tmp_path):
    place = broken_engine(tmp_path / "path")
    (place / "pytest.py").write_text("raise ImportError('pytest: built for another machine')\n")
    parts = ("versions", "tests", "train", "sampler", "route")
    status, table, rows = check(tmp_path / "out", *parts, path=place)
    assert status == 1 and tuple(rows) == parts
    assert list(failures(rows)) == ["tests"]
    (failed,) = [line for line in table.splitlines() if "FAILED" in line]
    assert failed.endswith("FAILED: ImportError: pytest: built for another machine (status 1)")
    (engine,) = [line for line in table.splitlines() if line.startswith("transformer-engine")]
    assert re.search(r" 2\.3\.0 +cannot be imported: ImportError: .*undefined symbol", engine)
    names = {row["name"] for mine in rows.values() for row in mine}
    assert {"SFT tokens", "tokens a second of 32 layers, 64 slots, cuDNN on, graphs"} <= names
    assert "router step of 5 experts, micro-batch 1" in names
    assert table.splitlines()[-3] == f"not on a GPU: {', '.join(parts)}"


@pytest.mark.slow
def test_all_parts_run_on_a_cpu_in_five_minutes(tmp_path, record_property):
    status, table, rows = check(tmp_path / "out")
    assert status == 0, failures(rows)
    assert list(rows) == gpu_check.NAMES
    assert table.splitlines()[-3] == f"not on a GPU: {', '.join(rows)}"
    seconds = json.loads((tmp_path / "out/gpu_check.json").read_text())["seconds"]
    assert seconds < 300
    values = {row["name"]: row["value"] for mine in rows.values() for row in mine}
    assert values["packed attention in bf16 against fp64: output"] < 1e-2
    assert values["smoke, continued: exit status"] == 0
    record_property("figure", f"gpu-check on a CPU: all {len(rows)} parts in {seconds} s")


def test_a_part_that_takes_too_long_is_ended_and_said(tmp_path):
    assert gpu_check.watch("versions", tmp_path, 0.5).splitlines()[0] == "stopped after 0.5 s"
    (late,) = gpu_check.run(gpu_check.PARTS[0], tmp_path, 0.0)
    assert gpu_check.line(late).endswith("FAILED: no time was left")


def test_what_a_card_lacks_is_one_line():
    card = Card(name="NVIDIA H100", capability=(9, 0), free=70 * GIB, total=79 * GIB)
    assert card.lacks(46 * GIB) == ""
    assert card.lacks(72 * GIB) == (
        "NVIDIA H100: expected 72.0 GiB free, found 70.0 of 79.0: end the processes on it (nvidia-smi), "
        "or take a larger one"
    )
    old = Card(name="Tesla T4", capability=(7, 5), free=15 * GIB, total=16 * GIB)
    assert old.lacks(0) == "Tesla T4: compute capability 7.5, expected 8.0 or newer, for bf16"


def test_another_process_on_the_card_is_said(capsys, tmp_path):
    card = Card(name="NVIDIA H100", capability=(9, 0), free=70 * GIB, total=79 * GIB)
    gpu_machine.describe(gpu_check.recorder(tmp_path / "rows"), card)
    assert re.search(r"taken by others +9 GiB +another process is on it, .*", capsys.readouterr().out)


@pytest.mark.parametrize(
    "version, expected",
    [
        ("2.13.0", ""),
        ("2.11.0+cu130", ""),
        ("2.11.0a0+eb65b36914.nv26.02", ""),
        ("2.10.0", "2.10.0, expected >=2.11"),
        ("2.9.1+cu128", "2.9.1+cu128, expected >=2.11"),
        (None, "not installed, expected >=2.11"),
    ],
)
def test_a_torch_that_is_too_old_is_told_by_its_version(version, expected):
    assert unmet("torch>=2.11", version) == expected
