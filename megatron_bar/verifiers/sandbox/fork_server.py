"""A server process that answers each question in a fork, which the kernel ends when it works too long.

Parsers of mathematics and scorers of puzzles can be made to hang or to eat memory, and the usual remedy,
SIGALRM handlers, exists in main threads only and does not interrupt a long integer power. Here imports are
paid once and every answer is bounded, from any thread and from any process. ``ForkServer`` is the parent's
half, ``serve`` the child's; the child imports this file alone, without the package.

One line of JSON (a list, the arguments) in, one line of JSON out: null for a fork that failed or was ended.
"""

import functools
import gc
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

SECONDS = 0.7
"""Processor time: by the clock, a busy machine would turn right answers into wrong ones."""
WALL_SECONDS = 10.0
MEMORY = 1 << 30
MOST = 4
"""Servers of a kind; each holds its imports, about 150 MB."""
LONGEST_REPLY = 4096
"""Bytes, so that a reply fits a pipe whole."""


class ForkServer:
    """A running child module and the one conversation with it."""

    def __init__(self, module: str):
        # Files of this folder are named like standard modules: -P keeps it out, append puts it last.
        start = f"import sys; sys.path.append(sys.argv[1]); import {module}; {module}.main()"
        command = [sys.executable, "-P", "-c", start, str(Path(__file__).parent)]
        self.module = module
        self.lock = threading.Lock()
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def ask(self, *arguments):
        """Returns what the child's work returned, None where it failed or took too long."""
        with self.lock:
            return self._converse(arguments)

    def ask_if_free(self, *arguments) -> tuple[bool, object]:
        """Returns whether no other thread was asking, and if so what `ask` would return."""
        if not self.lock.acquire(blocking=False):
            return False, None
        try:
            return True, self._converse(arguments)
        finally:
            self.lock.release()

    def _converse(self, arguments: tuple):
        self.child.stdin.write(json.dumps(arguments).encode() + b"\n")
        self.child.stdin.flush()
        reply = self.child.stdout.readline()
        assert reply.endswith(b"\n"), f"{self.module} ended with status {self.child.poll()}"
        return json.loads(reply)


_starting = threading.Lock()


def server(module: str, number: int = 0) -> ForkServer:
    """Returns this process's own server: a forked process must not write into its parent's pipes."""
    with _starting:
        return _server_of(os.getpid(), module, number)


def ask_any(module: str, *arguments):
    """Asks a free one of this process's servers, of which there are as many as threads that ask at once, up
    to the cores and ``MOST``."""
    count = min(MOST, len(os.sched_getaffinity(0)))
    for number in range(count):
        answered, reply = server(module, number).ask_if_free(*arguments)
        if answered:
            return reply
    return server(module, random.randrange(count)).ask(*arguments)


@functools.cache
def _server_of(pid: int, module: str, number: int) -> ForkServer:
    return ForkServer(module)


def serve(prepare: Callable[..., Callable[[], object]]):
    """Answers until the input ends. ``prepare`` runs in the server, so that what it loads stays.

    The function that it returns runs in a fork.
    """
    logging.disable()
    replies = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no reply
    gc.freeze()  # a collection in a fork would touch, and so copy, all that was loaded here
    for line in sys.stdin.buffer:
        os.write(replies, _in_fork(prepare(*json.loads(line))))


def _in_fork(work: Callable[[], object]) -> bytes:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            # No handlers: the signals end the process, even inside a long C call.
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
            reply = json.dumps(work()).encode()
            os.write(writer, reply + b"\n" if len(reply) < LONGEST_REPLY else b"")
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    reply = os.read(reader, LONGEST_REPLY)
    os.close(reader)
    return reply or b"null\n"
