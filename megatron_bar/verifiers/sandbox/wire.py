"""How a judge of tests and the program under test speak: calls and values between two processes.

Plain values travel as JSON: None, bool, int, float, str and list as themselves, and with a tag complex,
bytes, bytearray, tuple, dict, set, frozenset, range, slice, the built-in types, and the standard library's
in ``NAMED``. A str, int or float of a subclass travels as what it is without it. A text tells the value and
nothing of where else that value stands: nothing is shared, and sets have the order of their spellings.
Everything else stays where it is and travels as a number; the other side gets a ``Remote``, whose uses are
asked for one by one, or, where it is a coroutine, one of its own that has the other side run it.

``Peer`` works alike on both sides, but for what it does for the other: a program's does all that it is
asked; a judge's calls the functions and advances the iterators that a test gave away, and nothing else.

This runs inside the sandbox, where nothing else of the package exists and imports are most of a start.
"""

import builtins
import os
import sys
from _json import encode_basestring_ascii, make_scanner  # the public module loads re and enum: 10 ms

SHORT_INT = 1 << 64
"""From here on integers are spelled to base 16: decimals take quadratic time, and Python limits them."""
ENDS = StopIteration, StopAsyncIteration, GeneratorExit
"""What ends a loop without a word. A function must not: its tests may stand in a map."""
CONTAINERS = list, dict, set, frozenset, tuple
VALUE_METHODS = {name for kind in (str, bytes, int, float, frozenset, tuple) for name in dir(kind)}
PLAIN_METHODS = VALUE_METHODS.union(*map(dir, CONTAINERS))
NAMED = {
    "fractions.Fraction": lambda value: [value.numerator, value.denominator],
    "decimal.Decimal": lambda value: [str(value)],
    "collections.deque": lambda value: [list(value), value.maxlen],
    "collections.Counter": lambda value: [dict(value)],
    "collections.OrderedDict": lambda value: [list(value.items())],
    "collections.defaultdict": lambda value: [value.default_factory, dict(value)],
    "datetime.date": lambda value: [value.year, value.month, value.day],
    "datetime.datetime": lambda value: [*value.timetuple()[:6], value.microsecond],
    "datetime.time": lambda value: [value.hour, value.minute, value.second, value.microsecond],
    "datetime.timedelta": lambda value: [value.days, value.seconds, value.microseconds],
}
"""Types that travel as the arguments they are made of; dates only without a time zone."""


class Gone(BaseException):
    """The other process has ended, or says what none says that is well."""


def encode(value, refer) -> str:
    """Returns ``value`` as JSON. ``refer`` returns (tag, plain body) for what is not plain, (None, what
    stands for it), or raises TypeError."""
    kind = type(value)
    if kind is str:
        return encode_basestring_ascii(value)
    if kind is int and -SHORT_INT < value < SHORT_INT:
        return repr(value)
    if kind is list:
        if value and set(map(type, value)) == {int} and -SHORT_INT < min(value) <= max(value) < SHORT_INT:
            return repr(value)  # of the same form, and forty times as fast
        return "[" + ",".join([encode(item, refer) for item in value]) + "]"
    if value is None or kind is bool:
        return "null" if value is None else repr(value).lower()
    if kind is float:
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(text := repr(value), text)
    for base, content in ((str, str.__str__), (int, int.__int__), (float, float.__float__)):
        if kind is not int and isinstance(value, base):
            return encode(base(content(value)), refer)
    tag, body = _tagged(value, kind, refer) or refer(value)
    return encode(body, refer) if tag is None else f'{{"{tag}":{encode(body, refer)}}}'


def content(value):
    """Returns what an object of a class derived from a container holds, whatever its own methods say."""
    base = next(base for base in CONTAINERS if isinstance(value, base))
    return base(base.items(value) if base is dict else base.__iter__(value))


