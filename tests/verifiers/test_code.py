"""The code verifier on kinds of answers and tests, each in all its variations: blocks of code as models write
them, and tests of data sets, whose verdicts are compared with Python's own in one process."""

import contextlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_bar.errors import BarError
from megatron_bar.verifiers import check_task, fences, verify, verify_many

RIGHT = "def double(x):\n    return x + x\n"
WRONG = "def double(x): return 1\n"
OPEN = (
    "```python", "```Python", "```py", "```python3", "```", "~~~python", "~~~", "````python", "   ```python", "\t~~~py",
    "Here it is: ```python", "``` python", "```{.python}", '```python title="a.py"',
)  # fmt: skip
BEFORE = {
    "nothing": "",
    "words": "First we `double` it: x + x.\n",
    "a helper": "```python\nimport math\ndef helper(x): return x\n```\n",
    "a wrong one": f"```python\n{WRONG}```\nBetter:\n",
    "a shell command": "```bash\npip install double\n```\n",
    "thoughts": f"<think>\n```python\n{WRONG}```\nNo.</think>\n",
}
AFTER = {
    "nothing": "",
    "words": "It doubles.",
    "a use": "Usage:\n```python\nprint(double(3))\n```\n",
    "an output": "Output:\n```\n6\n```",
    "a named output": "Output:\n```text\n6\n```",
    "a shell command": "Run:\n```bash\npython solution.py\n```",
    "a test": "Test:\n```python\nassert double(2) == 4\n```",
    "a doctest": "```python\n>>> double(3)\n6\n```",
    "a wrong test": "```python\nassert double(2) == 5\n```",
    "a use that ends": "```python\nimport sys\nsys.exit(double(0))\n```",
    "an explanation": "```python\nx + x  # the sum\n```",
    "data": '```json\n{"double": 2}\n```',
}


def fenced(opening: str, program: str) -> str:
    indent = opening[: len(opening) - len(opening.lstrip())]
    fence = "~" * opening.count("~") or "`" * opening.count("`")
    return f"{opening}\n" + "".join(f"{indent}{line}\n" for line in (*program.splitlines(), fence))


def namespace_of(answer: str) -> dict:
    found = {}
    for text, defined in fences.defining(answer, ["double"]):
        try:
            exec(compile(text, "answer", "exec"), found)
        except (SyntaxError, AssertionError, NameError, SystemExit):
            assert not defined  # a doctest, a wrong test, an exit: not the definition
    return found


@pytest.mark.parametrize("opening", OPEN)
def test_the_block_that_counts(opening):
    """In every surrounding, and with another function after it, which counts instead."""
    for before, after in itertools.product(BEFORE, AFTER):
        answer = BEFORE[before] + fenced(opening, RIGHT) + AFTER[after]
        assert namespace_of(answer)["double"](21) == 42, answer
        assert namespace_of(f"{answer}\nor\n```python\n{WRONG}```")["double"](21) == 1, answer


