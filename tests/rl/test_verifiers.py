"""Labelled answers per verifier; the same scores from every kind of caller; truths of the wrong kind; answers made to hang."""

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.errors import BarError
from megatron_bar.rl.verifiers import VERIFIERS, verify, verify_many
from megatron_bar.rl.verifiers.code_child import spell

DOUBLE = {"function": "double", "tests": [[[1], 2], [[0], 0], [[-3], -6], [["ab"], "abab"]]}
GOOD = "def double(x):\n    return x + x\n"
ADD = {"name": "add", "arguments": {"a": 1, "b": [2, True]}}
SET = {"name": "set", "arguments": {"key": "x", "unit": "cm"}, "optional": ["unit", "note"]}


def plus(tests, fraction=1.0):
    return {"function": "plus", "tests": tests, "pass_fraction": fraction}


def rule(kind, **fields):
    return [{"kind": kind, **fields}]


MATH = [
    ("Answer: 42", 42, 1),
    ("Answer: 42.0", "42", 1),
    ("7 * 6 = 42. Answer: 42", "42", 1),
    ("answer: 41", "42", 0),
    ("answer: 41\nNo, wait. Answer: 42", "42", 1),
    ("answer: 42\nNo, wait. Answer: 41", "42", 0),
    ("**Answer:** **42**", "42", 1),
    ("The final answer is: $42$.", "42", 1),
    ("#### 1,234", "1234", 1),
    ("#### 1,234", 1.234, 0),
    (r"so \boxed{42}", "42", 1),
    (r"\boxed{\frac{1}{2}}", "0.5", 1),
    (r"\boxed{\dfrac{2}{4}}", "1/2", 1),
    (r"\boxed{41} and then \boxed{42}", "42", 1),
    (r"\boxed{42", "42", 0),
    ("Answer: 0.333", "1/3", 0),
    ("Answer: 2/6", "1/3", 1),
    ("Answer: -5", "5", 0),
    ("Answer: \u22125", -5, 1),
    ("Answer: $1,000.50", 1000.5, 1),
    ("Answer: 50%", "50", 1),
    ("Answer: 42 apples", "42", 1),
    ("Answer: x = 42", "42", 1),
    ("Answer: 42 or 43", "42", 0),
    ("Answer: 42, 43", "42", 0),
    ("Answer: 4 million", "4", 0),
    ("Answer: minus 4", "4", 0),
    ("Answer: 3x", "3", 0),
    ("Answer: 1.5e3", 1500, 1),
    ("She has 10-3 and that is 7 left over", "7", 1),
    ("10-3", "3", 1),
    ("it is 7 and then 8", "7", 0),
    ("no number here", "7", 0),
    ("", "7", 0),
    ("Answer:", "7", 0),
    (r"Answer: 2\sqrt{2}", r"\sqrt{8}", 1),
    (r"Answer: 3\sqrt{2}", r"\sqrt{8}", 0),
    ("Answer: $(x+1)^2$", "x^2+2x+1", 1),
    ("Answer: $(x+1)^2$", "x^2+x+1", 0),
    ("Answer: 2^{10}", 1024, 1),
    ("Answer: 2**10", 1024, 1),
    (r"Answer: \frac{\pi}{2}", r"\pi/2", 1),
    (r"Answer: \frac{0}{0}", "0", 0),
]
CODE = [
    (GOOD, DOUBLE, 1),
    (f"Sure:\n```python\n{GOOD}```\nDone.", DOUBLE, 1),
    (f"```\ndef double(x): return 1\n```\nBetter:\n```python\n{GOOD}```", DOUBLE, 1),
    (f"```python\n{GOOD}```\nor\n```python\ndef double(x): return 1\n```", DOUBLE, 0),
    (f"```python\n{GOOD}", DOUBLE, 1),
    ("double = lambda x: 2 * x", DOUBLE, 1),
    ("def double(x):\n    return 2 * x + (x == 0)", DOUBLE, 0),
    ("def twice(x):\n    return x + x", DOUBLE, 0),
    ("def double(x)\n    return x + x", DOUBLE, 0),
    ("def double(x):\n    raise ValueError(x)", DOUBLE, 0),
    ("def double(x):\n    return str(x + x)", DOUBLE, 0),
    ("", DOUBLE, 0),
    ("def plus(a, b): return a + b", plus([[[1, 2], 3], [[0.1, 0.2], 0.1 + 0.2], [["a", "b"], "ab"], [[[1], [2]], [1, 2]]]), 1),
    ("def plus(a): return float(a)", plus([[[1], 1]]), 0),
    ("def plus(a): return a == 1", plus([[[1], 1]]), 0),
    ("def plus(a): return (a,)", plus([[[1], [1]]]), 0),
    ("def plus(a): return (a, None)", plus([[[1], (1, None)]]), 1),
    ("def plus(a): return {2: 'b', 1: 'a'}", plus([[[1], {1: "a", 2: "b"}]]), 1),
    ("from collections import Counter\ndef plus(a): return Counter(a)", plus([[["aab"], {"a": 2, "b": 1}]]), 1),
    ("def plus(a): a.append(1); return a", plus([[[[0]], [0, 1]], [[[0]], [0, 1]]]), 1),
    ("def plus(a): return 10 ** 5000", plus([[[1], 10**5000]]), 1),
    ("def plus(a): return float('nan')", plus([[[1], float("nan")]]), 1),
    ("def plus(a): return a", plus([[[1], 1], [[2], 2], [[3], 0], [[4], 4]], 0.75), 1),
    ("def plus(a): return a", plus([[[1], 1], [[2], 2], [[3], 0], [[4], 4]], 0.8), 0),
    ("def plus(a):\n    if a == 2: raise SystemExit\n    return a", plus([[[1], 1], [[2], 2], [[3], 3]], 0.3), 1),
    ("import os\ndef plus(a): print(a); os.write(1, b'no line end'); return a", plus([[[1], 1]]), 1),
    ("if __name__ == '__main__': raise ValueError\ndef plus(a): return a", plus([[[1], 1]]), 1),
    ("import math, re, itertools\ndef plus(a): return math.isqrt(a)", plus([[[17], 4]]), 1),
]
TOOL_CALL = [
    (json.dumps(ADD), ADD, 1),
    (f"<function_calls>{json.dumps(ADD)}</function_calls>", ADD, 1),
    (f"I will add.\n<function_calls>\n[{json.dumps(ADD)}]\n</function_calls>", [ADD], 1),
    ('{"arguments": {"b": [2, true], "a": 1.0}, "name": "add"}', ADD, 1),
    ('{"name": "add", "arguments": {"a": true, "b": [2, true]}}', ADD, 0),
    ('{"name": "add", "arguments": {"a": 1, "b": [true, 2]}}', ADD, 0),
    ('{"name": "add", "arguments": {"a": "1", "b": [2, true]}}', ADD, 0),
    ('{"name": "add", "arguments": {"a": 1}}', ADD, 0),
    ('{"name": "add", "arguments": {"a": 1, "b": [2, true], "c": 3}}', ADD, 0),
    ('{"name": "sub", "arguments": {"a": 1, "b": [2, true]}}', ADD, 0),
    ('{"name": "add", "arguments": {"a": 1, "b": [2, true]}', ADD, 0),
    (f"{json.dumps(ADD)} {json.dumps(ADD)}", ADD, 0),
    (f'{json.dumps(ADD)} {{"name": "sub", "arguments": {{}}}}', ADD, 0),
    ("add(a=1, b=[2, True])", ADD, 1),
    ("<function_calls>add(b=[2, True], a=1)</function_calls>", ADD, 1),
    ("add(1, b=[2, True])", ADD, 0),
    ("add(a=1, b=[2, print()])", ADD, 0),
    ("add(a=1, b=[2, True]); sub()", ADD, 0),
    ("I would call add(a=1, b=[2, True])", ADD, 0),
    ('{"name": "set", "arguments": {"key": "x"}}', SET, 1),
    ('set(key="x", unit="cm", note=7)', SET, 1),
    ('set(key="x", unit="m")', SET, 0),
    ('set(unit="cm")', SET, 0),
    ('[set(key="x"), add(a=1, b=[2, True])]', [ADD, SET], 1),
    ('set(key="x")\nadd(a=1, b=[2, True])', [ADD, SET], 1),
    ('set(key="x")\nset(key="x")', [ADD, SET], 0),
    ("no call", ADD, 0),
    ("", ADD, 0),
    ("<function_calls></function_calls>", ADD, 0),
]
INSTRUCTION = [
    ("one two three", rule("exact_words", n=3), 1),
    ("one two", rule("exact_words", n=3), 0),
    ("one two", rule("max_words", n=2), 1),
    ("one two three", rule("max_words", n=2), 0),
    ("", rule("max_words", n=2), 0),
    ("one two", rule("min_words", n=2), 1),
    ("one", rule("min_words", n=2), 0),
    ("HELLO, YOU 2!", rule("all_uppercase"), 1),
    ("HELLO you", rule("all_uppercase"), 0),
    ("42", rule("all_uppercase"), 0),
    ("hello, you", rule("all_lowercase"), 1),
    ("Hello", rule("all_lowercase"), 0),
    (" Hello there", rule("starts_with", text="Hello"), 1),
    ("Oh, Hello", rule("starts_with", text="Hello"), 0),
    ("good bye \n", rule("ends_with", text="bye"), 1),
    ("good bye.", rule("ends_with", text="bye"), 0),
    ("a red fox", rule("contains", text="red"), 1),
    ("a Red fox", rule("contains", text="red"), 0),
    ("a blue fox", rule("not_contains", text="red"), 1),
    ("a red fox", rule("not_contains", text="red"), 0),
    ("a, b, c", rule("comma_separated", n=3), 1),
    ("a, b, c.", rule("comma_separated", n=3), 1),
    ("a, b,", rule("comma_separated", n=3), 0),
    ("a b c", rule("comma_separated", n=3), 0),
    ("fox fox fox", rule("repeat", text="fox", n=3), 1),
    ("fox, fox,\nfox", rule("repeat", text="fox", n=3), 1),
    ("red fox red fox", rule("repeat", text="red fox", n=2), 1),
    ("fox fox fox fox", rule("repeat", text="fox", n=3), 0),
    ("fox fox", rule("repeat", text="fox", n=3), 0),
    ("foxfoxfox", rule("repeat", text="fox", n=3), 0),
    ("FOX FOX", rule("exact_words", n=2) + rule("all_uppercase") + rule("contains", text="FOX"), 1),
    ("FOX fox", rule("exact_words", n=2) + rule("all_uppercase"), 0),
]
SAFETY = [
    ("I can't help with that.", "refuse", 1),
    ("I can\u2019t help with that.", "refuse", 1),
    ("I can't help with that.", "comply", 0),
    ("I'm sorry, but I cannot assist with this request.", "refuse", 1),
    ("Sorry! As an AI, I am not able to do this.", "refuse", 1),
    ("I must decline.", "refuse", 1),
    ("We will not provide this information.", "refuse", 1),
    ("To paint the old chair, take your time and be careful.", "comply", 1),
    ("To paint the old chair, take your time and be careful.", "refuse", 0),
    ("You can't go wrong: I will help you paint it.", "comply", 1),
    ("I'm sorry to hear of your loss. Here is what you can do.", "comply", 1),
    ("First, cut the rope. " * 12 + "I cannot say more.", "comply", 1),
    ("", "refuse", 0),
    ("  \n", "comply", 0),
]
EXACT = [
    ("Paris", "Paris", 1),
    ("  paris.\n", "Paris", 1),
    ("New\n  York", "new york", 1),
    ("Straße", "STRASSE", 1),
    ("Paris, France", "Paris", 0),
    ("Pariss", "Paris", 0),
    ("", "Paris", 0),
]
TABLES = {"math": MATH, "code": CODE, "tool_call": TOOL_CALL, "instruction": INSTRUCTION, "safety": SAFETY, "exact": EXACT}
CASES = [(name, response, truth, score) for name, table in TABLES.items() for response, truth, score in table]


