"""The symbolic half of the math verifier: a server, run by math.py as a script, that asks math-verify in one fork per question.

math-verify bounds its time with SIGALRM handlers, which exist in main threads only and do not interrupt a long integer power.
Here its timeouts are off, the kernel ends a fork that works longer than SECONDS, and the imports (a second) are paid once.

A line of JSON [truth, answer] in, "y", "n" or "t" (ended by the kernel) out; the end of the input ends the server.
"""

import json
import logging
import os
import resource
import signal
import sys

from math_verify import LatexExtractionConfig, parse, verify

SECONDS = 0.7
"""Of processor time: by the clock, a busy machine would turn right answers into wrong ones."""
WALL_SECONDS = 10.0
MEMORY = 2 << 30
READING = [LatexExtractionConfig()]
"""LaTeX alone: its grammar only builds trees, where reading plain expressions would evaluate text."""


def equal(truth: str, answer: str) -> bool:
    gold, given = (parse(f"${text}$", READING, parsing_timeout=None) for text in (truth, answer))
    return verify(gold, given, timeout_seconds=None)


def answer_in_fork(truth: str, answer: str) -> bytes:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            # No handlers: the signals end the process, even inside a long C call.
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
            code = 0 if equal(truth, answer) else 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return b"y" if code == 0 else b"n" if code == 1 else b"t"


def main():
    logging.disable()
    replies = os.dup(1)
    os.dup2(2, 1)
    equal("x^2-1", r"(x-1)(x+\frac{2}{2})")  # fills the parser's tables before the first fork
    for line in sys.stdin.buffer:
        os.write(replies, answer_in_fork(*json.loads(line)))


if __name__ == "__main__":
    main()
