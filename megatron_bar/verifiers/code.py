"""Code: a program written by a model, graded by the tests of a data set.

truth is one of
- {"function": name, "tests": [[arguments, expected], ...]}: the function's values, of equal types too;
- ["assert name(arguments) == expected", ...], or that list as JSON text, as AceCoder and MBPP have it: each
  text with an assert in it is a test, one or several statements of Python, and the others (imports, values)
  prepare; the names that they leave undefined are the program's;
- {"program": source}: a program that is one test, as MBPP+ has it in ``test``; perhaps with "entry_point",
  the name of what its function ``check``, if it has one, is called with, and "prompt", what the answer
  continues, as HumanEval+ has them;
- {"stdin_tests": [[input, output], ...]}: a run of the whole program per test; LiveCodeBench's
  [{"input": text, "output": text}, ...] and APPS's {"inputs": [...], "outputs": [...]}, also as JSON text,
  are the same. White space at the ends of lines and of the output does not count, nor how a number with a
  point is written (2.50); a run that fails is a wrong one;
a dict perhaps with "pass_fraction". The score is 1 when at least min(pass_fraction, 0.99) of the tests are
right, else 0 (the published run: all or nothing at 0.99). fences.py says which part of an answer is the
program.

The program runs in the sandbox and gets arguments and inputs, nothing else of a test. Tests run in the
sandbox too, in a process of their own (judge.py), with Python's own ``==`` on values that arrived as plain
ones; a call that is a statement also changes its arguments. What tests cannot see, so that they fail:
equality of two objects of the program's classes, arithmetic of such an object with a number, the program's
source, what it prints in a call, objects that two arguments share. Quirk: after a run that had to be
stopped, or once too many tests failed, no further test is tried.
"""

import ast
import builtins
import functools
import json
import math
import re
import symtable
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal

from megatron_bar.errors import BarError
from megatron_bar.verifiers import fences
from megatron_bar.verifiers.sandbox import sandbox
from megatron_bar.verifiers.sandbox.wire import encode, spell

ENOUGH = 0.99
LIMITS = sandbox.Limits(cpu_s=1)
"""All tests of a program together take a second of processor time, as in the published run's tests, and sleep
for a second; the wall clock is looser, for a busy machine must not turn right answers into wrong ones."""
START_S = 0.05
"""Seconds of processor time besides for each run of a program, the start and the imports."""
IMPORT = re.compile(
    r"^(?:import[ \t]+(?P<package>\w+)[\w.]*(?:[ \t]+as[ \t]+(?P<alias>\w+))?"
    r"|from[ \t]+(?P<source>\w+)[\w.]*[ \t]+import[ \t]+(?P<names>[\w, ]+))$",
    re.MULTILINE,
)
IMPORTS = 20
"""Names that are looked for: each takes a look at the whole program."""
NUMBER = re.compile(r"[-+]?(?:[0-9]{1,99}(?:\.[0-9]{0,99})?|\.[0-9]{1,99})(?:[eE][-+]?[0-9]{1,3})?")
NUMPY = """
def _stand_in():
    import sys, types
    def close(one, other, rtol, atol):
        if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
            return len(one) == len(other) and all(close(a, b, rtol, atol) for a, b in zip(one, other))
        if isinstance(one, (list, tuple)) or isinstance(other, (list, tuple)):
            many, single = (one, other) if isinstance(one, (list, tuple)) else (other, one)
            return bool(many) and all(close(a, single, rtol, atol) for a in many)
        return one == other or abs(one - other) <= atol + rtol * abs(other) < float("inf")
    numpy = types.ModuleType("numpy")
    numpy.allclose = lambda a, b, rtol=1e-05, atol=1e-08: bool(close(a, b, rtol, atol))
    numpy.ndarray = numpy.float64 = numpy.float32 = type("ndarray", (), {})
    sys.modules["numpy"] = numpy
_stand_in()
"""
"""What EvalPlus's tests use of numpy, which the sandbox does not hold; an answer that needs the real one
fails. An empty list is close to no number here; in numpy it is to each, so that it would be the answer to
each question for one."""
STANDARD = {
    "collections": "Counter OrderedDict defaultdict deque namedtuple",
    "fractions": "Fraction",
    "decimal": "Decimal",
    "datetime": "date datetime timedelta",
    "math": "inf nan pi isclose",
}
"""What tests may use without importing it, counting on the program's import, which could be another thing."""


def verify(response: str, truth) -> float:
    return grade(response, truth, LIMITS)


def grade(response: str, truth, limits: sandbox.Limits) -> float:
    """Returns the score of ``response``, run within ``limits``."""
    right, tests, enough = check(truth)
    return float(right(response, limits) >= enough * tests)