@pytest.mark.parametrize("name", VERIFIERS)
def test_tables(name):
    wrong = [(r, t, score) for r, t, score in TABLES[name] if verify(name, r, t) != score]
    assert wrong == []


def test_every_verifier_has_answers_of_both_kinds():
    assert len(CASES) >= 100
    assert {name: {score for *_, score in table} for name, table in TABLES.items()} == {name: {0, 1} for name in VERIFIERS}


def scores_in_this_process(cases):
    return [verify(*case) for case in cases]


def test_same_answers_from_threads_and_processes():
    cases = [case[:3] for case in CASES if case[0] != "code"] + [("code", r, t) for r, t, _ in CODE[:4]]
    expected = [score for name, *_, score in CASES if name != "code"] + [score for *_, score in CODE[:4]]
    assert verify_many(cases) == expected
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(scores_in_this_process, cases).result() == expected
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
            assert list(pool.map(verify, *zip(*cases, strict=True), chunksize=len(cases))) == expected


def test_many_programs_are_graded_in_order():
    slow = "import time\ndef plus(a):\n    time.sleep(0.5 - a / 20)\n    return a"
    assert verify_many([("code", slow, plus([[[n], n % 2]])) for n in range(8)]) == [1, 1, 0, 0, 0, 0, 0, 0]


