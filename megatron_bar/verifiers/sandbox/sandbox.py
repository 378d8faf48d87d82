"""Runs model-written Python where it can reach no host file, no network, no other process, and not for long.

``run`` starts jail.py in a child (namespaces and rlimits; its docstring says what the program finds inside)
and watches it: output beyond the cap or the wall clock ends the whole process tree. When ``run`` returns, no
process of the program is left. Where the kernel refuses the namespaces and bubblewrap cannot provide them, it
raises: code is never run with less isolation.

The caller must not believe anything a program says about itself. ``judge`` runs one beside a judge of its
tests, whose word alone comes back (judge.py).
"""

import functools
import itertools
import os
import selectors
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.errors import BarError

JAIL = Path(__file__).with_name("jail.py")
START_S = 20.0
"""A child that is not ready by then is an error of the machine, not of the program."""
CHUNK = 65536
ADVICE = (
    "model-written code is not run; allow unprivileged user namespaces (sysctl user.max_user_namespaces > 0, "
    "kernel.apparmor_restrict_unprivileged_userns = 0; in Docker --security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined) or, as an ordinary user, install bubblewrap"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use."""

    wall_s: float = 6.0
    """Seconds from the moment it may start; the whole process tree ends with it."""
    cpu_s: int = 3
    """Seconds of processor time of a program; its judge has half of them."""
    memory_bytes: int = 256 << 20
    """Address space, per process."""
    disk_bytes: int = 8 << 20
    """The scratch disk it starts in."""
    file_bytes: int = 4 << 20
    """The largest file."""
    processes: int = 8
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
    """Why it was stopped: "time" or "output"; empty when it ended by itself."""
    stdout: bytes
    stderr: bytes
    start_s: float
    """Seconds from the call to the moment the program may start."""
    ran_s: float
    """Seconds from then to its end."""


def run(code: str, *, stdin: bytes = b"", limits: Limits | None = None) -> Outcome:
    """Runs ``code`` as a script with ``stdin`` and waits for it. Safe in threads."""
    return _run(_method(), _as_script(code) + stdin, None, limits or Limits())


def judge(answer: str, task: str, *, limits: Limits | None = None) -> Outcome:
    """Runs ``answer`` and ``task``, the encoded inputs of answer.py and judge.py, side by side; ``stdout``
    holds the verdicts. Safe in threads."""
    return _run(_method(), answer.encode(), task.encode(), limits or Limits())


def _as_script(code: str) -> bytes:
    program = code.encode("utf-8", "replace")
    return len(program).to_bytes(8, "little") + program


@functools.cache
def _method() -> str:
    """Returns how programs are isolated on this machine, found out once by running one."""
    if not sys.platform.startswith("linux"):
        raise BarError(
            f"sandbox: Linux namespaces expected, found {sys.platform}; model-written code is not run"
        )
    reasons = []
    for method in ("namespaces", "bwrap"):
        if method == "bwrap" and (os.geteuid() == 0 or not shutil.which("bwrap")):
            continue  # as root, bubblewrap would leave the program root on the host
        try:
            outcome = _run(method, _as_script("print(1)"), None, Limits())
        except BarError as error:
            reasons.append(str(error))
            continue
        assert outcome.stdout == b"1\n", outcome
        return method
    raise BarError(f"{'; '.join(reasons)}; {ADVICE}")


def _run(method: str, data: bytes, task: bytes | None, limits: Limits) -> Outcome:
    began = time.monotonic()
    ready, status = os.pipe()
    with open(ready, "rb", buffering=0) as ready_pipe:
        try:
            with _file(data) as stdin, _file(task or b"") as tests:
                given = -1 if task is None else tests.fileno()
                child = subprocess.Popen(
                    _command(method, status, given, limits), stdin=stdin, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, bufsize=0, env={}, cwd="/", start_new_session=True,
                    pass_fds=(status,) if task is None else (status, given),
                )  # fmt: skip
        finally:
            os.close(status)
        with child, _Watch(child, ready_pipe, limits) as watch:
            stopped = watch.until_end()
    word = bytes(watch.heard[ready_pipe])
    if word != b"ready":
        reason = word or watch.heard[child.stderr][-300:] or b"did not start in time"
        raise BarError(f"sandbox ({method}): {' '.join(reason.decode(errors='replace').split())}")
    return Outcome(
        exit_code=child.returncode if child.returncode >= 0 else 128 - child.returncode,
        stopped=stopped,
        stdout=bytes(watch.heard[child.stdout]),
        stderr=bytes(watch.heard[child.stderr]),
        start_s=watch.ready_at - began,
        ran_s=time.monotonic() - watch.ready_at,
    )


def _file(data: bytes):
    """Returns a file to read ``data`` from; a program could hold up who writes to its pipe."""
    file = os.memfd_create("input")
    with open(file, "wb") as written:
        written.write(data)
        written.flush()
        return open(f"/proc/self/fd/{file}", "rb")


def _command(method: str, status: int, task: int, limits: Limits) -> list[str]:
    numbers = [os.getpid(), status, task, limits.value_bytes, limits.disk_bytes]
    numbers += [limits.cpu_s, limits.memory_bytes, limits.file_bytes, limits.processes, limits.open_files]
    # An import reads cached bytecode, a script would not.
    start = "import sys; sys.path.append(sys.argv.pop(1)); import jail"
    jail = ["-I", "-S", "-c", start, str(JAIL.parent), method, *map(str, numbers)]
    if method == "namespaces":
        return [sys.executable, *jail]
    interpreter = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    library = Path(os.__file__).parent
    ours = [JAIL.with_name(f"{name}.py") for name in ("jail", "wire", "answer", "judge")]
    seen = [interpreter, library, *ours, *map(Path, ("/lib", "/lib64", "/usr/lib", "/usr/lib64"))]
    seen += list(Path(sys.base_prefix, "lib").glob("libpython*"))
    binds = [word for path in seen if path.exists() for word in ("--ro-bind", str(path), str(path))]
    return [
        *(sys.executable, "-I", "-S", "-c", start, str(JAIL.parent), "reap"),
        shutil.which("bwrap"), "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session",
        "--cap-drop", "ALL", "--clearenv", *binds, "--size", str(limits.disk_bytes), "--tmpfs", "/scratch",
        "--chdir", "/scratch", "--remount-ro", "/", str(interpreter), *jail,
    ]  # fmt: skip


class _Watch:
    """Listens to a child and ends it."""

    def __init__(self, child: subprocess.Popen, ready_pipe, limits: Limits):
        self.child = child
        self.ready_pipe = ready_pipe
        self.limits = limits
        self.heard = {pipe: bytearray() for pipe in (child.stdout, child.stderr, ready_pipe)}
        self.ready_at = 0.0
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
        for turn in itertools.count():
            if turn > 100:
                time.sleep(0.001)  # a pipe in packet mode gives a byte a turn
            left = deadline - time.monotonic()  # every turn: a program may speak often and say little
            events = self.selector.select(left) if left > 0 else ()
            if not events:
                return "time"
            for key, _ in events:
                if key.fileobj is not self.ended:
                    self._listen(key.fileobj)
            if any(len(heard) > self.limits.output_bytes for heard in self.heard.values()):
                return "output"
            if not self.ready_at and self.heard[self.ready_pipe]:
                self.ready_at = time.monotonic()
                deadline = self.ready_at + self.limits.wall_s
            if any(key.fileobj is self.ended for key, _ in events) and len(events) == 1:
                return ""

    def _listen(self, pipe):
        chunk = os.read(pipe.fileno(), CHUNK)
        self.heard[pipe] += chunk
        if not chunk:
            self.selector.unregister(pipe)
