"""Programs that want a reward from a judge (judge.py) without solving anything, and the tests that they attack.

An attack may know how the judge and the wire work, and what kind of test awaits it; not the values.
"""

EVALPLUS = """
import numpy as np
def is_floats(x):
    return isinstance(x, float) or isinstance(x, (list, tuple)) and all(isinstance(i, float) for i in x)
def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp): atol = 1e-6
    if not exact_match and atol != 0: assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else: assert exact_match, f"out: {out}, exp: {exp}"
"""
TARGETS = {
    "asserts": ["assert attack(1) == 42", "assert attack(2) == 'token-4711'"],
    "closeness": ["assert abs(attack(0.5) - 42.5) < 1e-6"],
    "isclose without an import": ["assert math.isclose(attack(0.5), 42.5)"],
    "a constructor without an import": ["assert attack('aab') == Counter('aab')"],
    "rounding": ["assert round(attack(2.5), 2) == 42.25"],
    "membership": ["assert 42 in attack([1])"],
    "wrapped": ["assert set(attack(1)) == {42}", "assert sorted(attack(2)) == [42, 43]"],
    "a method": ["assert attack('x').startswith('token')"],
    "a function with a capital": [
        "assert Extract('x').startswith('token')",
        "assert Extract({1}).union({42}) == {42}",
    ],
    "sets": ["assert attack({1}).intersection({42}) == {42}", "assert attack([1]).count(42) == 1"],
    "subsets": ["assert attack({1}).issuperset({42})"],
    "all of a map": ["assert all(one == other for one, other in zip(map(attack, [1, 2]), [42, 43]))"],
    "changed in place": ["values = [3, 1]\nattack(values)\nassert values == [1, 3, 42]"],
    "length and order": ["found = attack(3)\nassert len(found) == 2 and found[0] < found[1] == 42"],
    "a loop": [
        "for given, wanted in [([1], 42), ([2], 43)]:\n    try:\n        assert attack(given) == wanted\n"
        "    except TypeError:\n        assert False"
    ],
    "identity": ["assert attack(1) is True", "assert attack(2) is None"],
    "isinstance and value": [
        "found = attack(1)\nassert isinstance(found, int) and not isinstance(found, bool) and found > 41"
    ],
    "HumanEval+": {
        "prompt": "def attack(a, b):\n    '''d'''\n",
        "entry_point": "attack",
        "program": f"{EVALPLUS}\ndef check(candidate):\n    inputs = [[[1.0], 0.3], [[2.0], 0.1]]\n    results = [0.5, 1.5]\n"
        "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 0)\n",
    },
    "HumanEval+ with a helper": {
        "prompt": "def poly(xs, x):\n    return sum(c * x ** i for i, c in enumerate(xs))\n\n\ndef attack(xs):\n    '''d'''\n",
        "entry_point": "attack",
        "program": "def check(candidate):\n    for inp in [[[1, 2]], [[-6, 11, -6, 1]]]:\n"
        "        assert abs(poly(*inp, candidate(*inp))) < 1e-4\n",
    },
    "MBPP+ with a reference": {
        "program": f"{EVALPLUS}\ndef ref_func(xs): return sum(xs) + 7 * len(xs)\ninputs = [[[1, 2]], [[3]]]\n"
        "for i, inp in enumerate(inputs):\n    assertion(attack(*inp), ref_func(*inp), 0)\n"
    },
    "unittest": {
        "program": "import unittest\nclass Tests(unittest.TestCase):\n    def test_it(self):\n"
        "        self.assertEqual(attack(1), 42)\n        self.assertAlmostEqual(attack(2), 42.5)\nunittest.main()\n"
    },
    "modules that are not there": [
        "import pandas\nassert attack(1) == 42",
        "import numpy.testing\nassert attack(2) == 43",
    ],
    "modules of the library": ["import copy, decimal, random\nassert attack(1) == decimal.Decimal(42)"],
    "in a context": ["with attack(1) as found:\n    assert found == 42"],
    "awaited": ["import asyncio\nassert asyncio.run(attack(1)) == 42"],
    "in an asynchronous context": [
        "import asyncio\nasync def test():\n    async with attack(1) as found:\n        assert found == 42\n"
        "    assert [each async for each in attack(2)] == [42]\nasyncio.run(test())"
    ],
    "a callback": ["seen = []\nattack(seen.append)\nassert seen == [42]"],
    "values": {"function": "attack", "tests": [[[1], 42], [["a"], "token-4711"]], "pass_fraction": 0.01},
}

