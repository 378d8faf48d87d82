"""However a run ends, no process of its engine is left within 15 seconds, and the reason is one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from engines import ENGINES, folder_for
from scripts import ROOT

from megatron_bar.rl.engine_process import SCRIPT

LIMIT = 15
"""Seconds within which all processes of an engine are gone."""


@dataclass
class Run:
    """A run under torchrun, and its processes."""

    torchrun: psutil.Popen
    log: Path

    def text(self) -> str:
        return self.log.read_text()

    def trainer(self) -> psutil.Process:
        return next(p for p in self.torchrun.children() if any("engine_run.py" in w for w in p.cmdline()))

    def engine(self) -> psutil.Process:
        return next(p for p in self.trainer().children() if str(SCRIPT) in p.cmdline())

    def wait_for(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 180
        while not seen():
            assert time.monotonic() < deadline and self.torchrun.poll() is None, self.text()[-3000:]
            time.sleep(0.1)

    def rounds(self, more: int) -> None:
        """Waits for as many graded rounds more."""
        before = self.text().count("graded")
        self.wait_for(lambda: self.text().count("graded") >= before + more)


def begin(source: Path, out: Path, how: str = "", **engine) -> Run:
    out.mkdir(parents=True)
    log = out / "log"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command += [str(ROOT / "tests/rl/engine_run.py"), str(source), str(out / "out"), json.dumps(engine)]
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "tests", "tests/rl"))
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    if engine.get("tensor") == 2:  # on a CPU it wants to be told the cores of each worker
        env["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"
    with log.open("w") as file:
        torchrun = psutil.Popen(
            [*command, *([how] if how else [])], stdout=file, stderr=subprocess.STDOUT, env=env, cwd=out
        )
    return Run(torchrun, log)


def send(process: Callable[[Run], psutil.Process], number: int) -> Callable[[Run], None]:
    return lambda run: process(run).send_signal(number)


def worker(run: Run) -> psutil.Process:
    """A process that the engine itself started; itself, where it has none."""
    return (run.engine().children(recursive=True) or [run.engine()])[-1]


ENDS: dict[str, tuple[Callable[[Run], None], str]] = {
    "torchrun: SIGINT": (send(lambda run: run.torchrun, signal.SIGINT), ""),
    "torchrun: SIGTERM": (send(lambda run: run.torchrun, signal.SIGTERM), ""),
    "torchrun: SIGKILL": (
        send(lambda run: run.torchrun, signal.SIGKILL),
        r"torchrun \(process \d+\) has ended",
    ),
    "trainer: SIGINT": (send(Run.trainer, signal.SIGINT), "error: interrupted"),
    "trainer: SIGTERM": (send(Run.trainer, signal.SIGTERM), "is saved; the same command goes on from it"),
    "trainer: SIGKILL": (send(Run.trainer, signal.SIGKILL), ""),
    "engine: SIGTERM": (send(Run.engine, signal.SIGTERM), "its process ended with status -15"),
    "engine: SIGKILL": (send(Run.engine, signal.SIGKILL), "its process ended with status -9 during"),
    "engine: hangs": (send(Run.engine, signal.SIGSTOP), "no sign of life for 20 s during"),
    "engine's worker: SIGKILL": (send(worker, signal.SIGKILL), "error: engine "),
}
"""What is done in the middle of the rounds, and what is then said (nothing where who would say it is
killed)."""
SAMPLE = ("trainer: SIGKILL", "torchrun: SIGKILL")


def gone(run: Run, processes: list[psutil.Process]) -> float:
    """Waits until all of them are gone; returns the seconds."""
    start = time.monotonic()
    _, left = psutil.wait_procs(processes, timeout=60)
    left = [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not left, (left, run.text()[-2000:])
    return time.monotonic() - start


def whole(run: Run) -> list[psutil.Process]:
    return [run.engine(), *run.engine().children(recursive=True)]


@pytest.fixture
def started(tmp_path):
    runs = []

    def start(*given, **more) -> Run:
        runs.append(begin(*given, **more))
        return runs[-1]

    yield start
    for run in runs:
        left = run.torchrun.children(recursive=True) if run.torchrun.is_running() else []
        for process in (*left, run.torchrun):
            if process.is_running():
                process.kill()
        run.torchrun.wait()


def marked(name: str, engine: str):
    marks = [] if name in SAMPLE else [pytest.mark.faults]
    return pytest.param(
        name, engine, marks=[pytest.mark.vllm] if "vllm" in engine else marks, id=f"{engine}-{name}"
    )


PAIRS = [(name, engine) for engine in ENGINES for name in ENDS]
# Only where there are children of its own another end differs.
PAIRS = [(name, engine) for name, engine in PAIRS if "workers" not in engine or "SIGKILL" in name]


@pytest.mark.parametrize("name, engine", [marked(*pair) for pair in PAIRS])
def test_however_it_ends_no_process_is_left(name, engine, tmp_path, started, record_property):
    act, said = ENDS[name]
    run = started(
        folder_for(engine, tmp_path), tmp_path / "run", patience=20, restarts=0, **ENGINES[engine]()
    )
    run.wait_for(lambda: "graded" in run.text())
    run.rounds(1)
    processes = whole(run)
    trainer = run.trainer()
    asked = time.monotonic()
    act(run)
    gone(run, processes) if name != "engine: hangs" else gone(run, [trainer, *processes])
    seconds = time.monotonic() - asked - (20 if name == "engine: hangs" else 0)
    psutil.wait_procs([trainer], timeout=60)
    assert seconds <= LIMIT
    assert not said or re.search(said, run.text()), run.text()[-3000:]
    assert run.text().count("error: engine") <= 1
    record_property(
        "figure", f"engine {engine} left after {name.replace(':', '')}: 0 processes, {seconds:.1f} s"
    )


@pytest.mark.parametrize("how, said", [("fail", "error: the grader fails"), ("short", "")])
def test_an_error_and_the_end_leave_none(how, said, tmp_path, started):
    run = started(folder_for("transformers", tmp_path), tmp_path / "run", how, name="transformers")
    run.wait_for(lambda: "graded" in run.text())
    processes = run.torchrun.children(recursive=True)
    run.torchrun.wait(120)
    assert said in run.text()
    gone(run, processes)


@pytest.mark.faults
def test_a_dead_engine_is_started_anew_and_no_more_often_than_asked(tmp_path, started):
    run = started(folder_for("transformers", tmp_path), tmp_path / "run", name="transformers", restarts=1)
    run.wait_for(lambda: "graded" in run.text())
    run.engine().kill()
    run.wait_for(lambda: "started anew (1 of 1)" in run.text())
    run.rounds(2)
    run.engine().kill()
    run.torchrun.wait(60)
    assert run.text().count("error: engine transformers: its process ended with status -9") == 1
