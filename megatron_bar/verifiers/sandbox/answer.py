"""The program's side: runs an answer's blocks of code and does with them what the judge asks (wire.py).

The program shares this process and may corrupt all of it. That earns nothing: neither the tests nor what they
expect are here, and the judge believes in plain values only.
"""

import _operator
import _sitebuiltins
import builtins
import os
import sys
from types import CoroutineType

from wire import CONTAINERS, Gone, Peer, content, decoder

ASYNCHRONOUS = {
    "await": lambda value: value,
    "anext": lambda value: value.__anext__(),
    "aenter": lambda value: value.__aenter__(),
    "aexit": lambda value: value.__aexit__(None, None, None),
}
"""What a judge asks for that has to be waited for, as what is waited for."""


def main(inbox, outbox, longest, text):
    """Serves the judge until it is gone. ``text`` is an answer, encoded."""
    answer = decoder({})(text)
    builtins.exit = builtins.quit = _sitebuiltins.Quitter("exit", "")
    solution = type(sys)("solution")  # not __main__: a program's main block is for those who run it
    solution.__file__ = f"{os.getcwd()}/solution.py"
    sys.modules["solution"] = solution
    namespace = vars(solution)

    def serve(operation, *values):
        if operation == "run":
            return run(answer, namespace)
        if operation == "get":
            return get(namespace, *values)
        if operation in ("call", "change"):
            function, args, kwargs = values
            result = function(*args, **kwargs)
            return result if operation == "call" else [*args, *kwargs.values()]
        if operation == "content":
            return content(*values)
        if operation in ("enter", "exit"):
            return values[0].__enter__() if operation == "enter" else values[0].__exit__(None, None, None)
        if operation in ASYNCHRONOUS:
            return wait_for(ASYNCHRONOUS[operation](*values), loops)
        return (getattr(builtins, operation, None) or getattr(_operator, operation))(*values)

    def refer(value):
        if isinstance(value, type) and issubclass(value, BaseException):
            return "error", [peer.give(value), value.__name__, value.__base__]
        if type(value) is CoroutineType:
            return "coroutine", peer.give(value)
        return "like" if isinstance(value, CONTAINERS) else "mine", peer.give(value)

    loops = []
    peer = Peer(inbox, outbox, serve, refer, longest)
    try:
        peer.serve_all()
    except Gone:
        os._exit(0)


def wait_for(awaitable, loops):
    """Returns what ``awaitable`` becomes, in one loop of events for all, that of ``loops``."""
    import asyncio

    async def whole():
        return await awaitable

    if not loops:
        loops.append(asyncio.new_event_loop())
    return loops[0].run_until_complete(whole())


def run(answer, namespace):
    """Runs the blocks one after another, as a notebook's cells; what each defined before it failed stays.

    A block that cannot be compiled takes what it was to define with it.
    """
    for source, names in [[answer["given"], []], *answer["blocks"]]:
        if answer["prompt"] and source.lstrip("\n")[:1] in (" ", "\t"):
            source = f"{answer['prompt']}\n{source}"  # the body alone, continuing the prompt
        try:
            code = compile(source, "solution.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            for name in names:
                namespace.pop(name, None)
            continue
        try:
            exec(code, namespace)  # noqa: S102  what all this is for
        except BaseException as error:  # noqa: BLE001  an end (exit, input without lines) is no undoing
            print(type(error).__name__, file=sys.stderr)


def get(namespace, name):
    """Returns what the answer calls ``name``, or a method of its class Solution, where LeetCode puts it."""
    if name in namespace or not hasattr(namespace.get("Solution"), name):
        return namespace[name]
    return getattr(namespace["Solution"](), name)