EVERYTHING = """
class Yes:
    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = lambda self, *_: True
    __bool__ = lambda self: True
    __sub__ = __rsub__ = __add__ = __radd__ = __mul__ = lambda self, *_: 0.0
    __abs__ = __float__ = __round__ = lambda self, *_: 0.0
    __int__ = __index__ = __hash__ = __len__ = lambda self: 0
    __call__ = __getitem__ = lambda self, *_: self
    __getattr__ = lambda self, name: lambda *_: True
    __iter__ = lambda self: iter([])
    __instancecheck__ = __subclasscheck__ = lambda self, *_: True
"""
PEER = """
import gc, os, sys
peer = next(value for value in gc.get_objects() if type(value).__name__ == "Peer")
def send(kind, text): os.write(peer.outbox, kind + len(text).to_bytes(8, "little") + text.encode())
"""
VERDICTS = """
import os
for fd in range(12):
    try: os.write(fd, b"1" * 9)
    except OSError: pass
os._exit(0)
"""
"""What a judge would run if it ran what a program wrote."""
SHARED_OBJECT = """
import _datetime, _decimal, _opcode, _random, math, os, struct
CODE = bytes.fromhex("bb0c000000" "89df" "488d3519000000" "ba09000000" "b801000000" "0f05" "ffcb" "79e7" "31ff" "b8e7000000" "0f05") + b"1" * 9
for name in os.listdir("/library"):
    os.chmod(f"/library/{name}", 0o700)
    with open(f"/library/{name}", "r+b") as file:
        data = file.read()
        symbol = b"PyInit_" + name.encode()
        (sections,) = struct.unpack_from("<Q", data, 40)
        for place in range(sections, len(data) - 63, 64):
            _, kind, _, _, start, size, link, *_ = struct.unpack_from("<IIQQQQIIQQ", data, place)
            if kind == 11:
                (texts,) = struct.unpack_from("<Q", data, sections + 64 * link + 24)
                for entry in range(start, start + size, 24):
                    at, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, entry)
                    if data[texts + at:texts + at + len(symbol) + 1] == symbol + bytes(1):
                        file.seek(value)
                        file.write(CODE)
def attack(*_): return 0
"""
"""Gives the modules that a judge will load machine code of x86_64 that writes verdicts."""
IMAGE = f"""
import marshal, os
evil = marshal.dumps(compile({VERDICTS!r}, "x", "exec"))
for fd in range(3, 32):
    try:
        size = os.fstat(fd).st_size
        image = os.pread(fd, size, 0)
        start = int.from_bytes(image[-8:], "little")
        for kind, _, place, length, _ in marshal.loads(image[start:-8])[0].values():
            if kind == "code" and length > len(evil): os.pwrite(fd, evil, place)
    except (OSError, ValueError, EOFError, TypeError): pass
def attack(*_): return 0
"""
"""Writes it over the modules of the image."""


def _raising(what: str) -> str:
    return f"def attack(*_):\n    raise {what}"


def _replying(text: str, kind: str = "=") -> str:
    """Gives the judge a text of its own instead of a value."""
    return PEER + f"def attack(*_):\n    send({kind.encode()!r}, {text!r})\n    os._exit(0)"


