"""`make demo` as a user types it, in a copy of the checkout, the tiny recipe cut down: killed, and again.

The copy has an environment of its own, made of links into the one that runs the tests; make finds it complete
and installs nothing into that.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
from scripts import ROOT

SMALL = [
    "world.pretrain=600",
    "world.midtrain=100",
    "world.sft_general=1000",
    "world.sft_domain=40",
    "world.rlvr=20",
    "world.validation=5",
    "world.test=4",
    "pretrain.steps=3",
    "posttrain.steps=3",
    "route.steps=3",
    "experts.*.midtrain.steps=2",
    "experts.*.sft.steps=2",
    *(f"experts.*.rlvr.rl.{change}" for change in ("rounds=1", "prompts=2", "group=2", "max_new_tokens=4")),
    "evaluation.tests.*.max_new_tokens=4",
]
"""Changes to the tiny recipe: seconds instead of minutes, and nothing is learnt."""
CUT = """

_whole = recipe


def recipe() -> Recipe:
    from megatron_bar.config import override

    return override(_whole(), Path(__file__).with_name("small.txt").read_text().split())
"""
LEFT_OUT = (
    ".git",
    ".venv*",
    "runs",
    "*.egg-info",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    "build",
    "dist",
)


def copy_checkout(place: Path) -> None:
    """The checkout with the tiny recipe cut down."""
    shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(*LEFT_OUT))
    recipes = place / "megatron_bar/recipes"
    (recipes / "small.txt").write_text("\n".join(SMALL))
    with (recipes / "tiny.py").open("a") as file:
        file.write(CUT)
    (place / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != ".ready":
            (place / ".venv" / path.name).symlink_to(path)
    (place / ".venv/.ready").touch()  # newer than setup.py: make has nothing to install


def environment(place: Path) -> dict[str, str]:
    """Returns what commands typed in ``place`` see: torchrun takes a free port, pip would install nothing."""
    alone = {"PYTHONPATH": str(place), "PET_STANDALONE": "1", "PIP_DRY_RUN": "1"}
    return (
        os.environ | alone | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    )


def typed(command: str, place: Path, *, timeout: float = 1200) -> subprocess.CompletedProcess:
    """A line of bash, as typed in the checkout ``place``."""
    bash = ["bash", "-euo", "pipefail", "-c", command]
    return subprocess.run(
        bash, cwd=place, env=environment(place), capture_output=True, text=True, timeout=timeout, check=False
    )


def make_demo(place: Path) -> str:
    """What the second `make demo` prints; the first was killed while the first expert trained."""
    copy_checkout(place)
    first = subprocess.Popen(
        ["make", "demo"],
        cwd=place,
        env=environment(place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 600
        while not (place / "runs/tiny/branched").exists():
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.05)
    finally:
        # torchrun's processes are in sessions of their own.
        for process in (*psutil.Process(first.pid).children(recursive=True), first):
            process.kill()
        first.wait()
    assert not (place / "runs/tiny/final").exists()
    done = typed("make demo", place)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