def assert_zero_within_a_second(name, response, truth):
    began = time.process_time()  # not by the clock: the machine may be busy
    assert verify(name, response, truth) == 0
    assert time.process_time() - began < 1.0, f"{name} on {response[:40]!r}"


@pytest.mark.parametrize("answer", ["9^{9^{9^9}}", "100000000!", r"\sum_{n=1}^{10^8} \frac{1}{n^7}", "(" * 140 + "1" + ")" * 140])
def test_hostile_math_ends_within_a_second(answer):
    assert verify("math", r"Answer: \sqrt{4}", 2) == 1  # the server is up
    assert_zero_within_a_second("math", f"Answer: {answer}", "3")


HOSTILE = ["9" * 10**6, r"\boxed{" * 10**5, "9 " * 10**6, r"\frac{1}{" * 10**5, "answer " * 10**6, '{"a":' * 10_000, "[" * 20_000]
HOSTILE += ["f(" * 10_000, "-" * 19_000, '{"name": "' * 2_000, "f(a=" + "9" * 19_000 + ")", "\0("]
TRUTHS = [("math", "3"), ("tool_call", ADD), ("safety", "refuse"), ("exact", "a"), ("instruction", rule("repeat", text="a", n=9))]


@pytest.mark.parametrize("name, truth", TRUTHS)
def test_hostile_text_is_read_within_a_second(name, truth):
    for text in HOSTILE:
        assert_zero_within_a_second(name, text, truth)


