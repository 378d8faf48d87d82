"""One engine in a process of its own (engines/server.py), seen from rank 0: requests out, answers in."""

import json
import os
import select
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.rl.engine import EngineConfig

SCRIPT = Path(__file__).with_name("engines") / "server.py"
OPENING = 1800
"""Seconds that an engine may take to load a model and to compile for it, in which it says nothing."""
CHECKING = 120
"""Seconds that its Python may take to say which version it has."""
GRACE = 5
"""Seconds that an engine has to end by itself."""
# What torchrun and this project tell their own processes is not meant for the engine's.
OURS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "MASTER_",
    "TORCHELASTIC_",
    "PYTHONPATH",
    "OMP_NUM_THREADS",
)


class EngineEnded(BarError):
    """The process is no more, or gave no sign of life; it can be started anew."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What an engine's process is told as it starts."""

    tensor: int
    memory: float
    seeded: bool
    slots: int
    stop: list[str]
    cache_bytes: int
    """Bytes of keys and values of all slots at their longest."""
    seed: int
    launcher: int
    """Number of the process that ends the run when it ends, torchrun's; 0: none."""


def inherited() -> dict[str, str]:
    """Returns what an engine's process takes over of this one's environment."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OURS)}


def command(config: EngineConfig, number: int) -> list[str]:
    """Returns the command of the replica ``number``, with what is set in its environment.

    All of it are words without quotes or spaces of their own: ssh hands them to a shell.
    """
    devices = config.devices[number * config.tensor :][: config.tensor]
    mine = {"PYTHONPATH": str(SCRIPT.parent)}  # its modules, sitecustomize.py among them
    if "VLLM_LOGGING_LEVEL" not in os.environ:
        mine["VLLM_LOGGING_LEVEL"] = "ERROR"
    if config.tensor == 1:
        mine["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # all in the one process
    if devices:
        mine["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    launch = shlex.split(config.launch[number]) if config.launch else []
    settings = [f"{name}={value}" for name, value in mine.items()]
    # -P: the files beside the script come from PYTHONPATH alone, for its children too.
    return [*launch, "env", *settings, config.python or sys.executable, "-P", str(SCRIPT), config.name]


def check(config: EngineConfig) -> None:
    """Raises unless the engine's Python runs and has a version of the engine that was tried; takes a
    moment."""
    if config.name == "own":
        return
    for number in range(len(config.launch) or 1):
        asked = [*command(config, number), "--check"]
        try:
            done = subprocess.run(
                asked, env=inherited(), capture_output=True, text=True, timeout=CHECKING, check=False
            )
        except OSError as error:
            raise BarError(f"engine {config.name}: {asked[0]}: not runnable: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise BarError(
                f"engine {config.name}: {' '.join(asked)}: no answer within {CHECKING} s"
            ) from None
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"status {done.returncode} of {' '.join(asked)}"]
            raise BarError(f"engine {config.name}: {said[-1]}")


class EngineProcess:
    """Belongs to rank 0; ``number`` tells it from the other replicas."""

    def __init__(self, config: EngineConfig, hello: Hello, number: int):
        self.config = config
        self.hello = hello
        self.number = number
        self.process: subprocess.Popen | None = None
        self.begin()

    def begin(self) -> None:
        """Starts it. In the main thread: the process ends with the thread that starts it."""
        self._unread = b""
        self.process = subprocess.Popen(
            command(self.config, self.number),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=inherited(),
        )
        self._send(vars(self.hello))

    def _send(self, message: dict) -> None:
        with suppress(OSError):  # it has ended: what it said last, or that it did, is read for an answer
            self.process.stdin.write((json.dumps(message) + "\n").encode())
            self.process.stdin.flush()

    def ask(
        self,
        call: str,
        *,
        version: int | None = None,
        more: Callable[[int], list] = lambda ended: [],
        **given,
    ):
        """Makes one call and waits for its result.

        ``version``: number of the weights that it should have then; None: it has none yet. ``more``: returns
        further prompts when so many answers have ended. Raises `EngineEnded`, and `BarError` where it answers
        by an error or has other weights.
        """
        self._send({"call": call, "given": given})
        reply = {"alive": 0}
        while "alive" in reply:
            if reply["alive"]:
                self._send({"more": more(reply["alive"])})
            line = self._line(call)
            try:
                reply = json.loads(line)
            except ValueError:
                raise BarError(
                    f"engine {self.config.name}: {call}: expected an answer, got {line!r:.200}"
                ) from None
        if "error" in reply:
            raise BarError(f"engine {self.config.name}: {call}: {' '.join(reply['error'].split())}")
        if version is not None and reply["version"] != version:
            raise BarError(
                f"engine {self.config.name}: out of step: "
                f"holds weights {reply['version']}, expected {version}"
            )
        return reply["result"]

    def _line(self, call: str) -> bytes:
        output = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(output, select.POLLIN)
        while b"\n" not in self._unread:
            limit = max(self.config.patience, OPENING) if call == "open" else self.config.patience
            if not poll.poll(limit * 1000):
                self.end()
                raise EngineEnded(f"engine {self.config.name}: no sign of life for {limit} s during {call}")
            if not (data := os.read(output, 1 << 20)):
                raise self._ended(call)
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _ended(self, call: str) -> EngineEnded:
        status = self.process.wait()
        return EngineEnded(f"engine {self.config.name}: its process ended with status {status} during {call}")

    def end(self) -> None:
        """Ends the process, and with it all that it started (engines/sitecustomize.py)."""
        with suppress(OSError):  # what it did not read any more
            self.process.stdin.close()  # which srun hands on to another machine
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
