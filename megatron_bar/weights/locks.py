"""Two locks: on the place where a folder is written, and on each step of a run; one process at a time has it.

`OutputLock`: beside the target lies `.<name>.partial`: `folder`, which becomes the target by a rename;
`lock`, taken while a process lives; what the writer was asked for (`job.json`), and a record of every
finished file. The same job started again keeps those files, so they outlive a kill.

`StepLocks`: processes that make one recipe in one folder share its steps out by files in its `.locks`.
"""

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from megatron_bar.errors import BarError, writing
from megatron_bar.weights.json_file import read_object
from megatron_bar.weights.whole import publish, write_whole


def check_out(out: Path | str) -> None:
    """Refuses a target that would be overwritten; call it before anything expensive."""
    expected = f"{out}: expected a new or empty folder to write to"
    try:
        is_folder = stat.S_ISDIR(Path(out).lstat().st_mode)
        is_full = is_folder and any(Path(out).iterdir())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # a name too long or with a NUL, a file as parent, no permission
        raise BarError(f"{expected}, got {error}") from None
    if not is_folder:
        raise BarError(f"{expected}, got a file or link")
    if is_full:
        remove_published(Path(out))
        raise BarError(f"{expected}, got one that is not empty")


def remove_published(out: Path) -> None:
    """Removes what a kill right behind the renaming to ``out`` left beside it."""
    home = _home(out.resolve())
    if home.is_dir() and not (home / "folder").exists():
        shutil.rmtree(home, ignore_errors=True)


def _home(out: Path) -> Path:
    return out.parent / f".{out.name}.partial"


class OutputLock:
    """The right to write ``out``: a lock until it is published, aborted or left for the next run."""

    def __init__(self, out: Path):
        self.out = out
        self.home = _home(out)
        self.path = self.home / "folder"
        """Folder that becomes ``out``."""
        for place in (self.home, self.path, self.home / "lock"):
            if place.is_symlink():
                raise BarError(f"{place}: expected a folder and files of our own, got a link")
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.leave()
                raise BarError(
                    f"{out}: expected to be its only writer, got another process at work in {self.home}"
                ) from None
            if self._is_mine():
                return
            self.leave()  # its last holder removed it in between

    def _is_mine(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._lock), (self.home / "lock").stat()) and self.path.is_dir()
        except FileNotFoundError:
            return False

    def take_up(self, job: dict | None) -> None:
        """Keeps what an earlier run of the same ``job`` left, else empties the place."""
        file = self.home / "job.json"
        wanted = None if job is None else json.loads(json.dumps(job))
        try:
            same = wanted is not None and read_object(file, expected="a job") == wanted
        except BarError:
            same = False
        if any(file.is_symlink() for file in self.home.rglob("*")):  # nothing of ours
            same = False
        if not same:
            shutil.rmtree(self.path)
            for left in self.home.glob("*.json"):
                left.unlink()
            self.path.mkdir()
            if wanted is not None:
                write_whole(file, json.dumps(wanted))

    def finished(self, name: str) -> dict | None:
        """Returns what was recorded of the file ``name``, if it was finished by an earlier run."""
        record = self.home / f"{name}.json"
        if not (record.is_file() and (self.path / name).is_file()):
            (self.path / name).unlink(missing_ok=True)
            return None
        return read_object(record, expected="the record of a finished file")

    def record(self, name: str, about: dict) -> None:
        """Notes that the file is whole; ``about``, such as its tensors' hashes, is for the next run."""
        write_whole(self.home / f"{name}.json", json.dumps(about))

    @property
    def has_finished_files(self) -> bool:
        return any(file.name != "job.json" for file in self.home.glob("*.json"))

    def publish(self) -> None:
        publish(self.path, self.out)
        self.abort()

    def abort(self) -> None:
        """Removes what is not published."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.leave()

    def leave(self) -> None:
        os.close(self._lock)


def lock_output(out: Path | str, nbytes: int = 0, *, job: dict | None = None) -> OutputLock:
    """Locks ``out``, on whose file system ``nbytes`` must fit.

    ``job``: all that the output depends on; what a killed run of the same job finished is kept.
    """
    check_out(out)
    out = Path(out).resolve()
    try:
        lock = OutputLock(out)
    except OSError as error:
        raise BarError(f"{error.filename or out}: could not be made: {error.strerror}") from None
    try:
        check_out(out)  # somebody may have published it in between
        lock.take_up(job)
        there = sum(file.stat().st_size for file in lock.path.iterdir())
        free = shutil.disk_usage(out.parent).free
        if nbytes - there > free:
            raise BarError(f"{out}: not enough space: expected {nbytes - there} bytes free, got {free}")
    except (BarError, OSError) as error:
        lock.leave() if lock.has_finished_files else lock.abort()
        if isinstance(error, BarError):
            raise
        raise BarError(f"{lock.home}: expected files of our own, got {error}") from None
    return lock


@contextmanager
def locked_output(out: Path | str, nbytes: int, *, job: dict | None) -> Iterator[OutputLock]:
    """Opens a lock for the block; an error aborts it, a termination leaves finished files to the same job."""
    lock = lock_output(out, nbytes, job=job)
    try:
        with writing(lock.out):
            yield lock
    except (KeyboardInterrupt, SystemExit):
        if job is not None and lock.has_finished_files:
            lock.leave()
        else:
            lock.abort()
        raise
    except BaseException:
        lock.abort()
        raise


class StepLocks:
    """The locks of the run in ``out``; the system lets go of one when its holder ends, however it does."""

    def __init__(self, out: Path):
        self.folder = out / ".locks"

    def try_step(self, name: str) -> TextIO | None:
        """Returns the lock of a step, taken until it is closed, or None where another process has it."""
        file = self._open(name.replace("/", "-"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Waits until no other process runs this block with the same ``what``, and keeps them out."""
        with self._open(f"{what}.lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _open(self, name: str) -> TextIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        return (self.folder / name).open("w")
