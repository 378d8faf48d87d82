"""HumanEval+ and MBPP+ items against known answers, in the sandbox; the stand-in for numpy against numpy."""

import json

import numpy
import pytest

from megatron_bar.evaluation.benchmarks.programs import humaneval_plus, mbpp_plus

ADD = {
    "prompt": 'from typing import List\n\ndef add(values: List[int]) -> int:\n    """The sum of the '
    'values."""\n',
    "entry_point": "add",
    "test": "import numpy as np\n\ndef check(candidate):\n    for values in ([], [1], [1, 2, 3]):\n"
    "        assert np.allclose(candidate(values), sum(values), rtol=1e-07, atol=1e-06)\n",
}
RIGHT = "```python\ndef add(values: List[int]) -> int:\n    return sum(values)\n```"
HOSTILE = {
    "an early exit": "import sys\nprint('passed')\nsys.exit(0)",
    "an early exit behind the interpreter": "import os\nos._exit(0)",
    "a wrong sum": "def add(values):\n    return sum(values) + 1",
    "no program": "I do not know.",
    "a syntax error": "def add(values:",
    "a print of what the tests might print": "def add(values):\n    return 0\nprint('\\n' * 9, 'a' * 32)",
}


def test_a_right_answer_passes_with_the_prompts_imports():
    assert humaneval_plus(ADD, RIGHT) and humaneval_plus(ADD, f"Here it is.\n{RIGHT}\nIt adds.")
    doc = {"test": "assert double(2) == 4\nassert double('a') == 'aa'"}
    assert mbpp_plus(doc, "```python\ndef double(x):\n    return 2 * x\n```") and not mbpp_plus(
        doc, "def double(x): return 4"
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_other_answers_do_not_pass(name):
    assert not humaneval_plus(ADD, HOSTILE[name])


def test_numpy_is_stood_in_for():
    values = (
        0,
        1,
        1.0 + 1e-7,
        2.5,
        -3.0,
        float("inf"),
        [1.0, 2.0],
        [1.0, 2.0 + 1e-7],
        (1.0, 2.0),
        [1.0, 1.0],
        True,
        1j,
    )
    pairs = [
        (a, b)
        for a in values
        for b in values
        if numpy.shape(a) == numpy.shape(b) or 0 in (numpy.ndim(a), numpy.ndim(b))
    ]
    expected = [bool(numpy.allclose(a, b, rtol=1e-7, atol=1e-6)) for a, b in pairs]
    tests = (
        f"import numpy as np\nimport json\ninf = float('inf')\nfound = [np.allclose(a, b, rtol=1e-7, atol=1e-6) "
        f"for a, b in {pairs!r}]\nassert done() and found == json.loads({json.dumps(expected)!r}), found"
    )
    assert mbpp_plus({"test": tests}, "def done(): return True")
    assert len(pairs) > 90 and 20 < sum(expected) < len(pairs) - 20