def check(truth) -> tuple[Callable[[str, sandbox.Limits], int], int, float]:
    """Returns a function that counts the tests a response passes, their number, and the share that is
    enough."""
    truth = _published(truth)
    fraction = truth.pop("pass_fraction", 1.0) if isinstance(truth, dict) else 1.0
    if not isinstance(fraction, int | float) or isinstance(fraction, bool) or not 0 < fraction <= 1:
        raise BarError(f"code truth: expected a pass_fraction above 0 and up to 1, found {fraction!r:.200}")
    enough = min(fraction, ENOUGH)
    match truth:
        case {"function": name, "tests": tests} if len(truth) == 2:
            return _of_function(name, _some(tests), enough), len(tests), enough
        case {"stdin_tests": tests} if len(truth) == 1:
            return _of_stdin(_some(tests), enough), len(tests), enough
        case {"program": str(program)} if truth.keys() <= {"program", "entry_point", "prompt"}:
            return _of_program(program, truth.get("entry_point"), truth.get("prompt")), 1, enough
        case [str(), *_]:
            return _of_asserts(truth, enough)
    raise BarError(
        "code truth: expected a dict of function and tests, of stdin_tests, or of program and perhaps "
        f"entry_point and prompt, all perhaps with pass_fraction; or a list of asserts, found {truth!r:.200}"
    )


def _published(truth) -> object:
    """Returns a copy of a truth that may be JSON text, with stdin tests as pairs; else what came."""
    if isinstance(truth, str):
        try:
            truth = json.loads(truth)
        except (ValueError, RecursionError):
            return truth
    match truth:
        case {"inputs": [*inputs], "outputs": [*outputs]} if len(truth) == 2 and len(inputs) == len(outputs):
            return {"stdin_tests": list(zip(inputs, outputs, strict=True))}
        case [{"input": _, "output": _}, *_] if all(
            isinstance(row, dict) and row.keys() <= {"input", "output", "testtype"} for row in truth
        ):
            if {row.get("testtype", "stdin") for row in truth} == {"stdin"}:
                return {"stdin_tests": [[row.get("input"), row.get("output")] for row in truth]}
    return dict(truth) if isinstance(truth, dict) else truth


def _some(tests):
    if not isinstance(tests, list | tuple) or not tests:
        raise BarError(f"code truth: expected at least one test, found {tests!r:.200}")
    return tests


def _judged(names: list[str], failures: int, *, given: str = "", prompt: str = "", **tests):
    """Returns a function that counts the tests a response passes."""
    task = encode({"names": names, "failures": failures, "given": given, **tests}, _plain)

    def right(response: str, limits: sandbox.Limits) -> int:
        blocks = [[text, defined] for text, defined in fences.defining(response, names)]
        unused = _unused_imports("\n".join(text for text, _ in blocks))
        blocks = [[unused.sub("pass", text), defined] for text, defined in blocks]
        answer = encode({"given": given, "prompt": prompt, "blocks": blocks}, _plain)
        return sandbox.judge(answer, task, limits=limits).stdout.count(b"1")

    return right


def _unused_imports(program: str) -> re.Pattern:
    """Returns what matches the imports, by lines of their own, of packages that the sandbox does not hold and
    whose names occur nowhere else: habit, and no reason to fail."""
    unused = []
    left = IMPORTS
    for line in IMPORT.finditer(program):
        names = (line["names"] or line["alias"] or line["package"]).split(",")
        bound = [name.split()[-1] for name in names if name.strip()]
        left -= len(bound)
        if left < 0:
            break
        rest = program.replace(line[0], "")
        known = (line["source"] or line["package"]) in sys.stdlib_module_names
        if bound and not known and not any(re.search(rf"\b{name}\b", rest) for name in bound):
            unused.append(re.escape(line[0]))
    return re.compile(rf"^(?:{'|'.join(unused)})$", re.MULTILINE) if unused else re.compile(r"(?!)")


def _plain(value):
    raise TypeError(f"{type(value).__name__} is no plain value")


def _may_fail(tests: int, enough: float) -> int:
    return tests - math.ceil(enough * tests)


def _of_function(name, tests, enough: float):
    if not isinstance(name, str) or not name.isidentifier():
        raise BarError(f"code truth: expected the name of a function, found {name!r:.200}")
    for test in tests:
        if not isinstance(test, list | tuple) or len(test) != 2 or not isinstance(test[0], list | tuple):
            raise BarError(f"code truth: expected a test as [arguments, expected], found {test!r:.200}")
        try:
            spell(test[1])
            encode(test[0], _plain)
        except (TypeError, ValueError, RecursionError) as error:
            raise BarError(
                f"code truth: expected plain values in a test, found {test!r:.200} ({error})"
            ) from error
    return _judged([name], _may_fail(len(tests), enough), values=[list(test) for test in tests])