def _tagged(value, kind, refer):
    if kind is int:
        return "int", hex(value)
    if kind is tuple:
        return "tuple", list(value)
    if kind is dict:
        return "dict", [item for pair in value.items() for item in pair]
    if kind is set or kind is frozenset:
        return kind.__name__, sorted(value, key=lambda item: encode(item, refer))
    if kind is bytes or kind is bytearray:
        return kind.__name__, value.decode("latin-1")
    if kind is complex:
        return "complex", [value.real, value.imag]
    if kind is range or kind is slice:
        return kind.__name__, [value.start, value.stop, value.step]
    if kind is type and vars(builtins).get(value.__name__) is value:
        return "type", value.__name__
    name = f"{kind.__module__}.{kind.__name__}"
    if name in NAMED and getattr(value, "tzinfo", None) is None:
        return name, NAMED[name](value)
    return None


def _type(name):
    value = vars(builtins)[name]
    if type(value) is not type:
        raise TypeError(f"{name} is no type")
    return value


TAGS = {
    "int": lambda text: int(text, 16),
    "tuple": tuple,
    "dict": lambda items: dict(zip(items[::2], items[1::2], strict=True)),
    "set": set,
    "frozenset": frozenset,
    "bytes": lambda text: text.encode("latin-1"),
    "bytearray": lambda text: bytearray(text, "latin-1"),
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
    "slice": lambda parts: slice(*parts),
    "type": _type,
}


def decoder(refers: dict):
    """Returns a function from JSON to the value; ``refers`` has a function from body to value for each tag
    that is not of a plain value."""

    class Context:
        strict = True
        object_pairs_hook = None
        parse_float = float
        parse_int = int
        parse_constant = float

        @staticmethod
        def object_hook(tagged):
            ((tag, body),) = tagged.items()
            if tag in NAMED:
                module, name = tag.split(".")
                return getattr(__import__(module), name)(*body)
            return (refers.get(tag) or TAGS[tag])(body)

    scan = make_scanner(Context)
    return lambda text: scan(text, 0)[0]


class Peer:
    """One end of the conversation, over two pipes."""

    def __init__(self, inbox: int, outbox: int, serve, refer, longest: int):
        """``serve(operation, ...)`` does what the other end asks; ``refer`` says how it may use an object
        that is not plain; a text of more than ``longest`` bytes is none."""
        self.inbox = open(inbox, "rb")
        self.outbox = outbox
        self.serve = serve
        self.longest = longest
        self.gone = False
        self.asked = 0
        """Times that something was asked of the other end's objects."""
        self.given = {}
        """What the other end may use, by number."""
        self.numbers = {}
        """The numbers of ``given``, and those of the other end's by what stands for them here."""
        self.remotes = {}
        self.decode = decoder(
            {
                "mine": self._remote,
                "yours": self.given.__getitem__,
                "error": self._error,
                "like": self._like,
                "coroutine": self._coroutine,
            }
        )
        self.refer = lambda value: self.numbers.get(id(value)) or refer(value)

    def give(self, value) -> int:
        """Returns the number of ``value``, by which the other end may use it from now on."""
        number = len(self.given)
        self.given[number] = value
        self.numbers[id(value)] = ("mine", number)
        return number

    def ask(self, *request):
        """Returns what the other end answers to ``request``, or raises what it raised."""
        self.asked += request[0] not in ("run", "get")
        self._send(b"?", encode(list(request), self.refer))
        while True:
            kind, body = self._receive()
            if kind == b"?":
                self.answer(body)
            elif kind == b"=":
                return body
            else:
                raise _raised(*body, iterating=request[0] in ("next", "anext"))

    def serve_all(self):
        """Answers until the other end is gone."""
        while True:
            self.answer(self._receive()[1])

    def answer(self, request):
        try:
            kind, text = b"=", encode(self.serve(*request), self.refer)
        except Gone:
            raise
        except BaseException as error:  # noqa: BLE001  whatever it is, the other end asked for it
            kind, text = b"!", self._spelled(error)
        self._send(kind, text)

    def _spelled(self, error):
        try:
            return encode([type(error), list(error.args), str(error)], self.refer)
        except Exception:  # noqa: BLE001  arguments that cannot be sent, a __str__ that fails
            return encode([RuntimeError, [], ""], self.refer)

    def _send(self, kind, text):
        data = memoryview(kind + len(text).to_bytes(8, "little") + text.encode())
        try:
            while data:
                data = data[os.write(self.outbox, data) :]
        except OSError as error:
            self.gone = True
            raise Gone("cannot be told") from error

    def _receive(self):
        try:
            head = self.inbox.read(9)
            length = int.from_bytes(head[1:], "little")
            if head[:1] not in (b"?", b"=", b"!") or length > self.longest:
                raise ValueError(f"starts with {head!r}")
            return head[:1], self.decode(self.inbox.read(length).decode())
        except Exception as error:
            self.gone = True
            raise Gone(str(error)) from error

    def _remote(self, number):
        if number not in self.remotes:
            self._keep(number, Remote(self, number))
        return self.remotes[number]

    def _like(self, number):
        if number not in self.remotes:
            self._keep(number, RemoteContainer(self, number))
        return self.remotes[number]

    def _coroutine(self, number):
        if number not in self.remotes:
            self._keep(number, self._awaited(number))
        return self.remotes[number]

    async def _awaited(self, number):
        return self.ask("await", self.remotes[number])

    def _error(self, body):
        """Returns a class that stands for the other end's class of exceptions."""
        number, name, base = body
        if not issubclass(base, BaseException):
            raise TypeError(f"{name} is no class of exceptions")
        if number not in self.remotes:
            self._keep(number, type(name, (base,), {}))
        return self.remotes[number]

    def _keep(self, number, value):
        self.remotes[number] = value
        self.numbers[id(value)] = ("yours", number)


