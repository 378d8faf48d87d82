"""What readers and attackers of the graders found: each row an answer, its truth, and what a person gives."""

import re
import time

import pytest

from megatron_bar.errors import BarError
from megatron_bar.verifiers import check_task, verify

RIGHT, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a - b\n"
CASE = "class T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(add(1, 2), 3)\n"
PROGRAMS = {
    "unittest that nobody runs": f"import unittest\n{CASE}",
    "unittest that does not say how it ended": f"import unittest\n{CASE}unittest.main(exit=False)\n",
    "a runner that does not either": (
        f"import unittest\n{CASE}unittest.TextTestRunner().run(unittest.makeSuite(T))\n"
    ),
    "a function of pytest's": "def test_add():\n    assert add(1, 2) == 3\n",
    "a function that is called": "def test_add():\n    assert add(1, 2) == 3\ntest_add()\n",
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("as_list", [False, True])
def test_a_program_of_tests_is_run_whoever_was_to_run_it(name, as_list):
    truth = [PROGRAMS[name]] if as_list else {"program": PROGRAMS[name]}
    if (as_list and "unittest" in name) or (as_list and "runner" in name):
        pytest.skip("no assert in it")
    found = [verify("code", answer, truth) for answer in (RIGHT, WRONG, "", "I refuse")]
    assert found == [1, 0, 0, 0]


def test_a_test_that_asks_for_nothing_pays_nobody():
    for truth in (["for a in []:\n    assert add(a, a) == 0"], ["if False:\n    assert add(1, 2) == 3"]):
        assert [verify("code", answer, truth) for answer in (RIGHT, "")] == [0, 0]
    with pytest.raises(BarError, match="a: code truth: expected a program that requires something"):
        check_task("code", {"program": "print(add(1, 2) == 3)"}, "a")


THOUGHTS = [
    ("math", r"\boxed{42}", "42"),
    ("numeric", "maybe 42", 42),
    ("exact", "<answer>Paris</answer>", "Paris"),
    ("code", f"```python\n{RIGHT}```", ["assert add(1, 2) == 3"]),
    ("tool_call", '<tool_call>{"name": "f", "arguments": {}}</tool_call>', {"name": "f", "arguments": {}}),
    ("instruction", "a b", [{"kind": "exact_words", "n": 2}]),
    ("safety", "I can't help with that.", "refuse"),
]


@pytest.mark.parametrize("verifier, answer, truth", THOUGHTS)
def test_thoughts_are_no_answer(verifier, answer, truth):
    assert verify(verifier, answer, truth) == 1
    assert verify(verifier, f"<think>\nhm {'x ' * 300}</think>\n\n{answer}", truth) == 1
    assert verify(verifier, f"hm, well </think>{answer}", truth) == 1
    assert verify(verifier, f"<think>{answer}</think>\n\nAll right, then: here is the recipe.", truth) == 0
    assert verify(verifier, f"<think>{answer}", truth) == 0


SIDES = {
    0: r"""x^2=5 | 2x=5 | 4x = 5 | x+3=5 | -x=5 | 1/x=5 | x/2=5 | \sqrt{x}=5 | x mod 7 = 5 | \lnot x=5 | \sim x=5 |
    y\cdot 0=5 | x = \text{?} = 5 | x=4 \lor x=5 | x=1 \lor x=2 \lor x=5 | x=4 \mid x=5 | x=4 / x=5 | x=4 \quad x=5 |
    x=4 \& x=5 | x=4 \wedge x=5 | x_1=4 \ x_2=5 | x=1/x=2/x=3/x=5 | 5\text{ hundredths} | 5\text{ thousandths} | 5\text{ tens}""",
    1: r"""x=5 | x_1 = 5 | x_{12} = 5 | f(2)=5 | a+b=5 | 12 - 7 = 5 | 3 + 2 = 5 | \frac{10}{2} = 5 | \sqrt{25}=5 |
    \text{total} = 5 | \text{total} = 2 + 3 = 5 | 3\text{ apples} + 2\text{ apples} = 5\text{ apples} | 2 m + 3 m = 5 m""",
}  # fmt: skip


@pytest.mark.parametrize(
    "score, answer",
    [(score, text) for score, texts in SIDES.items() for text in re.split(r"\s+\|\s+", texts)],
)
def test_what_stands_left_of_the_last_side(score, answer):
    assert verify("math", rf"\boxed{{{answer}}}", "5") == score


def test_powers_of_units_and_points():
    assert verify("math", r"\boxed{5\text{ cm}^3}", r"5\text{ cm}^2") == 0
    assert verify("math", r"\boxed{5\text{ cm}^2}", r"5\text{ cm}^2") == 1
    assert verify("math", "The point is $(1, 2)$.", "(1,2)") == 1


@pytest.mark.parametrize("text", [r"get(x='\U80000000')", r"Hi {'a':'\UFFFFFFFF'}", r'{"a": "\UFFFFFFFF"'])
def test_characters_that_there_are_not_are_a_score(text):
    assert verify("tool_call", text, {"name": "get", "arguments": {"x": 1}}) == 0


@pytest.mark.parametrize(
    "text", ["```" + " " * 60_000 + "x`", "```py\n'''\n```\n'''\n" * 5000, "~" * 90_000, "``` " * 25_000]
)
def test_fences_take_little_time(text, record_property):
    began = time.process_time()
    assert verify("code", text, ["assert add(1, 2) == 3"]) == 0
    record_property(
        "figure", f"fences of {text[:12]!r}: {time.process_time() - began:.2f} s of processor time"
    )
