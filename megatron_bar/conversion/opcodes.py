"""A pickle as plain values, without unpickling: its opcodes are followed here, and none can call anything.

What the pickle would build becomes a `Made` that says so; who reads it looks for what should be there.
Format: the opcodes of CPython's pickletools. Left out: the opcodes that no description of tensors has. They
are read here too, since genops takes longer to read one than following it does.
"""

import gc
import pickletools
import re
import struct
import sys
from dataclasses import dataclass, field

from megatron_bar.errors import BarError

LONGEST = 64 << 20
"""Bytes of a pickle that are read."""
MOST_OPCODES = 12 << 20
"""Opcodes that are followed: a part of a tensor is described by 68."""
MOST_MEMORY = 640 << 20
"""Bytes of what they make, as it is estimated: a part of a tensor takes 3,600."""
SLOT = 9
"""Bytes of a place on the stack, in a list or in the memo, which grow by an eighth."""
PAIR = 110
"""Bytes of a dictionary's pair: tables grow threefold."""
LARGEST_KEY = 1 << 31
"""Of a number as key; larger ones can be chosen so that all have one hash."""


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
        self.names: dict[bytes, Name] = {}
        self.values: list = []
        self.marks: list[int] = []
        """Where on the stack groups of values begin."""
        self.memo: list = []
        self.room = MOST_MEMORY

    def follow(self, data: bytes) -> object:
        at = 0
        for _ in range(MOST_OPCODES):
            if at >= len(data):
                break
            code = data[at]
            at += 1
            if step := _STEPS.get(code):
                step(self)
            elif read := _READERS.get(code):
                at = read(self, data, at)
            elif _NAMES.get(code) == "STOP":
                (value,) = self.values
                return value
            else:
                raise BarError(f"expected a description, got the opcode {_NAMES.get(code, code)}")
            self._charge(SLOT)
        raise BarError(f"expected a whole pickle of at most {MOST_OPCODES} opcodes, got no end")

    def _charge(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise BarError(f"expected values of at most {MOST_MEMORY} bytes, got more")

    def _push(self, value: object, size: int) -> None:
        self.room -= size
        self.values.append(value)

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

    def _tuple(self, values: list) -> None:
        self._push(tuple(values), 64 + 8 * len(values))

    def _extend(self, values: list) -> None:
        self._top(list).extend(values)
        self.room -= SLOT * len(values)

    def _set(self, pairs: list) -> None:
        target = self._top(dict)
        self._charge(PAIR * len(pairs) // 2)
        one_by_one = iter(pairs)
        for key, value in zip(one_by_one, one_by_one, strict=True):
            if not isinstance(key, str | int | Made):  # a nested tuple could take for ever to hash
                raise BarError(f"expected a text, a number or an object as key, got a {type(key).__name__}")
            if isinstance(key, int) and abs(key) > LARGEST_KEY:
                raise BarError(f"expected keys up to {LARGEST_KEY}, got a larger number")
            target[key] = value

    def _memoize(self, number: int) -> None:
        """Keeps what is on top under its number; those that write pickles count them."""
        if number != len(self.memo):
            raise BarError(f"expected value {len(self.memo)} to be kept, got {number}")
        self.memo.append(self.values[-1])

    def _name(self, text: bytes) -> None:
        if text not in self.names:
            spelled = text.decode()
            if not self.known.fullmatch(spelled):
                raise BarError(f"it refers to {spelled!r:.200}, of no use to a description of tensors")
            self.names[text] = Name(spelled)
        self.values.append(self.names[text])

    def _global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise BarError("expected the name of a class, got another value")
        self._name(f"{module}.{name}".encode())

    def _call(self, by: object, given: object) -> None:
        if not isinstance(by, Name) or not isinstance(given, tuple):
            raise BarError("expected a class and its arguments, got other values")
        self._push(Made(by.text, given), 64)

    def _build(self, state: object) -> None:
        made = self._top(Made)
        if made.state is not None:
            raise BarError(f"expected one state of {made.by}, got two")
        made.state = state


_STEPS = {
    "NONE": lambda s: s.values.append(None),
    "NEWTRUE": lambda s: s.values.append(True),
    "NEWFALSE": lambda s: s.values.append(False),
    "EMPTY_TUPLE": lambda s: s.values.append(()),
    "EMPTY_DICT": lambda s: s._push({}, 72),
    "EMPTY_LIST": lambda s: s._push([], 64),
    "TUPLE1": lambda s: s._tuple(s._take(1)),
    "TUPLE2": lambda s: s._tuple(s._take(2)),
    "TUPLE3": lambda s: s._tuple(s._take(3)),
    "TUPLE": lambda s: s._tuple(s._since_mark()),
    "MARK": lambda s: s.marks.append(len(s.values)),
    "APPEND": lambda s: s._extend(s._take(1)),
    "APPENDS": lambda s: s._extend(s._since_mark()),
    "SETITEM": lambda s: s._set(s._take(2)),
    "SETITEMS": lambda s: s._set(s._since_mark()),
    "MEMOIZE": lambda s: s._memoize(len(s.memo)),
    "STACK_GLOBAL": lambda s: s._global(*s._take(2)),
    "NEWOBJ": lambda s: s._call(*s._take(2)),
    "REDUCE": lambda s: s._call(*s._take(2)),
    "BUILD": lambda s: s._build(*s._take(1)),
    "BINPERSID": lambda s: s._push(Stored(*s._take(1)), 64),
}
"""What the opcodes do that stand alone."""


def _number(size: int, *, signed: bool = False):
    def read(stack: _Stack, data: bytes, at: int) -> int:
        stack._push(int.from_bytes(data[at : at + size], "little", signed=signed), 32)
        return at + size

    return read


def _sized(size: int, make):
    """Reads how many bytes follow, and what they make."""

    def read(stack: _Stack, data: bytes, at: int) -> int:
        end = at + size + int.from_bytes(data[at : at + size], "little")
        value = make(data[at + size : end])
        stack._push(value, sys.getsizeof(value))
        return end

    return read


def _with_number(size: int, use):
    def read(stack: _Stack, data: bytes, at: int) -> int:
        use(stack, int.from_bytes(data[at : at + size], "little"))
        return at + size

    return read


def _float(stack: _Stack, data: bytes, at: int) -> int:
    stack._push(*struct.unpack_from(">d", data, at), 32)
    return at + 8


def _names(stack: _Stack, data: bytes, at: int) -> int:
    middle = data.index(b"\n", at)
    end = data.index(b"\n", middle + 1)
    stack._name(data[at:middle] + b"." + data[middle + 1 : end])
    return end + 1


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


_READERS = {
    "PROTO": lambda s, data, at: at + 1,
    "FRAME": lambda s, data, at: at + 8,
    "BININT": _number(4, signed=True),
    "BININT1": _number(1),
    "BININT2": _number(2),
    "BINFLOAT": _float,
    "LONG1": _sized(1, lambda data: int.from_bytes(data, "little", signed=True)),
    "SHORT_BINUNICODE": _sized(1, _text),
    "BINUNICODE": _sized(4, _text),
    "BINUNICODE8": _sized(8, _text),
    "SHORT_BINBYTES": _sized(1, bytes),
    "BINBYTES": _sized(4, bytes),
    "BINPUT": _with_number(1, _Stack._memoize),
    "LONG_BINPUT": _with_number(4, _Stack._memoize),
    "BINGET": _with_number(1, lambda s, number: s.values.append(s.memo[number])),
    "LONG_BINGET": _with_number(4, lambda s, number: s.values.append(s.memo[number])),
    "GLOBAL": _names,
}
"""What the opcodes do that are followed by an argument; they return the place behind it."""
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_STEPS = {code: _STEPS[name] for code, name in _NAMES.items() if name in _STEPS}
_READERS = {code: _READERS[name] for code, name in _NAMES.items() if name in _READERS}