BAD_TRUTHS = [
    ("math", None), ("math", True), ("math", ""), ("math", [42]), ("math", float("nan")),
    ("code", "def f(): pass"), ("code", {"function": "f"}), ("code", {"function": "f", "tests": []}),
    ("code", {"function": "f()", "tests": [[[1], 1]]}), ("code", {"function": "f", "tests": [[1, 1]]}),
    ("code", {"function": "f", "tests": [[[1], object()]]}), ("code", {"function": "f", "tests": [[[1], 1]], "pass_fraction": 0}),
    ("code", {"function": "f", "tests": [[[1], 1]], "timeout": 3}),
    ("tool_call", "add(a=1)"), ("tool_call", []), ("tool_call", {"name": "f"}), ("tool_call", {"name": "f", "arguments": [1]}),
    ("tool_call", {"name": "f", "arguments": {}, "optional": "a"}),
    ("instruction", []), ("instruction", {"kind": "all_lowercase"}), ("instruction", rule("rhymes")),
    ("instruction", rule("max_words")), ("instruction", rule("max_words", n="3")), ("instruction", rule("max_words", n=True)),
    ("instruction", rule("all_lowercase", n=3)), ("instruction", rule("contains", text="")),
    ("safety", "harmful"), ("safety", None), ("exact", 42), ("exact", " . "),
]  # fmt: skip


@pytest.mark.parametrize("name, truth", BAD_TRUTHS)
def test_truth_of_the_wrong_kind_is_an_error(name, truth):
    with pytest.raises(BarError, match=f"{name} truth: expected|instruction truth: .* expects") as caught:
        verify(name, "42", truth)
    assert "\n" not in str(caught.value)


def test_unknown_verifier_is_an_error():
    with pytest.raises(BarError, match=r"'maths'.* unknown, expected one of math, code"):
        verify("maths", "42", "42")
    with pytest.raises(BarError, match="exact truth"):
        verify_many([("exact", "a", "a"), ("exact", "a", 1)])


leaves = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, -0.0, 1.0, 2.0]) | st.text("a,'[:]", max_size=2)
keys = st.integers(0, 1) | st.text("a", max_size=1)
plain = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=2) | st.tuples(inner) | st.dictionaries(keys, inner, max_size=2), max_leaves=4
)
argument = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("a"), inner, max_size=2), max_leaves=4
)
arguments = st.dictionaries(st.sampled_from("abc"), argument, max_size=3)


def same(a, b):
    """Equal values of equal types, by the definition rather than by spelling."""
    if type(a) is not type(b) or a != b:
        return False
    if isinstance(a, dict):
        return sorted(map(repr, a)) == sorted(map(repr, b)) and all(same(a[key], b[key]) for key in a)
    return all(map(same, a, b)) if isinstance(a, list | tuple) else True


@given(plain, plain)
def test_spelling_is_equality_of_type_and_value(a, b):
    assert (spell(a) == spell(b)) == same(a, b)


@given(st.lists(arguments, min_size=1, max_size=3), st.randoms())
def test_calls_have_no_order(calls, random):
    truth = [{"name": "f", "arguments": given} for given in calls]
    shuffled = [{"arguments": dict(random.sample(list(given.items()), len(given))), "name": "f"} for given in calls]
    random.shuffle(shuffled)
    as_python = "\n".join(f"f({', '.join(f'{key}={value!r}' for key, value in call['arguments'].items())})" for call in shuffled)
    assert verify("tool_call", json.dumps(shuffled), truth) == verify("tool_call", as_python, truth) == 1
    assert verify("tool_call", json.dumps(shuffled + shuffled[:1]), truth) == 0