DOCSTRING = 'def double(x):\n    """Doubles.\n\n{0}\n    double(2)\n{0}\n    """\n    return x + x\n'
BLOCKS = [
    (f"```python\n{DOCSTRING.format('    ```')}```", 1),
    (f"```python\n{DOCSTRING.format('```')}```\nDone.", 1),
    (f"```python\n{DOCSTRING.format('  ```')}```\n```\n6\n```", 1),
    (f"~~~python\n{DOCSTRING.format('```')}~~~", 1),
    (f"````python\n{DOCSTRING.format('```')}````", 1),
    (f"```python\r\n{RIGHT}```\r\n".replace("\n", "\r\n"), 1),
    (f"```python\n{RIGHT}", 1),
    (f"```python\n{RIGHT}```\nNow in one line:\n```python\ndouble = lambda x: 2 * x", 1),
    (f"```python\n{RIGHT}```\nNow in one line:\n```python\ndouble = lambda x: 2 *", 0),
    (f"```python\n{RIGHT}```\nBut:\n```python\ndef double(x)\n    return 0\n```", 0),
    (f"```python\n{RIGHT}```\n```python\ndef triple(x): return 3 * x\n```", 1),
    (f"```python\n{RIGHT}```\n```javascript\nfunction double(x) {{ return 1 }}\n```", 1),
    ("```python\ndef helper(x): return x + x\n```\nso\n```python\ndef double(x): return helper(x)\n```", 1),
    ("```python\ndef double(x): return helper(x)\n```\nwith\n```python\ndef helper(x): return x + x\n```", 0),
    (f"```python\n{RIGHT}```\n```python\ndouble == 3\n```", 1),
    (f"```python\n{RIGHT}```\n```python\ndouble: object = lambda x: 0\n```", 0),
    (f"```bash\nls\n```\n{RIGHT}", 0),
    (f"```\n{RIGHT}```\n```\nfirst output\n```", 1),
    ("```python\nclass Solution:\n    def double(self, x):\n        return x + x\n```", 1),
    ("", 0), ("```", 0), ("```python\n```", 0), ("~~~\n~~~", 0), ("```\n```\n" * 999, 0),
]  # fmt: skip
STDIN_BLOCKS = [
    ("```python\nprint(2 * int(input()))\n```\nExample:\n```\n4\n```", 1),
    ("```python\nprint(2 * int(input()))\n```\nExample:\n```python\nprint(4)\n```", 1),
    ("```python\nprint(int(input()))\n```\nBetter:\n```python\nprint(2 * int(input()))\n```", 1),
    ("```python\nprint(2 * int(input()))\n```\nor\n```python\nprint(int(input()))\n```", 0),
    (
        "```python\ndef f(x):\n    return 2 * x\n```\nand\n```python\nimport sys\nprint(f(int(sys.stdin.read())))\n```",
        1,
    ),
    ("```python\nimport sys\n\nN = 2\n```\n~~~python\nprint(N * int(sys.stdin.readline()))\n~~~", 1),
    ("```python\nprint('start')\n```\n```python\nprint(2 * int(input()))\n```", 1),
    ("```python\nprint(2 * int(open(0).read()))\n```\n```bash\npython a.py < in\n```", 1),
    ("```cpp\nint main() { return 0; }\n```\n```python\nprint(2 * int(input()))\n```", 1),
    ("1. Solve:\n   ```python\n   def main():\n       print(2 * int(input()))\n   main()\n   ```", 1),
]


def test_blocks_in_the_sandbox():
    double = {"function": "double", "tests": [[[21], 42], [["a"], "aa"]]}
    twice = {"stdin_tests": [["21\n", "42\n"], ["-1", "-2"]]}
    cases = [(a, double, score) for a, score in BLOCKS] + [(a, twice, score) for a, score in STDIN_BLOCKS]
    scores = verify_many([("code", answer, truth) for answer, truth, _ in cases])
    assert [case for case, score in zip(cases, scores, strict=True) if case[2] != score] == []


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.integers(-3, 3).map(float)
    | st.floats(allow_nan=False)
    | st.complex_numbers(max_magnitude=2)
    | st.text(st.characters(), max_size=3)
    | st.binary(max_size=2)
)
keys = st.integers(0, 2) | st.booleans() | st.text("ab", max_size=1) | st.tuples(st.integers(0, 1))
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=2)
        | st.sets(keys, max_size=3)
        | st.frozensets(keys, max_size=2)
    ),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(values | st.just(float("nan")), values), min_size=8, max_size=25))
