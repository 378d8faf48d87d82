"""What a run shows while it works: a progress line, TensorBoard, and lines of JSON in metrics.jsonl."""

import json
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar

from megatron_bar.errors import writing
from megatron_bar.parallel.state import is_rank_zero

_QUIET = ("tokens", "loss_tokens")
"""Values that are written, like all values with a slash in their name, but not shown in the progress line."""


class Log:
    """Shows and writes the steps of one stage, on rank 0.

    A line is printed at most every ``every`` seconds, and always of the first and the last step.
    """

    def __init__(self, name: str, folder: Path | None, *, steps: int, start: int = 0, every: float = 5.0):
        self.name = name
        self.steps = steps
        self.every = every
        self._began = self._shown = time.monotonic()
        self._first = start
        self._tokens = 0
        self._show_next = True
        self._path = None if folder is None else folder / "metrics.jsonl"
        self._board = self._lines = None
        if folder is not None and is_rank_zero():
            with writing(self._path):
                folder.mkdir(parents=True, exist_ok=True)
                # What an interrupted run logged after its last checkpoint is taken back: those steps come
                # again.
                self._board = Board(folder, start=start)
                take_back(self._path, start)
                self._lines = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        if self._board is not None:
            with writing(self._path):
                self._lines.close()
                self._board.close()

    def step(self, number: int, values: dict[str, float]) -> None:
        """Shows and writes step ``number``, from 1; ``values`` holds ``tokens`` for the rate, perhaps."""
        self._tokens += values.get("tokens", 0)
        if self._board is None:
            if not is_rank_zero():
                return
        else:
            with writing(self._path):
                self._board.step(number, values)
                self._lines.write(json.dumps({"step": number} | values) + "\n")
                self._lines.flush()
        now = time.monotonic()
        if self._show_next or number == self.steps or now - self._shown >= self.every:
            self._shown = now
            self._show_next = False
            print(self._line(number, values, now - self._began), flush=True)

    def _line(self, number: int, values: dict[str, float], elapsed: float) -> str:
        # By this process's own steps: what a checkpoint skipped took no time.
        left = elapsed / max(1, number - self._first) * (self.steps - number)
        loud = {name: value for name, value in values.items() if name not in _QUIET and "/" not in name}
        shown = " ".join(f"{name} {_short(value)}" for name, value in loud.items())
        rate = f"{self._tokens / max(elapsed, 1e-9):,.0f} tok/s"
        clock = f"{int(left // 60)}:{int(left % 60):02d}"
        return f"{self.name}  {number}/{self.steps}  {shown}  {rate}  left {clock}"


class Board:
    """TensorBoard's file of one run, on the disk with every step.

    Its own writers hand events to a thread, where a full disk ends as a traceback. What an earlier run wrote
    of the steps after ``start`` is not shown.
    """

    def __init__(self, folder: Path, *, start: int):
        self._path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = self._path.open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def step(self, number: int, values: dict[str, float]) -> None:
        """Writes the values of step ``number``."""
        with writing(self._path):
            for name, value in values.items():
                self._write(Event(step=number, summary=scalar(name, value)))
            self._file.flush()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._file.close()


def take_back(path: Path, start: int) -> None:
    """Keeps of a file with a JSON line per step, the last of which may be torn, the steps up to ``start``."""
    if not path.is_file():
        return
    lines = [
        line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text("".join(line for line in lines if json.loads(line)["step"] <= start), encoding="utf-8")
    beside.rename(path)


def _short(value: float) -> str:
    return f"{value:.3f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.2e}"
