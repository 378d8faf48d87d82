"""Runs the command-line tools: as real processes, or the same script in this process, which saves the
imports."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENV = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
"""Of a tool's process: as an editable install puts the checkout on the path."""
Result = tuple[int, str, str]
"""Exit status, stdout, stderr."""


def process(tool: str, *arguments, launcher: tuple[str, ...] = ()) -> Result:
    command = [sys.executable, *launcher, ROOT / "tools" / f"{tool}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=600, check=False)
    return done.returncode, done.stdout, done.stderr


def run_here(monkeypatch, read_output: Callable[[], tuple[str, str]], script: Path, *arguments) -> Result:
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    out, err = read_output()
    code = ended.value.code
    # The interpreter prints a message and exits with 1 when the code is a string.
    return (1, out, f"{err}{code}\n") if isinstance(code, str) else (code or 0, out, err)


def refused(result: Result) -> str:
    """The one line a failing tool says."""
    status, out, err = result
    assert (status, out) == (1, ""), result
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err
