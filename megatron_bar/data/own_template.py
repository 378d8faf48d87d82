"""Chats laid out by a template that came with a tokenizer: anyone may have written it, so it runs in a child.

The child (template_child.py) is ended by the kernel when a chat takes more processor time or memory than an
honest template ever does; the next chat gets a new one. It is Jinja's sandbox there as in transformers: that
keeps a template from the interpreter, not from loops.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Lock

from megatron_bar.data.template_child import MEMORY, SECONDS
from megatron_bar.errors import BarError

CHILD = Path(__file__).with_name("template_child.py")


class Renderer:
    """A child and the one conversation with it, of any number of threads; it ends with this process."""

    def __init__(self):
        self.child: subprocess.Popen | None = None
        self._speaking = Lock()

    def ask(self, **chat) -> str:
        """Returns the text; raises BarError with what the template failed at."""
        with self._speaking:
            return self._ask(**chat)

    def _ask(self, **chat) -> str:
        if self.child is None:
            self.child = subprocess.Popen(
                [sys.executable, "-P", str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        try:
            self.child.stdin.write(json.dumps(chat, default=str).encode() + b"\n")
            self.child.stdin.flush()
            reply = self.child.stdout.readline()
        except BrokenPipeError:
            reply = b""
        if not reply.endswith(b"\n"):
            self.end()
            raise BarError(f"it took more than {SECONDS} s of processor time, or {MEMORY >> 20} MiB")
        found = json.loads(reply)
        if "error" in found:
            raise BarError(found["error"])
        return found["text"]

    def end(self) -> None:
        """Ends the child; the next question starts another."""
        self.child.stdin.close()
        self.child.kill()
        self.child.wait()
        self.child = None


def renderer() -> Renderer:
    """Returns this process's own: a forked process must not write into its parent's pipes."""
    return _renderer_of(os.getpid())


@functools.cache
def _renderer_of(pid: int) -> Renderer:
    return Renderer()
