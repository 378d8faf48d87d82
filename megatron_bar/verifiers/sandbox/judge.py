"""The judge: runs a data set's tests in a process of its own, where the functions that they test are
another's.

It runs in the sandbox as well, for tests are a stranger's code too, but as the first process of its
namespaces: the program under test can neither see it nor end it. What the program says arrives as plain
values, built here, or as a Remote (wire.py), which equals nothing.

Verdicts go to a pipe that the program does not have, a character a test: 1 where it raised nothing, else 0.
"""

import builtins
import os
import sys

from wire import CONTAINERS, Gone, Peer, Remote, content, decoder, spell, wanted


def main(inbox, outbox, longest, text):
    """Writes the verdicts on the program at the pipes' other ends. ``text`` is the task, encoded."""
    task = decoder({})(text)
    verdicts = os.dup(1)
    os.dup2(2, 1)  # what the tests print is no verdict

    def serve(operation, thing, args=(), kwargs=None):
        if peer.numbers.get(id(thing), [""])[0] == "mine":
            if operation == "call":
                return thing(*args, **kwargs)
            if hasattr(type(thing), "__next__") and operation in ("iter", "next"):
                return thing if operation == "iter" else next(thing)
        raise TypeError(f"a test's {type(thing).__name__} has no {operation} here")

    def refer(value):
        if isinstance(value, CONTAINERS):
            return None, content(value)
        if callable(value) or hasattr(type(value), "__next__"):
            return "mine", peer.give(value)
        raise TypeError(f"a {type(value).__name__} cannot be sent to the program")

    peer = Peer(inbox, outbox, serve, refer, longest)
    failures = 0
    try:
        peer.ask("run")
        for test in tests_of(task, peer):
            # A test that never asked the program for anything says nothing about it.
            passed = passes(test) and peer.asked > 0 and not peer.gone
            os.write(verdicts, b"1" if passed else b"0")
            failures += not passed
            if failures > task["failures"]:
                break
    except Gone:
        return


def tests_of(task, peer):
    """Yields the tests: functions that raise where one fails."""
    found = {}
    for name in task["names"]:
        try:
            found[name] = wanted(name, peer.ask("get", name))
        except Exception:  # noqa: BLE001  where a test needs the name, it is not defined
            if name in vars(builtins):
                found[name] = missing
    peer.asked += sum(value is not missing and not isinstance(value, Remote) for value in found.values())
    if "values" in task:
        (name,) = task["names"]
        for args, expected in task["values"]:
            yield lambda args=args, expected=expected: check_value(found[name], args, expected)
        return
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    vars(module).update(found)
    passes(lambda: execute(task["given"], vars(module)))
    for counts, source in task["tests"]:
        if counts:
            yield lambda source=source: execute(source, vars(module))
        else:
            passes(lambda source=source: execute(source, vars(module)))


def missing(*_, **__):
    raise NameError("a built-in function that the program was to define")


def execute(source, namespace):
    exec(compile(source, "tests.py", "exec", dont_inherit=True), namespace)  # noqa: S102  what the judge is for


def check_value(function, args, expected):
    assert spell(function(*args)) == spell(expected)


def passes(test) -> bool:
    try:
        test()
    except BaseException as error:  # noqa: BLE001  whatever it is, the test did not reach its end
        print(type(error).__name__, file=sys.stderr)
        # unittest.main() ends so; an exit of the program's is another class
        return type(error) is SystemExit and not error.code
    return True