def _of_asserts(texts: list, enough: float):
    if not all(isinstance(text, str) for text in texts):
        raise BarError(f"code truth: expected asserts, texts alone, found {texts!r:.200}")
    texts = [_whole(text.strip()) for text in texts]
    counts = [_holds_assert(text) for text in texts]
    if not any(counts):
        raise BarError(f"code truth: expected asserts, found none in {texts!r:.200}")
    program = "\n".join(texts)
    tests = [list(test) for test in zip(counts, texts, strict=True)]
    names, imports = _tested(program)
    right = _judged(names, _may_fail(sum(counts), enough), given=_numpy(program), tests=[*imports, *tests])
    return right, sum(counts), enough


def _of_program(program: str, entry_point, prompt):
    given = ""
    names = []
    if entry_point is not None:
        if not isinstance(entry_point, str) or not entry_point.isidentifier():
            raise BarError(f"code truth: expected a name as entry_point, found {entry_point!r:.200}")
        names = [entry_point]
    _parsed(program)
    if names and "check" in _defined(program):
        program = f"{program}\ncheck({entry_point})\n"
    else:
        program = _whole(program)
        if not _requires(program):
            raise BarError(f"code truth: expected a program that requires something, found {program!r:.200}")
    if prompt is not None:
        start = (
            re.search(rf"^(?:async )?def {entry_point}\b", prompt, re.MULTILINE)
            if isinstance(prompt, str)
            else None
        )
        if not start or not entry_point:
            raise BarError(f"code truth: expected a prompt that defines {entry_point}, found {prompt!r:.200}")
        given = prompt[: start.start()]  # imports and helpers, which an answer need not repeat
    free, imports = _tested(program)
    names += [name for name in free if name not in names and name not in _defined(given)]
    given = _numpy(program + given) + given
    return _judged(names, 0, given=given, prompt=prompt or "", tests=[*imports, [True, program]])


def _whole(program: str) -> str:
    """Returns a program of tests with calls of those that it defines and leaves to a runner: unittest's,
    which it may run itself without telling how that ended, and pytest's functions."""
    tree = _parsed(program)
    runs = re.compile(r"\bunittest\.main\b|\bTextTestRunner\b|__name__")
    cases = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if any("TestCase" in ast.unparse(base) for node in cases for base in node.bases):
        kept = [
            node for node in tree.body if isinstance(node, ast.ClassDef) or not runs.search(ast.unparse(node))
        ]
        return "\n".join([*map(ast.unparse, kept), "import unittest", "unittest.main()", ""])
    named = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    functions = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
    ]
    left = [node.name for node in functions if node.name not in named and not node.args.args]
    return "\n".join([program, *(f"{name}()" for name in left)]) if left else program


def _requires(program: str) -> bool:
    """Returns whether a program has anything by which it could fail a right-looking answer."""
    for node in _heard(_parsed(program)):
        name = getattr(node, "attr", None) or getattr(node, "id", None) or ""
        if isinstance(node, ast.Assert | ast.Raise) or name.startswith(("assert", "fail", "exit", "check")):
            return True
    return False


def _numpy(program: str) -> str:
    return NUMPY if re.search(r"\bnumpy\b", program) else ""


@functools.lru_cache(256)
def _holds_assert(text: str) -> bool:
    return any(isinstance(node, ast.Assert) for node in _heard(_parsed(text)))