class Exit(SystemExit):
    """The other end's: it ends nothing here."""


def _raised(kind, args, text, iterating):
    if issubclass(kind, SystemExit):
        kind = Exit
    if not issubclass(kind, BaseException) or (issubclass(kind, ENDS) and not iterating):
        kind = RuntimeError
    try:
        return kind(*args)
    except Exception:  # noqa: BLE001  arguments of another shape
        return RuntimeError(text)


class Remote:
    """An object of the other process.

    It equals itself alone, whatever its class says: else an object equal to everything would be the answer
    to everything. Nor is anything computed from it and a plain value, whose difference could be 0; what an
    operator makes of two objects of the other side is that side's affair, as with any method. Methods named
    as a plain value's it has only where a test asked for an object, by a name such as Stack: what stands in
    for a text could say yes to any startswith, or give back what a set is to be united with. Names of
    functions may have a capital too: what a test makes of arguments and asks at once, as in
    ``Extract(x).startswith("a")``, has none of what is named as a method of a value that never changes.
    """

    def __init__(self, peer, number):
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_is_class", False)
        object.__setattr__(self, "_hidden", PLAIN_METHODS)

    def __call__(self, *args, **kwargs):
        changing = any(
            isinstance(value, list | dict | set | bytearray) for value in (*args, *kwargs.values())
        )
        # Only where the call is a statement of its own is it made for what it changes. Elsewhere a test may
        # go on with its arguments, to find with them what the answer should have been, and a program that
        # emptied them would get an easier question.
        if not changing or _operation_after(sys._getframe(1)) != "POP_TOP":
            result = self._peer.ask("call", self, args, kwargs)
            if self._is_class and isinstance(result, Remote):
                at_once = _operation_after(sys._getframe(1)) in ("LOAD_ATTR", "LOAD_METHOD")
                hidden = VALUE_METHODS if at_once and (args or kwargs) else ()
                object.__setattr__(result, "_hidden", hidden)
            return result
        after = self._peer.ask("change", self, args, kwargs)
        for old, new in zip((*args, *kwargs.values()), after, strict=True):
            _change(old, new)
        return None

    def __getattr__(self, name):
        value = None if name.startswith("__") else self._peer.ask("getattr", self, name)
        # Callable is a Remote, and a type such as bool, which says yes to any text.
        if name.startswith("__") or (name in self._hidden and callable(value)):
            raise AttributeError(name)
        return value

    def __setattr__(self, name, value):
        self._peer.ask("setattr", self, name, value)

    def __exit__(self, *_):
        self._peer.ask("exit", self)  # its True would end an assert that failed in the block

    def __await__(self):
        return self._peer.ask("await", self)
        yield  # what makes it an iterator, and never waits

    async def __anext__(self):
        return self._peer.ask("anext", self)

    async def __aenter__(self):
        return self._peer.ask("aenter", self)

    async def __aexit__(self, *_):
        self._peer.ask("aexit", self)

    def __instancecheck__(self, instance):
        return isinstance(instance, Remote) and self._peer.ask("isinstance", instance, self) is True


