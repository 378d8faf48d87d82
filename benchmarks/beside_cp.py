"""A tool as a process of its own beside `cp` of as many bytes, in turns: seconds, anonymous memory, disk
written.

`cp` copies as many bytes as the tool writes (of one that writes none: as many as it reads), to the same disk,
and syncs them, as the tools fsync theirs; what the tool reads beyond that is read by `tail`. Nobody finds a
file in memory: before each turn all is synced and the inputs are dropped from the page cache.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.errors import BarError

ROOT = Path(__file__).resolve().parent.parent
CP = "cp"
"""The turn of `cp`."""


@dataclass(frozen=True)
class Case:
    name: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    read: int
    """Bytes of weights that it reads, each counted once."""
    written: int
    """Bytes of weights that it writes."""
    out: Path | None = None
    """What it writes; it is removed after each turn."""


@dataclass(frozen=True)
class Ran:
    seconds: float
    peak: int
    """Bytes of anonymous memory (no mapped file, no page cache) of the process and all below it at their
    highest, watched every 10 ms."""
    written: int
    """Bytes that they made the system write to a disk; to a tmpfs none."""


def tool(name: str, *arguments: object) -> tuple[str, ...]:
    """The command line of a tool, as a user starts it from the checkout."""
    return (sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments))


Turns = dict[str, list[Ran]]
"""What was found in the turns of `cp` and of each way."""


def take_turns(case: Case, work: Path, repeats: int, ways: dict[str, tuple[str, ...]]) -> Turns:
    """Runs `cp` and every way, which is further arguments of the case's command, in turns."""
    ran: Turns = {turn: [] for turn in (CP, *ways)}
    for _ in range(repeats):
        for turn, found in ran.items():
            forget(case.inputs)
            if turn == CP:
                found.append(copy(case, work / "copies"))
                continue
            found.append(run((*case.command, *ways[turn])))
            if case.out is not None:
                shutil.rmtree(case.out)
    return ran


def seconds(ran: Turns) -> str:
    """Returns those of all turns, to be printed."""
    return ", ".join(f"{turn} {' '.join(f'{r.seconds:.1f}' for r in runs)} s" for turn, runs in ran.items())


def run(command: Sequence[str]) -> Ran:
    """Runs it to its end. Raises BarError where it fails; what it said stands on stderr."""
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT) as child:
        try:
            while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
                peak = max(peak, anonymous(child.pid))
                time.sleep(0.01)
        except BaseException:
            child.kill()
            raise
        child.returncode = os.waitstatus_to_exitcode(ended[1])
    if child.returncode:
        raise BarError(f"{shlex.join(command)[:300]}: expected status 0, got {child.returncode}")
    return Ran(time.perf_counter() - began, peak, ended[2].ru_oublock * 512)


def anonymous(process: int) -> int:
    """Bytes of anonymous memory that the process and all below it have now."""
    place = Path(f"/proc/{process}")
    try:
        status = (place / "status").read_text().splitlines()
        below = " ".join(file.read_text() for file in place.glob("task/*/children")).split()
    except OSError:  # it ended
        return 0
    own = sum(int(line.split()[1]) * 1024 for line in status if line.startswith(("RssAnon", "VmSwap")))
    return own + sum(anonymous(int(child)) for child in below)


def forget(paths: Iterable[Path]) -> None:
    """Drops the files from the page cache."""
    os.sync()
    for path in paths:
        for file in (f for f in path.rglob("*") if f.is_file()):
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(case: Case, target: Path) -> Ran:
    """`cp` of the first bytes of the inputs, synced, and a look at as many of the rest as the tool reads
    besides."""
    left = case.written or case.read
    more, script = case.read - left, []
    for n, file in enumerate(file for path in case.inputs for file in path.rglob("*") if file.is_file()):
        have, source, copied = file.stat().st_size, shlex.quote(str(file)), shlex.quote(f"{target}/{n}")
        take = min(left, have)
        if take == have:
            script.append(f"cp {source} {copied}")
        elif take:
            script.append(f"head -c {take} {source} > {copied}")
        if take < have and more > 0:
            script.append(f"tail -c +{take + 1} {source} | head -c {min(more, have - take)} > /dev/null")
        more -= have - take
        left -= take
    assert left == 0, case
    target.mkdir()
    ran = run(("bash", "-ec", "\n".join((*script, f"sync {shlex.quote(str(target))}/*"))))
    shutil.rmtree(target)
    return ran
