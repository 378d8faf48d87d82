"""A pickle as plain values, without unpickling: its opcodes are followed here, and none can call anything.

What the pickle would build becomes a `Made` that says so; who reads it looks for what should be there.
Format: the opcodes of CPython's pickletools. Left out: the opcodes that no description of tensors has.
"""

import gc
import pickletools
import re
from dataclasses import dataclass, field
from itertools import islice

from megatron_bar.errors import BarError

LONGEST = 64 << 20
"""Bytes of a pickle that are read."""
MOST_OPCODES = 6 << 20
"""Opcodes that are followed: a part of a tensor is described by 68, and each may make an object of 100
bytes."""


@dataclass(frozen=True, eq=False, slots=True)
class Name:
    """A class or function that a pickle names, module and all."""

    text: str


@dataclass(frozen=True, eq=False, slots=True)
class Stored:
    """What a pickle says lies elsewhere in its archive."""

    key: object


@dataclass(eq=False, slots=True)
class Made:
    """What a pickle would make by a call of ``by``. It equals itself alone: no key is hashed deeply."""

    by: str
    given: tuple
    state: object = field(default=None)


def plain(data: bytes, known: re.Pattern) -> object:
    """Returns the value; raises BarError for what is no pickle of such values.

    ``known``: the classes and functions that it may name. None of them is looked up: another name only shows
    that this is something else.
    """
    if len(data) > LONGEST:
        raise BarError(f"expected a pickle of at most {LONGEST} bytes, got {len(data)}")
    collects = gc.isenabled()
    gc.disable()  # it would look through millions of objects again and again
    try:
        return _Stack(known).follow(data)
    except BarError:
        raise
    except Exception as error:  # noqa: BLE001  bytes that are no pickle raise anything
        raise BarError(f"expected a pickle of plain values, got {type(error).__name__}: {error}") from None
    finally:
        if collects:
            gc.enable()


class _Stack:
    def __init__(self, known: re.Pattern):
        self.known = known
        self.values: list = []
        self.marks: list[int] = []
        """Where on the stack groups of values begin."""
        self.memo: dict[int, object] = {}

    def follow(self, data: bytes) -> object:
        for opcode, given, _ in islice(pickletools.genops(data), MOST_OPCODES):
            name = opcode.name
            if name == "STOP":
                (value,) = self.values
                return value
            if name in _CONSTANTS:
                self.values.append(_CONSTANTS[name])
            elif name in _AS_THEY_STAND:
                self.values.append(given)
            elif name in _EMPTY:
                self.values.append(_EMPTY[name]())
            elif name in _TUPLES:
                self.values.append(tuple(self._take(_TUPLES[name])))
            elif name in _STEPS:
                _STEPS[name](self, given)
            elif name not in ("PROTO", "FRAME"):
                raise BarError(f"expected a description, got the opcode {name}")
        raise BarError(f"expected a whole pickle of at most {MOST_OPCODES} opcodes, got no end")

    def _take(self, count: int) -> list:
        if len(self.values) - count < (self.marks[-1] if self.marks else 0):
            raise BarError("expected values on the stack, got none")
        taken = self.values[-count:]
        del self.values[-count:]
        return taken

    def _since_mark(self) -> list:
        start = self.marks.pop()
        taken = self.values[start:]
        del self.values[start:]
        return taken

    def _top(self, kind: type):
        if not isinstance(self.values[-1], kind):
            raise BarError(f"expected a {kind.__name__.lower()}, got a {type(self.values[-1]).__name__}")
        return self.values[-1]

    def _extend(self, values: list) -> None:
        self._top(list).extend(values)

    def _set(self, pairs: list) -> None:
        target = self._top(dict)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int | Made):  # a nested tuple could take for ever to hash
                raise BarError(f"expected a text, a number or an object as key, got a {type(key).__name__}")
            target[key] = value

    def _global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise BarError("expected the name of a class, got another value")
        text = f"{module}.{name}"
        if not self.known.fullmatch(text):
            raise BarError(f"it refers to {text!r:.200}, which a description of tensors has no use for")
        self.values.append(Name(text))

    def _call(self, by: object, given: object) -> None:
        if not isinstance(by, Name) or not isinstance(given, tuple):
            raise BarError("expected a class and its arguments, got other values")
        self.values.append(Made(by.text, given))

    def _build(self, state: object) -> None:
        made = self._top(Made)
        if made.state is not None:
            raise BarError(f"expected one state of {made.by}, got two")
        made.state = state


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_AS_THEY_STAND = frozenset(
    (
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    )
)
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STEPS = {
    "MARK": lambda s, _: s.marks.append(len(s.values)),
    "TUPLE": lambda s, _: s.values.append(tuple(s._since_mark())),
    "APPEND": lambda s, _: s._extend(s._take(1)),
    "APPENDS": lambda s, _: s._extend(s._since_mark()),
    "SETITEM": lambda s, _: s._set(s._take(2)),
    "SETITEMS": lambda s, _: s._set(s._since_mark()),
    "MEMOIZE": lambda s, _: s.memo.update({len(s.memo): s._top(object)}),
    "BINPUT": lambda s, number: s.memo.update({number: s._top(object)}),
    "LONG_BINPUT": lambda s, number: s.memo.update({number: s._top(object)}),
    "BINGET": lambda s, number: s.values.append(s.memo[number]),
    "LONG_BINGET": lambda s, number: s.values.append(s.memo[number]),
    "GLOBAL": lambda s, names: s._global(*names.split(" ")),
    "STACK_GLOBAL": lambda s, _: s._global(*s._take(2)),
    "NEWOBJ": lambda s, _: s._call(*s._take(2)),
    "REDUCE": lambda s, _: s._call(*s._take(2)),
    "BUILD": lambda s, _: s._build(*s._take(1)),
    "BINPERSID": lambda s, _: s.values.append(Stored(*s._take(1))),
}
