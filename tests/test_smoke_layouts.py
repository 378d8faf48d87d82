"""The smoke recipe whole, in fp32, on 4 and 8 processes cut as the 7B to 32B recipes are, and for every family:
it learns what one process learns."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from scripts import ROOT

STAGES = ("pretrain", "posttrain", "route", "experts.*.*")
LAYOUTS = {
    "tensor 4": (4, {"tensor": 4}),
    "tensor 2, pipeline 2, expert 2": (8, {"tensor": 2, "pipeline": 2, "expert": 2}),
    "8 data ranks": (8, {}),
    "tensor 2, expert 2": (4, {"tensor": 2, "expert": 2}),
}
CASES = [
    *(("olmo2", name) for name in list(LAYOUTS)[:3]),
    *((family, "tensor 2, expert 2") for family in ("qwen3", "llama", "mistral", "qwen2")),
]


def smoke(out: Path, family: str, processes: int, layout: dict[str, int]) -> dict[str, list[dict]]:
    """Runs it; returns the steps of each stage's log."""
    changes = [
        f"{stage}.parallel.{kind}={size}"
        for stage in STAGES
        for kind, size in layout.items()
        # A dense model has no experts to spread, and the router's model has three.
        if kind != "expert" or stage == "experts.*.*"
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += [str(processes), "examples/pretrain_bar.py", "smoke", "--out", str(out)]
    command += [
        "--set",
        f"shape.family={family}",
        "shape.dtype=float32",
        "experts.code.rlvr.rl.rounds=1",
        *changes,
    ]
    # With this eps an update is a smooth function of its gradient: rounding that differs by layout stays
    # small.
    command += [f"{stage}.optim.eps=1e-3" for stage in STAGES]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (out / "logs").rglob("metrics.jsonl")
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process learns, by family."""
    return cache(lambda family: smoke(tmp_path_factory.mktemp(family) / "smoke", family, 1, {}))


@pytest.mark.slow
@pytest.mark.parametrize("family, name", CASES)
def test_it_learns_what_one_process_learns(family, name, alone, tmp_path, record_property):
    found = smoke(tmp_path / "smoke", family, *LAYOUTS[name])
    assert found.keys() == alone(family).keys()
    worst = 0.0
    for stage, steps in alone(family).items():
        assert len(found[stage]) == len(steps), stage
        pairs = zip(steps, found[stage], strict=True)
        worst = max(worst, *(abs(one["loss"] - other["loss"]) for one, other in pairs))
    assert worst < 1e-4
    record_property(
        "figure", f"smoke of {family} on {name}: losses of {len(found)} stages within {worst:.1e}"
    )
