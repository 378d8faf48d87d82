"""Code: a program written by a model, graded by what its function returns or by what it prints.

truth is one of
- {"function": name, "tests": [[arguments, expected], ...]}: the function's values, exactly;
- {"stdin_tests": [[input, output], ...]}: a run of the whole program per test; white space at the ends of
  lines and of the output does not count, and a run that fails is a wrong one;
- ["assert name(arguments) == expected", ...], or that list as JSON text, as published sets have it: plain
  values only;
the first two perhaps with "pass_fraction". The score is 1 when at least min(pass_fraction, 0.99) of the tests
are right, else 0 (the published run: all or nothing at 0.99).

The program runs in the sandbox and sees arguments and inputs, never the expected values. What a function
returned comes back spelled out (see code_child.spell) and is compared here, as text. Each line carries a
secret of this run, so that stray output is no answer. Quirk: after a run that had to be stopped, a program's
further inputs are not tried.
"""

import ast
import json
import marshal
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.verifiers.sandbox import code_child, sandbox

CHILD = Path(code_child.__file__).read_text()
FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
ENOUGH = 0.99
LIMITS = sandbox.Limits(cpu_s=1)
"""All tests of a program together take a second of processor time, as in the published run's tests; the wall
clock is looser, for a busy machine must not turn right answers into wrong ones."""


def verify(response: str, truth) -> float:
    right, tests, enough = check(truth)
    return float(right(program_of(response)) >= enough * tests)


def program_of(response: str) -> str:
    """Returns the last fenced block (its end may be missing: a cut-off answer), or the whole text."""
    blocks = FENCE.findall(response)
    return blocks[-1] if blocks else response


def _answers(stdout: bytes, secret: str) -> dict[int, str]:
    """Returns the first spelling given for each test."""
    answers = {}
    for line in stdout.decode("utf-8", "replace").split("\n"):
        parts = line.split(" ", 2)
        if len(parts) == 3 and parts[0] == secret and parts[1].isdecimal() and len(parts[1]) < 9:
            answers.setdefault(int(parts[1]), parts[2])
    return answers


def check(truth) -> tuple[Callable[[str], int], int, float]:
    """Returns a function that counts the tests a program passes, their number, and the share that is
    enough."""
    truth = _from_asserts(truth)
    kinds = {"function", "tests"}, {"stdin_tests"}
    if not isinstance(truth, dict) or truth.keys() - {"pass_fraction"} not in kinds:
        raise BarError(
            "code truth: expected a dict of function and tests, or of stdin_tests, and perhaps pass_fraction"
            f"; or a list of asserts, found {truth!r:.200}"
        )
    fraction = truth.get("pass_fraction", 1.0)
    if not isinstance(fraction, int | float) or isinstance(fraction, bool) or not 0 < fraction <= 1:
        raise BarError(f"code truth: expected a pass_fraction above 0 and up to 1, found {fraction!r:.200}")
    tests = truth.get("tests", truth.get("stdin_tests"))
    if not isinstance(tests, list | tuple) or not tests:
        raise BarError(f"code truth: expected at least one test, found {tests!r:.200}")
    right = _of_function(truth["function"], tests) if "function" in truth else _of_stdin(tests)
    return right, len(tests), min(fraction, ENOUGH)


def _of_function(function, tests) -> Callable[[str], int]:
    if not isinstance(function, str) or not function.isidentifier():
        raise BarError(f"code truth: expected the name of a function, found {function!r:.200}")
    arguments = []
    expected = []
    for test in tests:
        if not isinstance(test, list | tuple) or len(test) != 2 or not isinstance(test[0], list | tuple):
            raise BarError(f"code truth: expected a test as [arguments, expected], found {test!r:.200}")
        try:
            # One by one: a program that changes an argument must not change another test's.
            arguments.append(marshal.dumps(list(test[0])))
            expected.append(code_child.spell(test[1]))
        except (TypeError, ValueError, RecursionError) as error:
            raise BarError(
                f"code truth: expected plain values in a test, found {test!r:.200} ({error})"
            ) from error

    def right(program: str) -> int:
        secret = secrets.token_hex(16)
        stdin = marshal.dumps((secret, program, function, arguments))
        answers = _answers(sandbox.run(CHILD, stdin=stdin, limits=LIMITS).stdout, secret)
        return sum(answers.get(index) == spelling for index, spelling in enumerate(expected))

    return right


def _of_stdin(tests) -> Callable[[str], int]:
    for test in tests:
        pair = isinstance(test, list | tuple) and len(test) == 2
        if not pair or not all(isinstance(text, str) for text in test):
            raise BarError(
                f"code truth: expected a stdin test as [input, output], two texts, found {test!r:.200}"
            )

    def right(program: str) -> int:
        passed = 0
        for given, wanted in tests:
            outcome = sandbox.run(program, stdin=given.encode("utf-8", "replace"), limits=LIMITS)
            if outcome.stopped or outcome.exit_code > 128:
                break
            printed = outcome.stdout.decode("utf-8", "replace")
            passed += outcome.exit_code == 0 and _lines(printed) == _lines(wanted)
        return passed

    return right


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _from_asserts(truth) -> object:
    """Returns a list of asserts as a function and its tests; anything else as it came."""
    asserts = truth
    if isinstance(truth, str):
        try:
            asserts = json.loads(truth)
        except (ValueError, RecursionError):
            return truth
    if not isinstance(asserts, list) or not asserts or not all(isinstance(text, str) for text in asserts):
        return asserts
    names = set()
    tests = []
    for text in asserts:
        try:
            (statement,) = ast.parse(text.strip()).body
            call = statement.test.left
            (equal,) = statement.test.ops
            (expected,) = statement.test.comparators
            plain = not call.keywords and isinstance(equal, ast.Eq) and isinstance(statement, ast.Assert)
            names.add(call.func.id)
            tests.append([[ast.literal_eval(argument) for argument in call.args], ast.literal_eval(expected)])
        except (SyntaxError, ValueError, AttributeError, TypeError, RecursionError, MemoryError):
            plain = False
        if not plain:
            wanted = "'assert name(plain values) == plain value'"
            raise BarError(f"code truth: expected {wanted}, found {text!r:.200}")
    if len(names) > 1:
        raise BarError(f"code truth: expected asserts about one function, found {', '.join(sorted(names))}")
    return {"function": names.pop(), "tests": tests}
