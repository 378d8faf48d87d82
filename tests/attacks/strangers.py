"""A tool in a process of its own, and what it costs."""

import os
import resource
import subprocess
import sys
from pathlib import Path

from scripts import ENV, ROOT

SECONDS = 10
MEMORY = 1 << 30


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS + 10, SECONDS + 10))


def tool(place: Path, name: str, *arguments: str) -> tuple[int, str, str, float, int]:
    """Status, output, errors, seconds of processor time and bytes at its largest of a tool's process."""
    command = [sys.executable, str(ROOT / f"tools/{name}.py"), *arguments]
    with subprocess.Popen(
        command,
        cwd=place,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limited,
    ) as process:
        out, err = process.stdout.read(), process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, out, err, used.ru_utime + used.ru_stime, used.ru_maxrss << 10


def require_refused(done: tuple, usual: tuple[float, int]) -> str:
    """Raises unless a tool refused in one line, at little more than it costs with good input; returns a
    figure."""
    status, out, err, seconds, memory = done
    assert status == 1, (out, err[-2000:])
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 2000, err[-2000:]
    assert seconds - usual[0] < SECONDS and memory - usual[1] < MEMORY
    more = max(0, memory - usual[1]) >> 20
    return f"refused in {max(0.0, seconds - usual[0]):.1f} s and {more} MiB more than good input takes"
