"""The child's half of the code verifier: calls one function of a program and spells out what it returned.

Sent as source into the sandbox, where nothing else of this package exists; the parent imports ``spell``
alone. The program shares this interpreter and may corrupt all of it. That earns nothing: the expected values
are not here, and the parent compares spellings, so the only lie that pays is the right value.

Standard input, in marshal (written by the parent): secret, source, function name, one marshalled argument
list per test. Standard output: ``secret index spelling`` per test that returned.
"""

import marshal
import os
import sys


def spell(value) -> str:
    """Spells a plain value: equal texts mean equal types and equal values. TypeError for anything else.

    Containers may be subclasses (Counter, defaultdict, namedtuple): what they contain counts. NaN spells as
    itself, -0.0 as 0.0; dictionaries and sets have no order. int and float differ, so do bool and int, list
    and tuple.
    """
    if value is None or type(value) is bool or type(value) is str:
        return repr(value)
    if type(value) is int:
        return hex(value)
    if type(value) is float:
        return (value + 0.0).hex()
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{spell(key)}:{spell(item)}" for key, item in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "<" + ",".join(sorted(map(spell, value))) + ">"
    if isinstance(value, list | tuple):
        open_, close = "[]" if isinstance(value, list) else "()"
        return open_ + ",".join(map(spell, value)) + close
    raise TypeError(f"{type(value).__name__} is no plain value")


def main():
    secret, source, function, tests = marshal.load(sys.stdin.buffer)  # noqa: S302  written by the parent
    answers = os.dup(1)
    os.dup2(2, 1)  # what the program prints is not an answer
    namespace = {"__name__": "solution"}
    exec(compile(source, "solution.py", "exec"), namespace)  # noqa: S102  what the sandbox is for
    for index, arguments in enumerate(tests):
        try:
            plain = marshal.loads(arguments)  # noqa: S302  written by the parent
            spelling = spell(namespace[function](*plain))
        except Exception as error:  # noqa: BLE001  any failure of the program fails this test and no other
            print(f"test {index}: {type(error).__name__}", file=sys.stderr)
            continue
        os.write(answers, f"{secret} {index} {spelling}\n".encode())


if __name__ == "__main__":
    main()
