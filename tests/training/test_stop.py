"""SIGTERM while a stage trains: saved, status 75, and the same command ends with the bytes of a run that was
left alone."""

import os
import signal
import time
from dataclasses import replace

import pytest
from distributed import start_process
from tiny_fit import STAGE, finish, left, logs, make_source, train


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("source") / "two")


def wait_for(folder, steps: int, process) -> None:
    metrics, deadline = logs(folder) / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= steps):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("signals, save_every", [(1, 0), (2, 1)])
def test_a_warning_saves_and_ends_with_a_status_of_its_own(signals, save_every, source, tmp_path):
    stage = replace(STAGE, steps=40, save_every=save_every)
    assert finish(source, tmp_path / "a", stage)[0] == 0
    folder, output = tmp_path / "b", tmp_path / "output"
    folder.mkdir()
    process = start_process(train, source, folder, stage, output=output)
    wait_for(folder, 3, process)
    for _ in range(signals):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.02)
    process.join()
    assert process.exitcode == os.EX_TEMPFAIL == 75
    (said,) = [line for line in output.read_text().splitlines() if line.startswith("stopped:")]
    saved = sorted((folder / ".out.checkpoints").iterdir())[-1]
    assert said == f"stopped: step {int(saved.name[5:])} of tiny is saved; the same command goes on from it"
    assert finish(source, folder, stage)[0] == 0
    assert left(folder) == left(tmp_path / "a")
