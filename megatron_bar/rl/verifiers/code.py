"""Code: a function written by a model, graded by what it returns.

truth = {"function": name, "tests": [[arguments, expected], ...], "pass_fraction": 1.0}; the score is 1 when at least
min(pass_fraction, 0.99) of the tests return exactly the expected value, else 0 (the published run: all or nothing at 0.99).

The program runs in the sandbox and sees the arguments, never the expected values. What it returned comes back spelled out (see
code_child.spell) and is compared here, as text. Each line carries a secret of this run, so that stray output is no answer.
"""

import marshal
import re
import secrets
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.rl.verifiers import code_child, sandbox

CHILD = Path(code_child.__file__).read_text()
FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
ENOUGH = 0.99
LIMITS = sandbox.Limits(cpu_s=1)
"""All tests of a program together take a second of processor time, as in the published run's tests; the wall clock is looser, for
a busy machine must not turn right answers into wrong ones."""


def verify(response: str, truth) -> float:
    function, arguments, expected, enough = check(truth)
    secret = secrets.token_hex(16)
    stdin = marshal.dumps((secret, program_of(response), function, arguments))
    answers = _answers(sandbox.run(CHILD, stdin=stdin, limits=LIMITS).stdout, secret)
    right = sum(answers.get(index) == spelling for index, spelling in enumerate(expected))
    return float(right >= enough * len(expected))


def program_of(response: str) -> str:
    """The last fenced block (its end may be missing: a cut-off answer), or the whole text."""
    blocks = FENCE.findall(response)
    return blocks[-1] if blocks else response


def _answers(stdout: bytes, secret: str) -> dict[int, str]:
    """The first spelling given for each test."""
    answers = {}
    for line in stdout.decode("utf-8", "replace").split("\n"):
        parts = line.split(" ", 2)
        if len(parts) == 3 and parts[0] == secret and parts[1].isdecimal() and len(parts[1]) < 9:
            answers.setdefault(int(parts[1]), parts[2])
    return answers


def check(truth) -> tuple[str, list[bytes], list[str], float]:
    if not isinstance(truth, dict) or not {"function", "tests"} <= truth.keys() <= {"function", "tests", "pass_fraction"}:
        raise BarError(f"code truth: expected a dict of function, tests and perhaps pass_fraction, found {truth!r:.200}")
    function, tests, fraction = truth["function"], truth["tests"], truth.get("pass_fraction", 1.0)
    if not isinstance(function, str) or not function.isidentifier():
        raise BarError(f"code truth: expected the name of a function, found {function!r:.200}")
    if not isinstance(fraction, int | float) or isinstance(fraction, bool) or not 0 < fraction <= 1:
        raise BarError(f"code truth: expected a pass_fraction above 0 and up to 1, found {fraction!r:.200}")
    if not isinstance(tests, list | tuple) or not tests:
        raise BarError(f"code truth: expected at least one test, found {tests!r:.200}")
    arguments, expected = [], []
    for test in tests:
        if not isinstance(test, list | tuple) or len(test) != 2 or not isinstance(test[0], list | tuple):
            raise BarError(f"code truth: expected a test as [arguments, expected], found {test!r:.200}")
        try:
            # One by one: a program that changes an argument must not change another test's.
            arguments.append(marshal.dumps(list(test[0])))
            expected.append(code_child.spell(test[1]))
        except (TypeError, ValueError, RecursionError) as error:
            raise BarError(f"code truth: expected plain values in a test, found {test!r:.200} ({error})") from error
    return function, arguments, expected, min(fraction, ENOUGH)
