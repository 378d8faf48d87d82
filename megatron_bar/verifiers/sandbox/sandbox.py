"""Runs model-written Python where it can reach no host file, no network, no other process, and not for long.

``run`` starts jail.py in a child (namespaces and rlimits; its docstring says what the program finds inside)
and watches it: output beyond the cap, sleep or the wall clock ends the whole process tree. When ``run``
returns, no process of the program is left. Where the kernel refuses the namespaces it raises: code is never
run with less isolation.

The caller must not believe anything a program says about itself. ``judge`` runs one beside a judge of its
tests, whose word alone comes back (judge.py).
"""

import functools
import itertools
import os
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.verifiers.sandbox.calls import MACHINES
from megatron_bar.verifiers.sandbox.image import image

JAIL = Path(__file__).with_name("jail.py")
START_S = 60.0
"""A child that is not ready by then is an error of the machine, not of the program."""
CHUNK = 65536
READY = b"ready"
TICKS = os.sysconf("SC_CLK_TCK")
LOOK_S = 0.1
"""Seconds between two looks at how much of its time a program slept."""
ADVICE = (
    "model-written code is not run; allow unprivileged user namespaces (sysctl user.max_user_namespaces > 0, "
    "kernel.apparmor_restrict_unprivileged_userns = 0; in Docker --security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined)"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use."""

    wall_s: float = 30.0
    """Seconds from the moment it may start; the whole process tree ends with it."""
    idle_s: float = 1.0
    """Seconds that it may sleep or wait of its own accord: those in which it neither works nor waits for a
    core that others have."""
    cpu_s: int = 3
    """Seconds of processor time of a program; its judge has half of them."""
    memory_bytes: int = 256 << 20
    """Address space, of the program and of its judge each, besides the library's and threads' stacks."""
    disk_bytes: int = 8 << 20
    """The scratch disk it starts in."""
    file_bytes: int = 8 << 20
    """The largest file; libcrypto, which programs may import, has 5 MB."""
    processes: int = 67
    """Threads, and our own three processes; a program can start no process."""
    open_files: int = 32
    output_bytes: int = 1 << 20
    """Standard output and standard error, each."""
    value_bytes: int = 8 << 20
    """What a program gives its judge, or gets from it, at once."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a program left behind."""

    exit_code: int
    """128 + signal when a signal ended it."""
    stopped: str
    """Why it was stopped: "time", "sleep" or "output"; empty when it ended by itself."""
    stdout: bytes
    stderr: bytes
    start_s: float
    """Seconds from the call to the moment the program may start."""
    ran_s: float
    """Seconds from then to its end."""
    cpu_s: float
    """Seconds of processor time of the whole tree."""
    idle_s: float
    """Seconds that it slept or waited of its own accord, but for the last ``LOOK_S``."""


def run(code: str, *, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
    """Runs ``code`` as a script with ``stdin`` and waits for it. Safe in threads."""
    _require()
    return _run(stdin, code.encode("utf-8", "replace"), limits or Limits(), judged=False)


def judge(answer: str, task: str, *, limits: Limits | None = None) -> Outcome:
    """Runs ``answer`` and ``task``, the encoded inputs of answer.py and judge.py, side by side; ``stdout``
    holds the verdicts. Safe in threads."""
    _require()
    return _run(answer.encode(), task.encode(), limits or Limits(), judged=True)


@functools.cache
def _require() -> None:
    """Raises unless programs are isolated on this machine, found out once by running one."""
    if not sys.platform.startswith("linux"):
        raise BarError(
            f"sandbox: Linux namespaces expected, found {sys.platform}; model-written code is not run"
        )
    if os.uname().machine not in MACHINES:
        raise BarError(
            f"sandbox: a machine of {' or '.join(MACHINES)} expected, found {os.uname().machine}; "
            "model-written code is not run"
        )
    try:
        outcome = _run(b"", b"print(1)", Limits(), judged=False)
    except BarError as error:
        raise BarError(f"{error}; {ADVICE}") from None
    assert outcome.stdout == b"1\n", outcome


def _run(data: bytes, given: bytes, limits: Limits, *, judged: bool) -> Outcome:
    began = time.monotonic()
    ready, status = os.pipe()
    with open(ready, "rb", buffering=0) as ready_pipe:
        try:
            with _file(data) as stdin, _file(given) as other:
                child = subprocess.Popen(
                    _command(status, other.fileno(), judged, limits), stdin=stdin, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, bufsize=0, env={}, cwd="/", start_new_session=True,
                    pass_fds=(status, image(), other.fileno()),
                )  # fmt: skip
        finally:
            os.close(status)
        with child, _Watch(child, ready_pipe, limits) as watch:
            stopped = watch.until_end()
    word = bytes(watch.heard[ready_pipe])
    if not word.startswith(READY):
        reason = word or watch.heard[child.stderr][-300:] or b"did not start in time"
        raise BarError(f"sandbox: {' '.join(reason.decode(errors='replace').split())}")
    return Outcome(
        exit_code=child.returncode if child.returncode >= 0 else 128 - child.returncode,
        stopped=stopped,
        stdout=bytes(watch.heard[child.stdout]),
        stderr=bytes(watch.heard[child.stderr]),
        start_s=watch.ready_at - began,
        ran_s=time.monotonic() - watch.ready_at,
        cpu_s=float(word.removeprefix(READY) or 0),
        idle_s=watch.idle_s,
    )


def _file(data: bytes):
    """Returns a file to read ``data`` from; a program could hold up who writes to its pipe."""
    file = os.memfd_create("input")
    with open(file, "wb") as written:
        written.write(data)
        written.flush()
        return open(f"/proc/self/fd/{file}", "rb")


def _command(status: int, given: int, judged: bool, limits: Limits) -> list[str]:
    numbers = [os.getpid(), status, image(), given, int(judged), limits.value_bytes, limits.disk_bytes]
    numbers += [limits.cpu_s, limits.memory_bytes, limits.file_bytes, limits.processes, limits.open_files]
    # An import reads cached bytecode, a script would not.
    start = "import sys; sys.path.append(sys.argv.pop(1)); import jail"
    return [sys.executable, "-I", "-S", "-c", start, str(JAIL.parent), *map(str, numbers)]


class _Watch:
    """Listens to a child and ends it."""

    def __init__(self, child: subprocess.Popen, ready_pipe, limits: Limits):
        self.child = child
        self.ready_pipe = ready_pipe
        self.limits = limits
        self.heard = {pipe: bytearray() for pipe in (child.stdout, child.stderr, ready_pipe)}
        self.ready_at = 0.0
        self.idle_s = 0.0
        self.idle = _Idle(child.pid)
        self.ended = os.pidfd_open(child.pid)

    def __enter__(self):
        self.selector = selectors.DefaultSelector()
        for pipe in self.heard:
            os.set_blocking(pipe.fileno(), False)
            self.selector.register(pipe, selectors.EVENT_READ)
        self.selector.register(self.ended, selectors.EVENT_READ)
        return self

    def __exit__(self, *_):
        """Ends the child, also on an exception: it ends the tree and waits for its last process."""
        self.selector.close()
        os.close(self.ended)
        self.child.terminate()
        try:
            self.child.wait(timeout=START_S)
        except subprocess.TimeoutExpired:
            self.child.kill()

    def until_end(self) -> str:
        """Returns why the child was stopped, or "" when it ended by itself."""
        deadline = time.monotonic() + START_S
        look = deadline
        for turn in itertools.count():
            if turn > 100:
                time.sleep(0.001)  # a program may speak often and say little
            now = time.monotonic()
            if now >= deadline:
                return "time"
            if now >= look:
                look = now + LOOK_S
                self.idle_s = self.idle.seconds(now - self.ready_at)
                if self.idle_s > self.limits.idle_s:
                    return "sleep"
            events = self.selector.select(min(deadline, look) - now)
            for key, _ in events:
                if key.fileobj is not self.ended:
                    self._listen(key.fileobj)
            if any(len(heard) > self.limits.output_bytes for heard in self.heard.values()):
                return "output"
            if not self.ready_at and self.heard[self.ready_pipe]:
                self.ready_at = time.monotonic()
                deadline = self.ready_at + self.limits.wall_s
                look = self.ready_at + LOOK_S
            if [key.fileobj for key, _ in events] == [self.ended]:
                return ""

    def _listen(self, pipe):
        chunk = os.read(pipe.fileno(), CHUNK)
        self.heard[pipe] += chunk
        if not chunk:
            self.selector.unregister(pipe)


class _Idle:
    """The time in which a process and its descendants neither worked nor waited for a core to work on."""

    def __init__(self, pid: int):
        self.pid = pid
        self.waited = {}
        """Seconds that threads waited, by their ids, those that ended too: the kernel forgets them."""
        self.until = 0.0
        self.busy = 0.0
        self.now = 0.0
        self.most = 0.0

    def seconds(self, until: float) -> float:
        """Returns the seconds without work of the first ``until``.

        What several threads worked at once is no credit for a later sleep: it counts for ``LOOK_S`` of it at
        most, by which what the kernel says may be late.
        """
        busy = self._worked(self.pid) + sum(self.waited.values())
        self.now = max(self.now + until - self.until - (busy - self.busy), self.most - LOOK_S)
        self.most = max(self.most, self.now)
        self.until, self.busy = until, busy
        return self.most

    def _worked(self, pid: int) -> float:
        seconds = 0.0
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:
                used = stat.read().rpartition(b")")[2].split()[11:15]  # with children that ended
            seconds += sum(map(int, used)) / TICKS
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/schedstat", "rb") as schedule:
                    self.waited[thread] = int(schedule.read().split()[1]) / 1e9
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as children:
                    seconds += sum(map(self._worked, map(int, children.read().split())))
        except (FileNotFoundError, ProcessLookupError):
            pass  # it ended meanwhile
        return seconds