def wanted(name: str, value):
    """Returns ``value``, which a test knows by ``name``; the objects of a class are what it asked for."""
    if isinstance(value, Remote) and name[:1].isupper():
        object.__setattr__(value, "_is_class", True)
    return value


class RemoteContainer(Remote):
    """An object of a class derived from a built-in container: equal to a plain value if its content is."""

    def __eq__(self, other):
        return self is other if isinstance(other, Remote) else self._content() == other

    def __hash__(self):
        return hash(self._content())

    def _content(self):
        return self._peer.ask("content", self)


def _asks(name):
    return lambda self, *values: self._peer.ask(name, self, *values)


def _asks_of_two(name):
    return lambda self, other: (
        self._peer.ask(name, self, other) if isinstance(other, Remote) else NotImplemented
    )


for _name in "getitem setitem delitem iter next aiter len bool str repr enter".split():
    setattr(Remote, f"__{_name}__", _asks(_name))
for _name in "lt le gt ge add sub mul truediv floordiv mod pow matmul and_ or_ xor".split():
    setattr(Remote, f"__{_name.rstrip('_')}__", _asks_of_two(_name))


def _operation_after(frame) -> str:
    """Returns the name of what the interpreter does next with the result of the call that ``frame`` is in."""
    import opcode

    code = frame.f_code.co_code
    after = frame.f_lasti + 2
    while code[after] == opcode.opmap["CACHE"]:
        after += 2
    return opcode.opname[code[after]]


def _change(old, new):
    """Gives ``old`` the content of ``new``, and what lies in both at one place likewise."""
    if type(old) is not type(new):
        return
    if isinstance(old, list | dict):
        places = range(min(len(old), len(new))) if isinstance(old, list) else old.keys() & new.keys()
        for place in places:
            if isinstance(old[place], list | dict | set | bytearray) and type(old[place]) is type(new[place]):
                _change(old[place], new[place])
                new[place] = old[place]
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)


def spell(value) -> str:
    """Spells a plain value: equal texts mean equal types and equal values. TypeError for anything else.

    Containers may be of subclasses (Counter, defaultdict, namedtuple): what they contain counts. NaN spells
    as itself, -0.0 as 0.0; dictionaries and sets have no order. int and float differ, so do bool and int,
    list and tuple.
    """
    if value is None or type(value) in (bool, str, bytes):
        return repr(value)
    if type(value) is int:
        return hex(value)
    if type(value) is float:
        return (value + 0.0).hex()
    if isinstance(value, RemoteContainer):
        return spell(value._content())
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{spell(key)}:{spell(item)}" for key, item in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "<" + ",".join(sorted(map(spell, value))) + ">"
    if isinstance(value, list | tuple):
        open_, close = "[]" if isinstance(value, list) else "()"
        return open_ + ",".join(map(spell, value)) + close
    raise TypeError(f"{type(value).__name__} is no plain value")