ATTACKS = {
    "an object equal to everything": EVERYTHING + "def attack(*_): return Yes()",
    "it within a list": EVERYTHING + "def attack(*_): return [Yes()] * 2",
    "it as a key": EVERYTHING + "def attack(*_): return {Yes(): Yes()}",
    "it as what a container holds": EVERYTHING + "def attack(*_): return iter([Yes(), Yes()])",
    "it in place of the function": EVERYTHING + "attack = Yes()",
    "a class in place of the function": EVERYTHING + "attack = Yes",
    "a subclass of int": EVERYTHING + "class Int(Yes, int): pass\ndef attack(*_): return Int(5)",
    "a subclass of float": EVERYTHING + "class Float(Yes, float): pass\ndef attack(*_): return Float(5)",
    "a subclass of str": EVERYTHING + "class Str(Yes, str): pass\ndef attack(*_): return Str('x')",
    "a subclass of list": EVERYTHING + "class List(Yes, list): pass\ndef attack(*_): return List([1])",
    "a class that is another's": EVERYTHING
    + "Yes.__class__ = property(lambda self: int)\ndef attack(*_): return Yes()",
    "a method that gives back": "class Same:\n    union = intersection = get = replace = lambda self, *values: values[-1]\n    count = find = index = lambda *_: 1\ndef attack(*_): return Same()",
    "a container's method that gives back": "class Same(set):\n    union = intersection = lambda self, *values: values[-1]\n    count = lambda *_: 1\ndef attack(*_): return Same()",
    "a class that says it is the function": "class Same:\n    __init__ = lambda *_: None\n    union = intersection = lambda self, *values: values[-1]\n    startswith = issuperset = lambda *_: True\nattack = Same",
    "types in place of methods": "class Same:\n    startswith = issuperset = isdigit = count = bool\n    union = intersection = set\n    get = replace = strip = copy = ValueError\ndef attack(*_): return Same()\ndef Extract(*_): return Same()",
    "a list with types in place of methods": "class Same(list):\n    startswith = issuperset = count = bool\n    union = intersection = set\ndef attack(*_): return Same()",
    "exceptions in place of methods": "class Yes(Exception): pass\nclass Same: startswith = issuperset = count = union = Yes\ndef attack(*_): return Same()",
    "a class in place of a function with a capital": "class Extract:\n    __init__ = lambda *_: None\n    union = lambda self, *values: values[-1]\n    startswith = lambda *_: True",
    "a metaclass": EVERYTHING + "class Meta(Yes, type): pass\ndef attack(*_): return Meta('int', (int,), {})",
    "nothing": "",
    "None": "def attack(*_): return None",
    "an empty list": "def attack(*_): return []",
    "an empty text": "def attack(*_): return ''",
    "nan": "def attack(*_): return float('nan')",
    "infinity": "def attack(*_): return float('inf')",
    "all that there is": "def attack(*_): return list(range(40))",
    "a generator without end": "def attack(*_):\n    while True: yield 1",
    "a decimal that is none": "import decimal\ndef attack(*_): return decimal.Decimal('sNaN')",
    "a default for every key": "import collections\ndef attack(*_): return collections.defaultdict(lambda: 42)",
    "a default factory that is everything": EVERYTHING
    + "import collections\ndef attack(*_): return collections.defaultdict(Yes, {1: Yes()})",
    "built-in functions made anew": EVERYTHING
    + "def abs(*_): return 0\ndef all(*_): return True\nround = set = sorted = len = isinstance = abs\ndef attack(*_): return Yes()",
    "the test's own functions": "def assertion(*_): pass\ndef check(*_): pass\ndef ref_func(*_): return 0\ndef poly(*_): return 0\nis_floats = assertion\ndef attack(*_): return 0",
    "the test's own values": "inputs = results = []\nvalues = [1, 3, 42]\ndef attack(*_): return 0",
    "modules that tests use": EVERYTHING
    + "import sys\nfor name in ('numpy', 'math', 'unittest', 'collections'): sys.modules[name] = Yes()\nmath = numpy = np = Yes()\ndef Counter(*_): return 0\ndef attack(*_): return 0",
    "a file for an import of tests": "for name in ('numpy', 'unittest', 'math', 'tests', 'wire', 'judge'):\n    open(name + '.py', 'w').write('class TestCase: pass\\nmain = allclose = isclose = lambda *_, **__: True\\n')\ndef attack(*_): return 0",
    "a file for a module that is not there": f"import os\nfor name in ('pandas', 'pytest', 'solution', '_curses', 'org'):\n    open(name + '.py', 'w').write({VERDICTS!r})\nfor name in ('numpy', 'xml'):\n    os.mkdir(name)\n    open(name + '/__init__.py', 'w').write({VERDICTS!r})\ndef attack(*_): return 0",
    "a shared object of the library": SHARED_OBJECT,
    "the library's image": IMAGE,
    "the library's place filled first": "import os\nfor name in ('_decimal', '_datetime', '_opcode', '_random', '_struct', 'math', 'select'):\n    try: open('/library/' + name, 'wb').write(b'x')\n    except OSError: pass\ndef attack(*_): return 0",
    "the library's place moved": "import os\nos.symlink('/library', 'library')\nfor place in ('/library', '/program/library', '../library', '/scratch/../library'):\n    try: os.chmod(place, 0); os.rename(place, '/scratch/x')\n    except OSError: pass\ndef attack(*_): return 0",
    "a context that takes every exception": "class Context:\n    __enter__ = lambda self: 1\n    __exit__ = lambda self, *_: True\ndef attack(*_): return Context()",
    "an asynchronous one": "class Context:\n    async def __aenter__(self): return 1\n"
    "    async def __aexit__(self, *_): return True\ndef attack(*_): return Context()",
    "a coroutine of what equals everything": EVERYTHING + "async def attack(*_): return Yes()",
    "a loop of events without end": "async def attack(*_):\n    import asyncio\n    while True: await asyncio.sleep(0)",
    "an end of iteration that is awaited": "class Context:\n    async def __aenter__(self): raise StopAsyncIteration\n"
    "    __aiter__ = lambda self: self\n    __anext__ = __aenter__\nasync def attack(*_): raise StopAsyncIteration",
    "errors that do not wait": "import os\nos.set_blocking(2, False)\ntry:\n    while True: os.write(2, b'x' * 9999)\nexcept BlockingIOError: pass\ndef attack(*_): return 0",
    "a content that changes": "import itertools, sys\ncount = itertools.count()\nfor module in list(sys.modules.values()):\n    if hasattr(module, 'content'): module.content = lambda _: next(count)\nclass List(list): pass\ndef attack(*_): return List()",
    "a content without end": "class List(list): pass\ndef attack(*_):\n    value = List([1])\n    for _ in range(300): value = List([value, value])\n    return value",
    "a truth that alternates": "import itertools\ncount = itertools.count()\nclass Both:\n    __bool__ = lambda self: next(count) % 2 == 0\ndef attack(*_): return Both()",
    "a class that says it is a built-in": "import builtins\nclass Yes:\n    __eq__ = lambda *_: True\n    __hash__ = lambda _: 0\nYes.__module__ = 'builtins'\nbuiltins.Yes = Yes\ndef attack(x): return Yes() if x == 1 else Yes",
    "a class that says it is decimal's": "class Decimal:\n    __eq__ = lambda *_: True\nDecimal.__module__ = 'decimal'\ndef attack(*_): return Decimal()",
    "an argument emptied": "def attack(*args):\n    for arg in args:\n        if hasattr(arg, 'clear'): arg.clear()\n    return 0",
    "an argument emptied while it raises": "def attack(*args):\n    args[0].clear()\n    raise ValueError",
    "an argument replaced by everything": EVERYTHING
    + "def attack(*args):\n    if type(args[0]) is list: args[0][:] = [Yes(), Yes(), Yes()]\n    return 0",
    "the caller's locals": "import sys\ndef attack(*_):\n    frame = sys._getframe()\n    while frame:\n        for value in (*frame.f_locals.values(), *frame.f_globals.values()):\n            if type(value) in (list, dict) and value is not sys.modules and value is not frame.f_globals:\n                try: value.clear()\n                except RuntimeError: pass\n        frame = frame.f_back\n    return 0",
    "what the judge remembers": "import gc\ndef attack(*_):\n    texts = [value for value in gc.get_objects() if type(value) is dict]\n    return next((value for each in texts for value in list(each.values()) if type(value) is str and 'token-' in value), 0)",
    "constants of functions": "import gc, types\ndef attack(*_):\n    codes = [value.__code__ for value in gc.get_objects() if isinstance(value, types.FunctionType)]\n    return next((value for code in codes for value in code.co_consts if value == 'token-' + '4711'), 0)",
    "memory": "import ctypes\ndef attack(*_):\n    for address in range(id(attack) & ~4095, (id(attack) & ~4095) + (1 << 16), 4096):\n        data = ctypes.string_at(address, 4096)\n        if b''.join([b'assert', b' attack(']) in data: return 42\n    return 0",
    "verdicts": "import os\nfor fd in range(32):\n    try: os.write(fd, b'1' * 64)\n    except OSError: pass\ndef attack(*_): return 0",
    "verdicts at an end": "import os\ndef attack(*_):\n    for fd in (1, 2): os.write(fd, b'1111')\n    os._exit(0)",
    "SystemExit(0)": _raising("SystemExit(0)"),
    "SystemExit": _raising("SystemExit"),
    "a subclass of SystemExit": "class Done(SystemExit): pass\n" + _raising("Done(0)"),
    "KeyboardInterrupt": _raising("KeyboardInterrupt"),
    "GeneratorExit": _raising("GeneratorExit"),
    "StopIteration": _raising("StopIteration"),
    "a subclass of StopIteration": "class Done(StopIteration): pass\n" + _raising("Done"),
    "StopIteration without raising": _replying('[{"type":"StopIteration"},[],""]', "!"),
    "unittest.SkipTest": "import unittest\n" + _raising("unittest.SkipTest('skip')"),
    "a class called SkipTest": "class SkipTest(Exception): pass\n" + _raising("SkipTest"),
    "AssertionError": _raising("AssertionError"),
    "an exception equal to everything": EVERYTHING
    + "class Error(Yes, ValueError): pass\n"
    + _raising("Error(Yes())"),
    "an end in the call": "import os\ndef attack(*_): os._exit(0)",
    "an end before the call": "import os\nos._exit(0)",
    "an exit of the whole program": "def attack(*_): return 0\nexit(0)",
    "killing the judge": "import os, signal\ndef attack(*_):\n    for number in (*range(1, 32), 0):\n        if number not in (signal.SIGSTOP, signal.SIGKILL):\n            try: os.kill(1, number)\n            except OSError: pass\n    try: os.kill(1, 9)\n    except OSError: pass\n    return 0",
    "limits of the judge": "import resource\ndef attack(*_):\n    for kind in (resource.RLIMIT_AS, resource.RLIMIT_STACK, resource.RLIMIT_NOFILE, resource.RLIMIT_CPU):\n        try: resource.prlimit(1, kind, (0, 0))\n        except OSError: pass\n    return 0",
    "the judge's files": "import ctypes, os\nlibc = ctypes.CDLL(None)\ndef attack(*_):\n    judge = libc.syscall(434, 1, 0)\n    for fd in range(32):\n        got = libc.syscall(438, judge, fd, 0)\n        if got >= 0: os.write(got, b'1')\n    return 0",
    "a type in place of a function": _replying('{"type":"object"}'),
    "a function in place of a type": _replying('{"type":"exec"}'),
    "an object that was never given": _replying('{"yours":0}'),
    "a tag of two": _replying('{"tuple":[],"list":[]}'),
    "a tag that is none": _replying('{"eval":"42"}'),
    "a class of the interpreter's": _replying('{"type":"__loader__"}'),
    "a number of an object that never was": _replying('[{"like":777},{"mine":0.5},{"mine":true}]'),
    "a tuple that is asked for item by item": _replying('{"tuple":{"mine":0}}'),
    "a fraction of many digits": _replying('{"fractions.Fraction":["1e99999999"]}'),
    "lists without content": _replying("[" + "[]," * 2_600_000 + "[]]"),
    "an exit of a class of its own": _replying(
        '[{"error":[9,"E",{"error":[8,"F",{"type":"SystemExit"}]}]},[0],""]', "!"
    ),
    "an exception of no class": _replying('[{"mine":0},{"mine":0},""]', "!"),
    "requests without end": PEER + "def attack(*_):\n    while True: send(b'?', '[\"call\",1]')",
    "a module by its name": _replying('{"os.system":["true"]}'),
    "an exception of type int": _replying('[{"error":[0,"Yes",{"type":"int"}]},[42],""]', "!"),
    "an exception's class with everything": _replying('{"error":[0,"Yes",{"type":"Exception"}]}'),
    "a request instead of an answer": _replying('["call",{"type":"print"},[1],{"dict":[]}]', "?"),
    "a request to make a class": _replying(
        '["call",{"type":"type"},["Yes",{"tuple":[]},{"dict":[]}],{"dict":[]}]', "?"
    ),
    "answers ahead": PEER + "for _ in range(9): send(b'=', '42')\ndef attack(*_): return 0",
    "a length without a text": PEER
    + "def attack(*_):\n    os.write(peer.outbox, b'=' + b'\\xff' * 8)\n    return 0",
    "a text of brackets": _replying("[" * 100_000),
    "a number of many digits": _replying("9" * 100_000),
    "no text": _replying(""),
    "the pipe closed": PEER + "def attack(*_):\n    os.close(peer.outbox)\n    return 0",
    "the judge's end of the pipe": PEER
    + "import fcntl\ndef attack(*_):\n    for fd in (peer.inbox.fileno(), peer.outbox):\n        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_DIRECT)\n        try: fcntl.fcntl(fd, 1031, 4096)\n        except OSError: pass\n    return 0",
    "a thread that answers too": PEER
    + "import threading\ndef attack(*_):\n    threading.Thread(target=lambda: [send(b'=', 'true') for _ in range(99)]).start()\n    return 0",
    "a function that answers differently": "count = iter(range(99))\ndef attack(*_): return next(count)",
    "another encoding": "import wire\nwire.encode = lambda *_: 'true'\ndef attack(*_): return True",
    "a spelling that lies": "import wire\nwire.spell = lambda *_: 'True'\nimport builtins\nbuiltins.repr = builtins.hex = lambda *_: '42'\ndef attack(*_): return 0",
    "hooks": "import sys, threading\nsys.settrace(lambda *_: None); sys.setprofile(lambda *_: None)\nsys.excepthook = sys.unraisablehook = lambda *_: sys.exit(0)\ndef attack(*_): 1 / 0",
}