def _heard(node: ast.AST) -> Iterator[ast.AST]:
    """Yields what can make a test fail: all but the bodies of try statements that let an AssertionError pass
    unnoticed."""
    yield node
    for field, value in ast.iter_fields(node):
        if (
            field == "body"
            and isinstance(node, ast.Try | ast.TryStar)
            and any(map(_is_silent, node.handlers))
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _heard(child)


def _is_silent(handler: ast.ExceptHandler) -> bool:
    caught = "" if handler.type is None else ast.unparse(handler.type)
    fails = any(
        isinstance(node, ast.Raise | ast.Assert)
        or re.search("exit|fail", getattr(node, "attr", getattr(node, "id", "")))
        for below in handler.body
        for node in ast.walk(below)
    )
    return not fails and (
        not caught or re.search(r"\b(?:Base)?Exception\b|\bAssertionError\b", caught) is not None
    )


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BarError(f"code truth: expected tests in Python, found {text!r:.200} ({error})") from error


@functools.lru_cache(64)
def _tested(program: str) -> tuple[list[str], list]:
    """Returns the names that tests need and do not define: what they test; and what to import before.

    If nothing is left to test, it is the built-in function that is called on plain values: a program may
    define it anew.
    """
    tree = _parsed(program)
    free = _globals(program) - _defined(program) - set(dir(builtins))
    modules = {name for name in free & sys.stdlib_module_names if not _is_used_alone(tree, name)}
    imports = [f"import {name}" for name in sorted(modules)]
    free = {name for name in free - modules if not name.startswith("__")}
    for module, names in STANDARD.items():
        known = free.intersection(names.split())
        if module == "math":
            known |= {name for name in free & set(dir(math)) if _is_in_expected_alone(tree, name)}
        if known and known < free:
            free -= known
            imports += [f"from {module} import {', '.join(sorted(known))}"]
    if not free:
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        inner = {call.func.id for call in calls if isinstance(call.func, ast.Name) and not _calls_below(call)}
        free = {name for name in inner if not isinstance(getattr(builtins, name, int), type)}
        if len(free) != 1:
            wanted = "tests of a name that they leave undefined"
            raise BarError(f"code truth: expected {wanted}, found {program!r:.200}")
    return sorted(free), [[False, line] for line in imports]


def _is_used_alone(tree: ast.Module, name: str) -> bool:
    """Returns whether ``name`` stands anywhere but before a dot, as a module never does."""
    dotted = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    return any(id(node) not in dotted for node in uses)


def _is_in_expected_alone(tree: ast.Module, name: str) -> bool:
    """Returns whether ``name`` stands nowhere but right of a comparison."""
    expected = {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        for value in node.comparators
        for below in ast.walk(value)
    }
    return all(
        id(node) in expected for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name
    )


def _calls_below(call: ast.Call) -> bool:
    below = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(isinstance(node, ast.Call) for value in below for node in ast.walk(value))


def _defined(program: str) -> set[str]:
    table = symtable.symtable(program, "tests", "exec")
    own = {
        symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()
    }
    declared = {
        symbol.get_name()
        for scope in _scopes(table)
        for symbol in scope.get_symbols()
        if symbol.is_declared_global() and symbol.is_assigned()
    }
    return own | declared


def _globals(program: str) -> set[str]:
    table = symtable.symtable(program, "tests", "exec")
    return {
        symbol.get_name()
        for scope in _scopes(table)
        for symbol in scope.get_symbols()
        if symbol.is_referenced() and (scope is table or symbol.is_global())
    }


def _scopes(table):
    yield table
    for child in table.get_children():
        yield from _scopes(child)


def _of_stdin(tests, enough: float):
    for test in tests:
        pair = isinstance(test, list | tuple) and len(test) == 2
        if not pair or not all(isinstance(text, str) for text in test):
            raise BarError(
                f"code truth: expected a stdin test as [input, output], two texts, found {test!r:.200}"
            )

    def right(response: str, limits: sandbox.Limits) -> int:
        program = fences.running(response)
        program = _unused_imports(program).sub("pass", program)
        passed = 0
        may_fail = _may_fail(len(tests), enough)
        cpu_s = limits.cpu_s + len(tests) * START_S
        idle_s = limits.idle_s
        for given, wanted in tests:
            outcome = sandbox.run(
                program,
                stdin=given.encode("utf-8", "replace"),
                limits=replace(
                    limits,
                    idle_s=max(idle_s, sandbox.LOOK_S),
                    output_bytes=max(limits.output_bytes, 2 * len(wanted)),
                ),
            )
            cpu_s -= outcome.cpu_s
            idle_s -= outcome.idle_s
            right = outcome.exit_code == 0 and _same_lines(outcome.stdout.decode("utf-8", "replace"), wanted)
            passed += right
            may_fail -= not right
            if outcome.stopped or outcome.exit_code > 128 or may_fail < 0 or cpu_s < 0:
                break
        return passed

    return right


def _same_lines(printed: str, wanted: str) -> bool:
    printed, wanted = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (printed, wanted))
    return len(printed) == len(wanted) and all(map(_same_line, printed, wanted))


def _same_line(one: str, other: str) -> bool:
    """Returns whether lines are equal, or all numbers and those equal; integers count as texts (0011)."""
    return one == other or (
        len(one.split()) == len(other.split()) and all(map(_same_word, one.split(), other.split()))
    )


def _same_word(one: str, other: str) -> bool:
    if not NUMBER.fullmatch(one) or not NUMBER.fullmatch(other):
        return False
    return one == other or (not (one.isdigit() and other.isdigit()) and Decimal(one) == Decimal(other))
