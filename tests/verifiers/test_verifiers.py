"""Labelled answers per verifier; the same scores from every kind of caller; truths of the wrong kind; answers
made to hang."""

import importlib.util
import json
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verifier_cases import ADD, CASES, CODE, SUM, TABLES, plus, puzzle, rule

from megatron_bar.errors import BarError
from megatron_bar.verifiers import VERIFIERS, check_task, reasoning_gym, verify, verify_many
from megatron_bar.verifiers.constraints import CONSTRAINTS
from megatron_bar.verifiers.instruction import NAMES
from megatron_bar.verifiers.sandbox import fork_server
from megatron_bar.verifiers.sandbox.wire import spell

HAS_GYM = importlib.util.find_spec("reasoning_gym") is not None


@pytest.mark.parametrize("name", TABLES)
def test_tables(name):
    wrong = [(r, t, score) for r, t, score in TABLES[name] if verify(name, r, t) != score]
    assert wrong == []


def test_every_verifier_has_answers_of_both_kinds():
    assert len(CASES) >= 300
    both = {name: {0, 1} for name in VERIFIERS if name != "reasoning_gym" or HAS_GYM}
    assert {name: {score for *_, score in table} for name, table in TABLES.items()} == both


def test_every_constraint_has_answers_of_both_kinds():
    seen = {
        kind: {score for _, truth, score in TABLES["instruction"] if truth[0]["kind"] == kind}
        for kind in NAMES
    }
    assert len(CONSTRAINTS) >= 25
    assert len(NAMES) == len(CONSTRAINTS) + 25 + 29
    assert seen == {kind: {0, 1} for kind in NAMES}


def scores_in_this_process(cases):
    return [verify(*case) for case in cases]


def test_same_answers_from_threads_and_processes():
    """The main thread's are in test_tables; verify_many works in threads. A spawned process imports all anew,
    so it gets fewer: none of the puzzles, whose package takes seconds to load."""
    labelled = [case for case in CASES if case[0] != "code"] + [("code", *case) for case in CODE[:4]]
    cases, expected = [case[:3] for case in labelled], [score for *_, score in labelled]
    assert verify_many(cases) == expected
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(scores_in_this_process, cases).result() == expected
    fewer = [case for case in labelled if case[0] != "reasoning_gym"][::4]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        scores = pool.submit(scores_in_this_process, [case[:3] for case in fewer]).result()
    assert scores == [score for *_, score in fewer]


def test_many_programs_are_graded_in_order():
    slow = "import time\ndef plus(a):\n    time.sleep(0.5 - a / 20)\n    return a"
    assert verify_many([("code", slow, plus([[[n], n % 2]])) for n in range(8)]) == [1, 1, 0, 0, 0, 0, 0, 0]


