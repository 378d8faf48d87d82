"""SIGKILL while checkpoints are written: at every call that touches the disk, and at random. A run started
again is the same."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from distributed import start_process
from kill_points import count_calls
from tiny_fit import finish, left, logs, make_source, train

from megatron_bar.training import checkpoint
from megatron_bar.training.fit import remove_leftovers


def counted(source: Path, folder: Path, report: Path, kill_at: int | None) -> None:
    count_calls(checkpoint.__file__, report, kill_at, train, source, folder)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A source, what a run of it leaves that nobody disturbs, and its calls."""
    root = tmp_path_factory.mktemp("straight")
    source = make_source(root / "two")
    (root / "counted").mkdir()
    process = start_process(counted, source, root / "counted", root / "calls", None, output=root / "output")
    process.join()
    assert process.exitcode == 0
    assert finish(source, root / "run")[0] == 0
    assert left(root / "run") == left(root / "counted")
    return source, left(root / "run"), json.loads((root / "calls").read_text())


def kill_and_finish(straight, folder: Path, start) -> bool:
    """Whether ``start``'s process was killed in time; then the same run is started again and must leave the
    same."""
    source, expected, _ = straight
    folder.mkdir()
    process = start(folder)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    if process.exitcode == 0:
        return False
    if not (
        folder / "out"
    ).exists():  # a folder that is there is whole; the pipeline goes on to the next step
        status, said = finish(source, folder)
        assert status == 0, said
    else:
        remove_leftovers(folder / "out")
    assert left(folder) == expected
    shutil.rmtree(folder)
    shutil.rmtree(logs(folder))
    return True


def kills(straight, root: Path, at_points: int, at_random: int) -> tuple[int, set[str]]:
    """How many runs were killed and recovered, and in which calls."""
    source, _, calls = straight
    chance, killed, seen = random.Random(0), 0, set()
    points = sorted(chance.sample(range(1, len(calls)), min(at_points, len(calls) - 1)))
    for point in points:
        report = root / "report"
        killed += kill_and_finish(
            straight,
            root / f"point-{point}",
            lambda folder: start_process(counted, source, folder, report, point, output=root / "output"),  # noqa: B023
        )
        seen.add(report.read_text())
    for number in range(at_random):

        def start(folder: Path):
            process = start_process(train, source, folder, output=root / "output")
            while process.is_alive() and not (folder / ".out.checkpoints").exists():
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.15))  # saves go on for a quarter of a second and more
            process.kill()
            return process

        killed += kill_and_finish(straight, root / f"random-{number}", start)
    return killed, seen


def test_a_kill_during_a_save_loses_nothing(straight, tmp_path):
    killed, _ = kills(straight, tmp_path, 9, 6)
    assert killed >= 12


@pytest.mark.faults
def test_two_hundred_kills_during_saves_lose_nothing(straight, tmp_path, record_property):
    killed, seen = kills(straight, tmp_path, 160, 80)
    assert killed >= 200
    assert {
        f"{when} {call}" for when in ("before", "after") for call in ("write", "fsync", "rename", "mkdir")
    } <= seen
    record_property(
        "figure", f"SIGKILL during save: {killed} kills, 0 unrecoverable, losses and folder identical"
    )