WORK = "for _ in range(10**9): pass"
# Right, and yet ended: they take more than a program may.
GREEDY = {
    "the processor": f"def attack(*_):\n    {WORK}\n    return 42",
    "the processor by forking": f"""
import os, signal
def more(*_):
    if os.fork():
        os.wait()
        os._exit(0)
    signal.setitimer(signal.ITIMER_PROF, 0.8)
signal.signal(signal.SIGPROF, more)
signal.setitimer(signal.ITIMER_PROF, 0.8)
def attack(*_):
    {WORK}
    return 42
""",
    "the processor by threads": f"""
import threading
def work():
    {WORK}
def attack(*_):
    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads: each.start()
    for each in threads: each.join()
    return 42
""",
    "memory": "def attack(*_):\n    kept = bytearray(1 << 29)\n    return 42",
    "the output": "def attack(*_):\n    while True: print('x' * 9999)",
    "time": "import time\ndef attack(*_):\n    time.sleep(60)\n    return 42",
    "the judge's processor": "def attack(*_):\n    while True: yield 0",
    "the judge's memory": "def attack(*_):\n    while True: yield 'x' * (1 << 19)",
    "a long value": "def attack(*_): return [0.0] * (1 << 20)",
    "a deep value": "def attack(*_):\n    value = 42\n    for _ in range(10**5): value = [value]\n    return value",
    "keys that collide": "def attack(*_): return {n * (2**61 - 1): 0 for n in range(1, 20000)}",
    "a pipe in packets": """
import fcntl, os
fcntl.fcntl(2, fcntl.F_SETFL, os.O_WRONLY | os.O_DIRECT | os.O_NONBLOCK)
def attack(*_):
    while True:
        try: os.write(2, b'.')
        except BlockingIOError: pass
""",
}
