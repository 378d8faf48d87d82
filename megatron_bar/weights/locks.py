"""Two locks: of the place where a folder is written, one writer at a time, and of a run's steps, one maker at a time.

`OutputLock`: beside the target lies `.<name>.partial`: `folder`, which becomes the target by a rename; `lock`, held while a
process lives; what the writer was asked for (`job.json`), and a record of every finished file. The same job started again keeps
those files, so they outlive a kill.

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
    """Refuses a target that would be overwritten; called before anything expensive."""
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
    """The right to write ``out``, held by a lock until it is published, aborted or left for the next run."""

    def __init__(self, out: Path):
        self.out, self.home = out, _home(out)
        self.path = self.home / "folder"
        """What becomes ``out``."""
        if self.home.is_symlink():
            raise BarError(f"{self.home}: expected a folder of our own, got a link")
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.leave()
                raise BarError(f"{out}: expected to be its only writer, got another process at work in {self.home}") from None
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
        file, wanted = self.home / "job.json", None if job is None else json.loads(json.dumps(job))
        try:
            same = wanted is not None and read_object(file, expected="a job") == wanted
        except BarError:
            same = False
        if not same:
            shutil.rmtree(self.path)
            for left in self.home.glob("*.json"):
                left.unlink()
            self.path.mkdir()
            if wanted is not None:
                write_whole(file, json.dumps(wanted))

    def finished(self, name: str) -> dict | None:
        """What was recorded of the file ``name``, if it was finished by an earlier run."""
        record = self.home / f"{name}.json"
        if not (record.is_file() and (self.path / name).is_file()):
            (self.path / name).unlink(missing_ok=True)
            return None
        return read_object(record, expected="the record of a finished file")

    def record(self, name: str, about: dict) -> None:
        """That the file is whole; ``about``, its tensors' hashes say, is what the next run wants to know of it."""
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
    """Locks ``out``, on whose file system ``nbytes`` must fit. ``job``: all that the output depends on; what a killed run of
    the same one finished is kept."""
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
    except (BarError, OSError):
        lock.leave() if lock.has_finished_files else lock.abort()
        raise
    return lock


@contextmanager
def locked_output(out: Path | str, nbytes: int, *, job: dict | None) -> Iterator[OutputLock]:
    """A lock that is aborted on an error; on a termination what it finished waits for the same job."""
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
        """The lock of a step, held until it is closed, or None where another process holds it."""
        file = self._open(name.replace("/", "-"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Waits until no other process is in here with the same ``what``, and keeps them out meanwhile."""
        with self._open(f"{what}.lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _open(self, name: str) -> TextIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        return (self.folder / name).open("w")