def processor_time() -> float:
    """Of this process and of its servers with their forks; not by the clock: the machine may be busy."""
    total = time.process_time()
    for module in ("math_child", "gym_child") if HAS_GYM else ("math_child",):
        fields = (
            Path(f"/proc/{fork_server.server(module).child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        )
        total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


def assert_zero_within_a_second(name, response, truth):
    began = processor_time()
    assert verify(name, response, truth) == 0
    assert processor_time() - began < 1.0, f"{name} on {response[:40]!r} for {truth!r:.60}"


@pytest.fixture
def started():
    assert verify("math", r"Answer: 2\sqrt{4}", r"\sqrt{16}") == 1
    if HAS_GYM:
        assert verify("reasoning_gym", "42", SUM) == 1


HOSTILE_MATH = [
    "9^{9^{9^9}}",
    "100000000!",
    r"\sum_{n=1}^{10^8} \frac{1}{n^7}",
    "(" * 140 + "1" + ")" * 140,
    "{" * 140 + "}" * 140,
]
HOSTILE_MATH += [
    "(x+1)^{9999}",
    "x^" * 100 + "2",
    "9" * 59 + "^{9999}x",
    r"\sin " * 50 + "x",
    "+".join(["(x+1)^{99}"] * 20),
    "(((x+y)^9)^9)^9",
]
HOSTILE_MATH += [
    "(((x+1)^{999})^{999})^{999}",
    "99^{999}" * 30,
    r"\sin(10^{999})",
    r"\pi^{-9999}",
    ",".join(f"x^{{{n}}}" for n in range(10, 60)),
    r"1\pm 2," * 30,
    r"\frac{1}{1+" * 24 + "x" + "}" * 24,
    r"\begin{pmatrix}" * 10,
    r"x \le " * 40 + "x",
    r"0.\overline{" + "9" * 270 + "}",
    "10^{999}",
]


@pytest.mark.parametrize("answer", HOSTILE_MATH)
@pytest.mark.usefixtures("started")
def test_hostile_math_ends_within_a_second(answer):
    for truth in ("3", "2x+2", r"2\sqrt{3}"):
        assert_zero_within_a_second("math", f"Answer: {answer}", truth)


@pytest.mark.usefixtures("started")
def test_brackets_do_not_hold_the_server():
    began = processor_time()
    assert verify_many([("math", rf"\boxed{{{'{' * 140}{'}' * 140}}}", "x")] * 200) == [0.0] * 200
    assert processor_time() - began < 1.0


@pytest.mark.parametrize(
    "body", ["while True: pass", "return [0] * 10**12", "return 10**10**9", "return plus(a)"]
)
def test_hostile_programs_end_within_a_second(body):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert verify("code", f"def plus(a): {body}", plus([[[n], n] for n in range(5)])) == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.2
    )  # the interpreter's start included


HOSTILE = [
    "9" * 10**6,
    r"\boxed{" * 10**5,
    "9 " * 10**6,
    r"\frac{1}{" * 10**5,
    "answer " * 10**6,
    '{"a":' * 10_000,
    "[" * 20_000,
]
HOSTILE += [
    "f(" * 10_000,
    "-" * 19_000,
    '{"name": "' * 2_000,
    "f(a=" + "9" * 19_000 + ")",
    "\0(",
    "#### " * 10**5,
    "1,000" * 4_000,
]
HOSTILE += [
    "<answer>" * 10**5,
    "=" * 20_000,
    "\ufdfa" * 10**6,
    "5" + "\u0301" * 49_901,
    "*" * 10**5,
    "\n" * 10**5,
    r"\boxed{1}," * 10**4,
    r"\boxed{1}" + "and " * 5_000 + r"\boxed{2}",
    "answer is " * 10**5,
    "answer (" * 10**4,
    r"Answer: \[" + "x" * 20_000,
    "sorry " * 10**5,
    "<function_calls>" * 1_000,
    "f(x=" + "-" * 5_000 + "1)",
    "a" + "\u0301\u0327" * 24_950,
    "a\u0315\u0300\u05ae\u0301b" * 10_000,
]
TRUTHS = [
    ("math", "3"),
    ("math", "2x+2"),
    ("numeric", 3),
    ("tool_call", ADD),
    ("safety", "refuse"),
    ("exact", "a"),
]
TRUTHS += [("instruction", rule("repeat", text="a", n=9))] + ([("reasoning_gym", SUM)] if HAS_GYM else [])


@pytest.mark.parametrize("name, truth", TRUTHS)
@pytest.mark.usefixtures("started")
def test_hostile_text_is_read_within_a_second(name, truth):
    for text in HOSTILE:
        assert_zero_within_a_second(name, text, truth)


HOSTILE_TEXT = [
    "." * 10**5 + "a",
    ".)" * 10**5 + "a",
    "." + ")" * 10**5 + "a",
    "*" * 10**5,
    "*a" * 10**5,
    "<<a" * 10**5,
    "[a" * 10**5,
]
HOSTILE_TEXT += [
    "\n " * 10**5,
    "\n" + " " * 10**5 + "a",
    "1. " * 10**5,
    "\na" * 10**5,
    "<<" + "a" * 10**5,
    "[" * 10**5,
    '"' * 10**5,
    "*" * 50_000 + "\n- " * 16_000,
    "\n" * 99_000 + "p.",
    "a. " * 33_000,
    "A!" * 49_000,
    "<<" * 49_000,
    "http://a@" * 11_000,
    "@" * 99_000,
    "\u0e01" * 99_000,
    "a" * 99_000,
    "' " * 49_000,
]
SAMPLES = {truth[0]["kind"]: truth for _, truth, _ in TABLES["instruction"]}


@pytest.mark.parametrize("kind", NAMES)
def test_hostile_text_for_constraints(kind):
    verify("instruction", "one", SAMPLES[kind])  # packages are imported once, whatever the text
    for text in HOSTILE_TEXT:
        began = time.process_time()
        assert verify("instruction", text, SAMPLES[kind]) in (0, 1)
        assert time.process_time() - began < 1.0, text[:20]


pieces = st.sampled_from(
    [
        "f(",
        "x=",
        "{",
        "}",
        "[1]",
        "[",
        "]",
        ")",
        ":",
        ",",
        "9" * 400,
        "1",
        "0",
        "+1j",
        "-",
        "/",
        "=",
        "e99",
        "*",
        "^",
        "!",
        '"',
        "'",
    ]
    + [
        r"\frac",
        r"\frac{1}{2}",
        r"\boxed{",
        r"\sqrt{",
        r"\text{",
        r"\sum",
        "answer: ",
        "#### ",
        "<answer>",
        "<function_calls>",
    ]
    + [
        '{"name": "f", "arguments": {',
        "lambda",
        "f",
        "x",
        "\ud800",
        "\0",
        "\n",
        " ",
        "\u0663",
        "\u00b2",
        "%",
        "$",
        "nan",
        "Infinity",
    ]
    + [
        "I can't ",
        "sorry, ",
        "help",
        "no",
        "1,000",
        "def double(x): return x",
        "```",
        ".",
        "#",
        "\\",
        "*",
        "True",
        "<<",
        ">>",
    ]
)
anything = st.text() | st.lists(pieces, max_size=12).map("".join)
EXAMPLES = {"math": 60, "code": 15, "reasoning_gym": 30, "instruction": 100}
FUZZED = {name: [table[0][1]] for name, table in TABLES.items()} | {
    "math": ["2x+2"],
    "instruction": list(SAMPLES.values()),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.usefixtures("started")
def test_any_text_gets_a_score(name):
    @settings(max_examples=EXAMPLES.get(name, 300), deadline=None)
    @given(anything)
    def any_text(text):
        for truth in FUZZED[name]:
            score = verify(name, text, truth)
            assert type(score) is float and 0 <= score <= 1

    any_text()


@given(st.integers(-(10**30), 10**30), st.integers(1, 999))
def test_numbers_in_every_spelling(n, under):
    spellings = [
        f"{n}",
        f"{n:,}",
        f"{n}.0",
        f"{n}/1",
        rf"\frac{{{n}}}{{1}}",
        f"${n:,}.00$",
        f"x = {n}",
        f"{n} dollars",
        f"{n}%",
    ]
    assert [verify("math", f"Answer: {text}", n) for text in spellings] == [1] * len(spellings)
    spellings = [f"#### {n:,}", f"so #### ${n}.00", f"that is {n}"]
    assert [verify("numeric", text, str(n)) for text in spellings] == [1] * len(spellings)
    assert verify("math", f"Answer: {n}/{under}", rf"\frac{{{3 * n}}}{{{3 * under}}}") == 1
    assert verify("numeric", f"#### {n + 1}", n) == verify("math", f"Answer: {n + 1}", n) == 0


BAD_TRUTHS = [
    ("math", None), ("math", True), ("math", ""), ("math", [42]), ("math", math.nan), ("math", math.inf), ("math", -math.inf),
    ("math", "Infinity"), ("math", "x" * 500), ("math", "{" * 100 + "x" + "}" * 100), ("math", r"\int_0^x "
        r"t dt"),
    ("math", "9^{9^9}"), ("math", "?"),
    ("numeric", "forty"), ("numeric", None), ("numeric", True), ("numeric", math.nan), ("numeric", math.inf),
    ("numeric", "1/0"), ("numeric", "3 + 4"), ("numeric", ""), ("numeric", [1]),
    ("code", "def f(): pass"), ("code", {"function": "f"}), ("code", {"function": "f", "tests": []}),
    ("code", {"function": "f()", "tests": [[[1], 1]]}), ("code", {"function": "f", "tests": [[1, 1]]}),
    ("code", {"function": "f", "tests": [[[1], object()]]}), ("code", {"function": "f", "tests": [[[1], 1]], "pass_fraction": 0}),
    ("code", {"function": "f", "tests": [[[1], 1]], "timeout": 3}), ("code", {"stdin_tests": []}),
    ("code", {"stdin_tests": [["1", 1]]}), ("code", {"stdin_tests": [["1", "1"]], "function": "f"}),
    ("code", ["f(1) == 1"]), ("code", ["assert ("]), ("code", ["assert f(1)", 1]), ("code", ["assert f(1)", "assert\0"]),
    ("code", []), ("code", ["import os"]), ("code", ["assert 1 == 1"]), ("code", ["assert len([]) == abs(0)"]),
    ("code", ["def f(): pass\nassert f() is None"]), ("code", '["assert ("]'), ("code", "{"), ("code", "[[1]]"),
    ("code", {"program": "assert True"}), ("code", {"program": "x ="}), ("code", {"program": ["assert f(1)"]}),
    ("code", {"program": "assert f(1)", "entry_point": "f()"}), ("code", {"program": "assert f(1)", "tests": []}),
    ("code", {"program": "assert f(1)", "prompt": "def f(): pass"}), ("code", {"program": "assert f(1)", "entry_point": "f", "prompt": "g"}),
    ("code", {"program": "assert f(1)", "entry_point": "f", "prompt": 1}), ("code", {"program": "f" * 9 + "(" * 999}),
    ("code", {"inputs": ["1"], "outputs": []}), ("code", {"inputs": [1], "outputs": [1]}), ("code", [{"input": "1"}]),
    ("code", [{"input": "1", "output": "1", "testtype": "functional"}]), ("code", [{"input": "1", "output": 1}]),
    ("code", {"function": "f", "tests": [[[1], 1]], "pass_fraction": math.nan}),
    ("tool_call", "add(a=1)"), ("tool_call", []), ("tool_call", {"name": "f"}), ("tool_call", {"name": "f", "arguments": [1]}),
    ("tool_call", {"name": "f", "arguments": {}, "optional": "a"}), ("tool_call", {"name": "f", "arguments": {"x": math.nan}}),
    ("tool_call", {"name": "f", "arguments": {"x": math.inf}}), ("tool_call", {"name": "f", "arguments": {"x": {1, 2}}}),
    ("tool_call", {"name": "f", "arguments": {1: 2}}), ("tool_call", None),
    ("instruction", []), ("instruction", {"kind": "all_lowercase"}), ("instruction", rule("rhymes")),
    ("instruction", rule("max_words")), ("instruction", rule("max_words", n="3")), ("instruction", rule("max_words", n=True)),
    ("instruction", rule("max_words", n=math.inf)), ("instruction", rule("all_lowercase", n=3)),
    ("instruction", rule("contains", text="")), ("instruction", rule(["all_lowercase"])), ("instruction", rule({})),
    ("instruction", rule(None)), ("instruction", [None]), ("instruction", ["all_lowercase"]), ("instruction", None),
    ("instruction", rule("one_of", options=[])), ("instruction", rule("one_of", options=[1])),
    ("safety", "harmful"), ("safety", None), ("safety", ["refuse"]), ("safety", {}), ("exact", 42), ("exact", " . "),
    ("possible_calls", None), ("possible_calls", {"functions": [], "calls": []}),
    ("possible_calls", {"functions": [], "calls": [{"f": {"x": [1]}}]}),
    ("possible_calls", {"functions": [{"name": "f", "parameters": {"properties": {"x": {"type": "int"}}}}], "calls": [{"f": {"x": [1]}}]}),
    ("possible_calls", {"functions": [{"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}], "calls": [{"f": {"x": 1}}]}),
]  # fmt: skip
if HAS_GYM:
    BAD_TRUTHS += [
        ("reasoning_gym", truth)
        for truth in (None, {}, puzzle("no such", "1"), puzzle("countdown", "1"), puzzle([], "1"))
    ]
    BAD_TRUTHS += [
        ("reasoning_gym", {"dataset": "chain_sum", "entry": entry}) for entry in (None, {"answer": "1"})
    ]
    BAD_TRUTHS += [("reasoning_gym", puzzle("chain_sum", "1", x=object()))]


@pytest.mark.parametrize("name, truth", BAD_TRUTHS)
def test_truth_of_the_wrong_kind_is_an_error(name, truth):
    with pytest.raises(
        BarError, match=rf"^rlvr\.jsonl:7: (?:{name} truth: expected|instruction truth: .* expects)"
    ) as caught:
        check_task(name, truth, "rlvr.jsonl:7")
    assert "\n" not in str(caught.value)
    with pytest.raises(BarError, match=f"{name} truth: "):
        verify(name, "42", truth)


def test_truths_that_refer_to_themselves():
    loop = []
    loop.append(loop)
    for name, truth in [
        ("code", plus([[[1], loop]])),
        ("tool_call", {"name": "f", "arguments": {"x": loop}}),
    ]:
        with pytest.raises(BarError, match=rf"here: {name} truth: expected"):
            check_task(name, truth, "here")


def test_good_tasks_pass_and_cheaply():
    for name, _, truth, _ in CASES:
        check_task(name, truth, "here")
    tasks = [(name, truth) for name, _, truth, _ in CASES if name != "reasoning_gym"]
    began = time.process_time()
    for name, truth in tasks * 10:
        check_task(name, truth, "here")
    assert (time.process_time() - began) / len(tasks) / 10 < 1e-3


@pytest.mark.parametrize("name", ["maths", "", None, ["math"], {}, 7])
def test_unknown_verifier_is_an_error(name):
    with pytest.raises(
        BarError, match=r"^here: verifier .*: unknown, expected one of code, exact, instruction"
    ):
        check_task(name, "42", "here")
    with pytest.raises(BarError, match=r"unknown, expected one of code, exact, instruction"):
        verify(name, "42", "42")


def test_an_error_of_one_reaches_the_caller_of_many():
    with pytest.raises(BarError, match="exact truth"):
        verify_many([("exact", "a", "a"), ("exact", "a", 1)])


def test_gym_scores_full_marks_of_the_data_sets_alone():
    reasoning_gym = pytest.importorskip("reasoning_gym")
    for name in (
        "spell_backward",
        "word_sorting",
        "leg_counting",
        "fraction_simplification",
        "maze",
        "syllogism",
    ):
        score = reasoning_gym.get_score_answer_fn(name)
        for entry in reasoning_gym.create_dataset(name, size=3, seed=5):
            truth = {"dataset": name, "entry": json.loads(json.dumps(entry))}
            check_task("reasoning_gym", truth, "here")
            for answer in (entry["answer"], entry["answer"] + "x", "x" + entry["answer"], "7", "no", "None"):
                full = score(answer, entry) > 1 - 1e-6
                assert verify("reasoning_gym", f"So <answer>{answer}</answer>", truth) == full


def test_gym_entry_that_cannot_be_scored_is_found_before():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(BarError, match=r"here: .*graph_color can judge, which does not give its own"):
        check_task("reasoning_gym", puzzle("graph_color", "x"), "here")


PAYING = {
    "game_of_life_halting": "gives ' ' full marks",
    "complex_arithmetic": "gives 'nan' full marks",
    "coin_flip": "gives '0' full marks",
    "propositional_logic": "gives '.*' full marks",
    "arc_agi": "does not give its own entry's answer full marks",
    "rearc": "does not give its own entry's answer full marks",
}
"""Of version 0.1.25."""
NOTHING = ["", " ", "nan", "0", "inf", "[]", "{}", "None", "I do not know", "lorem ipsum dolor", "x" * 20_000]


def test_gym_scorers_that_pay_nonsense_are_refused_by_name(record_property):
    gym = pytest.importorskip("reasoning_gym")
    from reasoning_gym.factory import DATASETS

    paid = asked = 0
    for name in sorted(DATASETS.keys() - reasoning_gym.EVALUATED):
        entries = [json.loads(json.dumps(entry)) for entry in gym.create_dataset(name, size=3, seed=23)]
        for entry in entries:
            truth = {"dataset": name, "entry": entry}
            if name in PAYING:
                with pytest.raises(BarError, match=f"here: .*found {name}, which {PAYING[name]}"):
                    check_task("reasoning_gym", truth, "here")
                continue
            check_task("reasoning_gym", truth, "here")
            if entry["answer"] is not None:
                assert verify("reasoning_gym", f"<answer>{entry['answer']}</answer>", truth) == 1, truth
            for text in [*NOTHING, entry["question"]]:
                right = str(entry["answer"]) in (text, f"{text}.0")
                paid += verify("reasoning_gym", text, truth) > 0 and not right
                asked += 1
    assert paid == 0
    record_property("figure", f"nonsense to reasoning-gym's scorers: {paid} of {asked} paid")


def test_gym_scorers_that_evaluate_are_left_out():
    """None of the others calls eval, exec or SymPy's parser (which evaluates) in its scorer's file."""
    spec = importlib.util.find_spec("reasoning_gym")
    if spec is None:
        pytest.skip("reasoning-gym is not installed")
    from reasoning_gym.factory import DATASETS

    calls = ("eval(answer", "eval(entry", "eval(problem", "parse_expr(answer", "sympify(", "exec(")
    evaluating = {
        name
        for name, (dataset, _) in DATASETS.items()
        if any(call in Path(sys.modules[dataset.__module__].__file__).read_text() for call in calls)
    }
    assert (
        evaluating - {"codeio"} <= reasoning_gym.EVALUATED
    )  # codeio runs its own programs, and only to make entries


def test_gym_without_its_package():
    code = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == "
        "'reasoning_gym' else f(n, *a)\n"
    )
    code += f"from megatron_bar.verifiers import check_task\ncheck_task('reasoning_gym', {SUM}, 'here')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.endswith(
        "here: reasoning_gym verifier: package reasoning-gym expected, not found; pip install "
        "'megatron_bar[gym]'"
    )


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.0, -0.0, 1.0, 2.0])
    | st.text("a,'[:]", max_size=2)
)
keys = st.integers(0, 1) | st.text("a", max_size=1)
plain = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=2) | st.tuples(inner) | st.dictionaries(keys, inner, max_size=2),
    max_leaves=4,
)
argument = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("a"), inner, max_size=2),
    max_leaves=4,
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
    shuffled = [
        {"arguments": dict(random.sample(list(given.items()), len(given))), "name": "f"} for given in calls
    ]
    random.shuffle(shuffled)
    as_python = "\n".join(
        f"f({', '.join(f'{key}={value!r}' for key, value in call['arguments'].items())})" for call in shuffled
    )
    assert verify("tool_call", json.dumps(shuffled), truth) == verify("tool_call", as_python, truth) == 1
    assert verify("tool_call", json.dumps(shuffled + shuffled[:1]), truth) == 0


class Broken:
    """A verifier with a defect, as someone might add one."""

    @staticmethod
    def verify(response, truth):
        return 2.0 if response == "too much" else 1 / len(response)


@pytest.mark.parametrize(
    "answer, what", [("", "ZeroDivisionError: division by zero"), ("too much", "AssertionError: score 2.0")]
)
def test_a_verifier_that_fails_is_an_error_and_no_score(monkeypatch, answer, what):
    monkeypatch.setitem(VERIFIERS, "broken", Broken)
    with pytest.raises(
        BarError, match=f"^verifier broken: {what}; on the answer '{answer}' and the truth 'x'$"
    ):
        verify_many([("exact", "x", "x"), ("broken", answer, "x")])