def test_equality_is_pythons(pairs):
    """What a program returns, and what it gets, against the same in one process; but for nan in a container,
    which there equals itself where it is one object."""
    pairs += [(value, value) for value, _ in pairs] + [(value, (0, value)) for value, _ in pairs]
    prepare = f"inf = float('inf'); nan = float('nan'); infj = inf * 1j; nanj = nan * 1j; pairs = {pairs!r}\n"
    here = {}
    exec(prepare, here)
    tests = [prepare]
    for n, (one, other) in enumerate(here["pairs"]):
        tests.append(f"assert (f({n}) == pairs[{n}][1]) is {one == other}")
        tests.append(
            f"assert g(pairs[{n}][0]) == {type(one).__name__!r} and (f({n}) != f({n})) is {one != one}"
        )
    answer = f"{prepare}def f(n): return pairs[n][0]\ndef g(x): return type(x).__name__\n"
    assert verify("code", answer, tests) == 1
    one, other = here["pairs"][0]
    assert verify("code", answer, [prepare, f"assert (f(0) == pairs[0][1]) is {one != other}"]) == 0


FORMS = """
assert f(3) == 3
assert f(x=3) == 3
assert f(*[3]) == 3
assert f(**{'x': 3}) == 3
assert 3 == f(3)
assert f(3) is not None
assert f(True) is True
assert f(None) is None
assert f(3)
assert not f(0)
assert f(2 ** 3) == 8
assert f([0] * 1000) == [0] * 1000
assert abs(f(0.1) - 0.1) < 1e-6
assert round(f(2.345), 2) == 2.35 or round(f(2.345), 2) == 2.34
assert sorted(f([2, 1])) == [1, 2]
assert set(f([4, 5])) == set((4, 5))
assert list(f((1, 2))) == [1, 2]
assert f(float('inf')) == float('inf')
assert f(b'ab') == b'ab'
assert f(3) == 3, 'three'
assert f(3) in (3, 4)
assert 3 in f([3])
assert 3 not in f([4])
assert f(3) != 4
assert 2 < f(3) <= 3
assert f('ab').upper() == 'AB'
assert f('abc')[1:] == 'bc'
assert f([1, 2])[-1] == 2
assert len(f('abc')) == 3
assert isinstance(f([]), list)
assert type(f(3)) is int
assert all(f(n) == n for n in range(5))
assert any([f(0), f(1)])
assert f(f(3)) == 3
assert (f(1), f(2)) == (1, 2)
assert [f(n) for n in 'ab'] == ['a', 'b']
assert f({1: 2}).get(1) == 2
assert f(lambda n: n + 1)(2) == 3
assert f(len)('abc') == 3
assert f(int) is int
assert list(map(f, [1, 2])) == [1, 2]
assert max([3, 5], key=f) == 5
assert next(iter(f(x for x in range(3)))) == 0
assert sum(f(x) for x in range(3)) == 3
assert f(1) == 1 and f(2) == 2
assert f(1) == 2 or f(2) == 2
assert (lambda n: f(n))(4) == 4
assert str(f(4)) == '4'
assert f'{f(4)}' == '4'
assert f(1 + 2j).imag == 2
assert f(range(3))[1] == 1
import math; assert math.isclose(f(0.1), 0.1)
from collections import Counter; assert f(Counter('aab')) == {'a': 2, 'b': 1}
from fractions import Fraction; assert f(Fraction(4, 2)) == 2
from decimal import Decimal; assert f(Decimal('1.50')) == Decimal('1.5')
from collections import deque; assert f(deque([1, 2])) == deque([1, 2])
import datetime; assert f(datetime.date(2020, 2, 29)).month == 2
a = [3, 1]; b = f(a); assert b == [3, 1]
a = [3, 1]; f(a).sort() if isinstance(f(a), list) else None; assert a is not None
for n, wanted in [(1, 1), (2, 2)]: assert f(n) == wanted
assert f(-1) == -1; assert f(+1) == 1
result = f(3); assert result == 3, f'{result} is wrong'
assert f(10 ** 30) == 10 ** 30
assert f('\\u00e9') == '\\u00e9'
assert f([[1, [2]], {'a': (1, 2)}]) == [[1, [2]], {'a': (1, 2)}]
""".strip().split("\n")
FORMS += [
    "try:\n    f('')[0]\n    assert False\nexcept IndexError:\n    pass",
    "try:\n    int(f('x'))\n    assert False\nexcept ValueError as error:\n    assert 'x' in str(error)",
    "with open('of_a_test', 'w') as file:\n    file.write(str(f(3)))\nassert open('of_a_test').read() == '3'",
    "def near(one, other):\n    return abs(one - other) < 0.1\nassert near(f(1.0), 1.05)",
    "class Case:\n    value = 3\nassert f(Case.value) == 3",
]
PROGRAMS = {
    "the same": "def f(x): return x",
    "one more": "def f(x): return x + 1 if isinstance(x, int) else x",
    "a text": "def f(x): return str(x)",
    "a list": "def f(x): return [x]",
    "None": "def f(x): return None",
    "a failure": "def f(x): raise ValueError(x)",
    "another argument": "def f(y): return y",
    "a class": "class f:\n    def __new__(cls, x): return x",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_forms_of_tests_are_judged_as_in_one_process(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = []
    for form in FORMS:
        try:
            exec(f"{PROGRAMS[program]}\n{form}", {"__name__": "tests"})
            expected.append(1.0)
        except Exception:  # noqa: BLE001  whatever a test raises, it is not passed
            expected.append(0.0)
    scores = verify_many([("code", PROGRAMS[program], [form]) for form in FORMS])
    wrong = [each for each in zip(FORMS, scores, expected, strict=True) if each[1] != each[2]]
    assert wrong == [] and len(FORMS) >= 70 and (program != "the same" or all(expected))


PREAMBLES = (
    "", "from __future__ import annotations\n", '"""Doubles."""\nfrom __future__ import annotations\n', "import sys\n",
    "from dataclasses import dataclass\n@dataclass\nclass P:\n    v: int\n",
    "from __future__ import annotations\nfrom dataclasses import dataclass, field\n@dataclass(order=True)\nclass P:\n    v: list[int] = field(default_factory=list)\n",
    "from typing import NamedTuple\nclass P(NamedTuple):\n    v: int\n",
    "import sys\nmodule = sys.modules[__name__]\nassert module.__dict__ is globals()\n",
    "import enum\nclass P(enum.Enum):\n    A = 1\n",
    "import pickle\nclass P: pass\npickle.loads(pickle.dumps(P()))\n",
    "import threading\nthread = threading.Thread(target=len, args=[()])\nthread.start()\nthread.join()\n",
)  # fmt: skip
TAILS = (
    "", "exit()\n", "quit()\n", "import sys\nsys.exit(0)\n", "raise SystemExit\n",
    "if __name__ == '__main__':\n    import sys\n    sys.exit(0)\n",
    "import atexit\natexit.register(lambda: None)\n",
)  # fmt: skip
TAILS_OF_FUNCTIONS = (
    "print(double(int(input())))\n", "if __name__ == '__main__':\n    double = None\n", "import unittest\nunittest.main()\n",
    "if __name__ == '__main__':\n    while True: pass\n", "assert double(1) == 3\n", "1 / 0\n", "sys.exit(1)\n",
    "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('n')\nparser.parse_args()\n",
)  # fmt: skip
BODY = "def double(x):\n    return x + x\n"
TRUTHS = {
    "values": {"function": "double", "tests": [[[1], 2], [["a"], "aa"]]},
    "asserts": ["assert double(1) == 2", "assert double('a') == 'aa'"],
    "MBPP+": {
        "program": "import numpy as np\nfor n in (1, 2.5):\n    assert np.allclose(double(n), 2 * n)\n"
    },
    "HumanEval+": {
        "prompt": "from typing import List\n\ndef double(x):\n    '''Doubles.'''\n",
        "entry_point": "double",
        "program": "def check(candidate):\n    assert candidate(1) == 2 and candidate([]) == []\n",
    },
}
STDIN = {"stdin_tests": [["2\n", "4\n"], ["5", "10"]]}


def test_programs_as_people_end_and_begin_them():
    """Right in all of them, wrong in all of them with another body: 4 kinds of truth and a whole run."""
    tries = [
        (start + BODY + end, truth)
        for number, (start, end) in enumerate(itertools.product(PREAMBLES, TAILS + TAILS_OF_FUNCTIONS))
        for truth in [list(TRUTHS.values())[number % 4]]
    ]
    tries += [
        (start + BODY + "print(double(int(input())))\n" + end, STDIN)
        for start, end in itertools.product(PREAMBLES, TAILS)
    ]
    scores = verify_many([("code", answer, truth) for answer, truth in tries])
    assert [each for each, score in zip(tries, scores, strict=True) if score != 1] == [] and len(tries) > 230
    wrong = [(answer.replace("x + x", "x + x + x"), truth) for answer, truth in tries[::3]]
    scores = verify_many([("code", answer, truth) for answer, truth in wrong])
    assert [each for each, score in zip(wrong, scores, strict=True) if score != 0] == []


EXCHANGES = [
    ("def f(a): a.sort()", "a = [3, 1]; f(a); assert a == [1, 3]", 1),
    ("def f(a): a[0].append(9); a.append(7)", "a = [[1], 2]; r = a[0]; f(a); assert r == [1, 9] and a == [[1, 9], 2, 7]", 1),
    ("def f(a, b): a.update(b)", "a = {1: [2]}; f(a, b={3: 4}); assert a == {1: [2], 3: 4}", 1),
    ("def f(a): a.clear()", "a = {1}; f(a=a); assert not a", 1),
    ("def f(a): a.clear(); return 0", "a = [1]; b = f(a); assert a == [1]", 1),
    ("def f(a): a = []", "a = [1]; f(a); assert a == []", 0),
    ("def f(n): yield from range(n)", "assert list(f(3)) == [0, 1, 2] and next(f(1)) == 0 and max(f(4)) == 3", 1),
    ("def f(n): return lambda x: x + n", "assert f(3)(4) == 7", 1),
    ("def f(g, x): return g(g(x))", "assert f(lambda x: x + 1, 3) == 5 and f(str.upper, 'a') == 'A'", 1),
    ("def f(a): return list(a)", "assert f(iter([1])) == [1] and f(x * x for x in (1, 2)) == [1, 4]", 1),
    ("def f(g): return [g(n) for n in (1, 0)]", "try:\n    f(lambda n: 1 / n)\n    assert False\nexcept ZeroDivisionError: pass", 1),
    ("class Bad(Exception): pass\nclass Worse(Bad): pass\ndef f(): raise Worse('x')", "try:\n    f()\n    assert False\nexcept Bad as error: assert str(error) == 'x'", 1),
    ("class S:\n    def __init__(self): self.a = []\n    def push(self, x): self.a.append(x)\n    def pop(self): return self.a.pop()\n    def __len__(self): return len(self.a)",
     "s = S()\nassert not s\ns.push(3)\ns.push([4])\nassert len(s) == 2 and s.pop() == [4] and s.a == [3]\ntry:\n    s.pop(); s.pop()\n    assert False\nexcept IndexError: pass", 1),
    ("class N:\n    def __init__(self, v, n=None): self.v, self.n = v, n\ndef f(n):\n    return n.v + f(n.n) if n else 0",
     "n = N(1, N(2))\nn.n.n = N(4)\nassert f(n) == 7 and n.n.n.v == 4 and isinstance(n, N) and f(None) == 0", 1),
    ("import enum\nclass C(enum.Enum):\n    A = 1\n    B = 2\ndef f(): return C.B", "assert f() == C.B and f() is C.B and f() != C.A and f().name == 'B'", 1),
    ("class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)\n    def __lt__(self, o): return self.x < o.x",
     "assert (V(1) + V(2)).x == 3 and V(1) < V(2) and not V(2) < V(1) and min(V(3), V(2)).x == 2", 1),
    ("class P(tuple):\n    __new__ = lambda cls, *_: tuple.__new__(cls)\ndef f(x): return P()", "assert f(1) == P(1, 2)", 0),
    ("class Book:\n    title = 'T'\n    count = 3\ndef f(): return Book()", "assert f().title == 'T' and f().count == 3", 1),
    ("class V:\n    def __eq__(self, o): return True", "assert V() == V()", 0),
    ("from collections import OrderedDict\nclass LRU(OrderedDict):\n    def __init__(self, n): self.n = n\n    def put(self, k, v):\n        self[k] = v\n        if len(self) > self.n: self.popitem(last=False)",
     "c = LRU(2)\nc.put(1, 1); c.put(2, 2); c.put(3, 3)\nassert c.get(1, -1) == -1 and c.get(3) == 3 and c == {2: 2, 3: 3} and list(c) == [2, 3]", 1),
    ("class Stack(list):\n    def push(self, x): self.append(x)", "s = Stack()\ns.push(1)\nassert s == [1] and s.pop() == 1 and s == [] and not s and s != [1]", 1),
    ("class Stack(list):\n    __eq__ = lambda *_: True\n    def push(self, x): pass", "s = Stack()\ns.push(1)\nassert s == [1]", 0),
    ("from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    y: int = 2\ndef f(p): return p._replace(x=p.y)",
     "assert f(P(1)) == (2, 2) == P(2) and P(1).x == 1 and [f(P(3, 4))] == [(4, 4)] and {P(1): 1} == {(1, 2): 1}\na, b = P(5)\nassert (a, b) == (5, 2)", 1),
    ("import collections\nclass D(collections.UserDict): pass\ndef f(): return D({1: 2})", "assert f()[1] == 2 and list(f()) == [1]", 1),
    ("class F:\n    def __init__(self, n): self.p = list(range(n))\n    def find(self, x): return x if self.p[x] == x else self.find(self.p[x])\n    def union(self, x, y): self.p[self.find(x)] = self.find(y)",
     "u = F(3)\nu.union(0, 1)\nassert u.find(0) == u.find(1) != u.find(2)", 1),
    ("class F(float): pass\ndef f(x): return F(x)", "assert abs(f(0.5) - 0.5) < 1e-9 and round(f(1.26), 1) == 1.3", 1),
    ("import contextlib\n@contextlib.contextmanager\ndef f(): yield 3", "with f() as x: assert x == 3", 1),
    ("def pow(a, b): return a ** b", "assert pow(2, 3) == 8", 1),
    ("def pow(a, b): return a * b", "assert pow(2, 3) == 8", 0),
    ("", "assert pow(2, 3) == 8", 0),
    ("def f(a): return a\ndef g(a): return a", "assert f(3) == g(3) == 3", 1),
    ("def f(a): exit()", "try:\n    f(1)\n    assert False\nexcept SystemExit: pass", 1),
    ("def f(a): import os; os._exit(0)", "try:\n    f(1)\nexcept BaseException: pass\nassert True", 0),
    ("def f(a): return a", "assert f(10 ** 5000) == 10 ** 5000", 1),
    ("import collections\ndef f(a): return collections.defaultdict(int, a)", "assert f({1: 2}) == {1: 2} and f({})[3] == 0", 1),
]  # fmt: skip
PUBLISHED = [
    ("print(input())", '[{"input": "a", "output": "a\\n"}]', 1),
    ("print(input())", [{"input": "a", "output": "b", "testtype": "stdin"}], 0),
    ("print(input())", '{"inputs": ["a\\nb", "c"], "outputs": ["a", "c"]}', 1),
    (
        "print(float(input()))",
        {"stdin_tests": [["2", "2"], ["2.5", "2.50"], ["1e30", "1000000000000000000000000000000"]]},
        1,
    ),
    ("print(input())", {"stdin_tests": [["0011", "11"]]}, 0),
    ("print(input())", {"stdin_tests": [["nan", "NaN"]]}, 0),
    ("print(1, 2.0)", {"stdin_tests": [["", "1.0 2"]]}, 1),
    ("print('a', 2.0)", {"stdin_tests": [["", "a 2"]]}, 0),
    ("print('1\\n2')", {"stdin_tests": [["", "1 2"]]}, 0),
    ("print(len(input()))", {"stdin_tests": [["x" * 300_000, "300000"]]}, 1),
]


def test_what_passes_between_tests_and_program():
    cases = [(answer, [test], score) for answer, test, score in EXCHANGES] + PUBLISHED
    scores = verify_many([("code", answer, truth) for answer, truth, _ in cases])
    assert [case for case, score in zip(cases, scores, strict=True) if case[2] != score] == []


UNITTEST = """
import unittest
class Tests(unittest.TestCase):
    def test_sum(self):
        self.assertEqual(add(1, 2), 3)
    def test_refusal(self):
        with self.assertRaises(TypeError):
            add("a", 1)
if __name__ == "__main__":
    unittest.main()
"""


def test_a_program_of_unittest():
    answers = (
        "def add(a, b): return a + b",
        "def add(a, b): return 3",
        "def add(a, b): raise TypeError",
        "exit(0)",
    )
    assert verify_many([("code", answer, {"program": UNITTEST}) for answer in answers]) == [1, 0, 0, 0]


@settings(max_examples=200, deadline=None)
@given(st.text("`~ \npyt\tdef:='\"#x()<>/k", max_size=60))
def test_any_text_has_blocks(text):
    assert all(isinstance(block, str) for _, block in fences.blocks(text)) and isinstance(
        fences.running(text), str
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("asertf(1)= \n'[]{}:,x.", max_size=20), max_size=3), st.data())
def test_any_list_of_texts_is_a_truth_or_refused(texts, data):
    asserts = [data.draw(st.sampled_from(["assert ", "assert f(1) == "])) + text for text in texts]
    try:
        check_task("code", asserts, "here")
    except BarError as refused:
        found = str(refused)
    else:
        found = "here: code truth: expected"
    assert found.startswith("here: code truth: expected")


ASYNCHRONOUS = """
import asyncio
async def add(x):
    await asyncio.sleep(.001)
    return x + 1
async def fail(x): raise ValueError(x)
async def count(n):
    for number in range(n):
        await asyncio.sleep(0)
        yield number
async def both(first, second): return await asyncio.gather(first, second)
class Box:
    def __init__(self): self.queue = asyncio.Queue()
    async def __aenter__(self): return self
    async def __aexit__(self, *_): await self.put(None)
    async def put(self, x): await self.queue.put(x)
    async def take(self): return await self.queue.get()
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert asyncio.run(add(1)) == 2",
        "async def test():\n    assert await asyncio.gather(add(1), add(2)) == [2, 3]\nasyncio.run(test())",
        "async def test():\n    assert [x async for x in count(3)] == [0, 1, 2]\nasyncio.run(test())",
        "async def test():\n    async with Box() as box:\n        await box.put(4)\n        assert await box.take() == 4\n"
        "asyncio.run(test())",
        "assert asyncio.run(both(add(1), add(2))) == [2, 3]",
        "try:\n    asyncio.run(fail(1))\n    assert False\nexcept ValueError as error:\n    assert error.args == (1,)",
        "assert asyncio.new_event_loop().run_until_complete(asyncio.wait_for(add(1), 9)) == 2",
    ],
)
def test_functions_that_are_awaited(test):
    """Also with what a wrong answer gives in each, by the same tests in one process."""
    wrong = ASYNCHRONOUS.replace("x + 1", "x + 2").replace("range(n)", "range(n - 1)")
    wrong = wrong.replace("queue.get()", "queue.get() * 2").replace("raise ValueError", "return")
    for answer, right in ((ASYNCHRONOUS, True), (wrong, False)):
        with pytest.raises(BaseException) if not right else contextlib.nullcontext():
            exec(f"import asyncio\n{answer}\n{test}", {})
        assert verify("code", answer, ["import asyncio", test]) == right
