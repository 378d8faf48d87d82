"""The log of a stage: TensorBoard's own reader sees its steps, and a file that can grow no more is told in
one line."""

import os
import subprocess
import sys

from scripts import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_bar.training.metrics import Log

LIMITED = """
import resource, sys
from pathlib import Path
from megatron_bar.cli import run
from megatron_bar.training.metrics import Log

def main():
    with Log("stage", Path(sys.argv[1]), steps=1000, every=1e9) as log:
        for number in range(1, 1000):
            log.step(number, {"loss": 1.0})

resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
run(main)
"""


def test_a_resumed_stage_is_one_curve(tmp_path):
    for start, end in ((0, 6), (3, 5)):
        with Log("stage", tmp_path, steps=9, start=start) as log:
            for number in range(start + 1, end + 1):
                log.step(number, {"loss": 10.0 * start + number, "share/math": 0.5})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "share/math"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 34.0),
        (5, 35.0),
    ]


def test_a_file_that_grows_no_more_is_one_line(tmp_path):
    """Of both TensorBoard's is the longer one; a limit on a file's size stands in for the full disk."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path], env=env, capture_output=True, text=True, check=False
    )
    [events] = tmp_path.glob("events*")
    assert (done.returncode, done.stderr) == (1, f"error: {events}: could not be written: File too large\n")
