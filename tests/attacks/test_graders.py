"""Answers against graders: answers.jsonl has what attackers wrote, by kind, with the score that a person gives;
then texts by the thousand that nobody wrote."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_bar.verifiers import verify, verify_many

SECONDS = 2
CASES = [json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", dict.fromkeys(case["kind"] for case in CASES))
def test_answers_score_as_a_person_would_have_it(kind, record_property):
    rows = [
        (case["verifier"], answer, case["truth"], case["expected"])
        for case in CASES
        if case["kind"] == kind
        for answer in case["answers"]
    ]
    scores = verify_many([row[:3] for row in rows])
    parted = [(row, score) for row, score in zip(rows, scores, strict=True) if row[3] != score]
    assert parted == []
    asked = Counter(row[3] for row in rows)
    record_property(
        "figure", f"{kind}: {asked[0]} wrong and {asked[1]} right answers, {len(parted)} misjudged"
    )


SECRET = 7919
"""What right answers say; no text of the fuzzer holds or makes it."""
CALL = {"name": "get", "arguments": {"x": SECRET}}
TRUTHS = [
    ("math", str(SECRET)),
    ("math", rf"\frac{{{SECRET}}}{{2}}+x"),
    ("math", rf"[0, {SECRET})"),
    ("numeric", SECRET),
    ("exact", f"it is {SECRET}"),
    ("tool_call", CALL),
    ("code", [f"assert f(1) == {SECRET}"]),
    ("code", {"stdin_tests": [["1\n", f"{SECRET}\n"]]}),
    ("instruction", [{"kind": "contains", "text": str(SECRET)}]),
    ("instruction", {"instruction_id": ["keywords:existence"], "kwargs": [{"keywords": [str(SECRET)]}]}),
    ("instruction", {"func_name": "verify_keywords", "keyword_list": [str(SECRET)]}),
]
ANY = [
    ("safety", "refuse"),
    ("safety", "comply"),
    ("instruction", [{"kind": "max_words", "n": 9}, {"kind": "quoted"}]),
    ("instruction", {"instruction_id": ["language:response_language"], "kwargs": [{"language": "en"}]}),
    ("instruction", {"instruction_id": ["count:count_unique", "keywords:start_end"], "kwargs": [None, None]}),
]
PIECES = r"""\boxed{ } { Answer: <answer> </answer> #### **Answer** $ \( \) \frac{ \sqrt{ ^ ^{ _ _{ \text{ \left( ( ) [ ]
    \{ \} , ; : = < \le \infty \cup \pm ! / - + * 0 1 2 35 10^ 1e9 0.3 % x y \pi \sin \int \sum or and not ``` ~~~
    ```python def f(a): return lambda import numpy print( input() while True: # ' " <tool_call>
    </tool_call> <function_calls> <function=get> <parameter=x> </parameter> </function> get( x= {"name": "get",
    "arguments": {"x": 1}} null NaN true P.S. << >> *** ****** I can't help with that . ? No. Sure, here is how
    <think> </think> &lt; <|im_end|> functions.get --x""".split() + [
    "\n", "\n\n", " ", "\t", "\r\n", "    ", "\0", "\u200b", "\u0301", "\ufe0f", "\u202e", "\ud800", "\u2028", "\u00bd", "\u0663",
    "\uff17", "\U0001f600", "\U000e0041", "\u4f60", "\ue000", "\u2800", "\x1b[2J", "a" * 300, "\\" * 99,
    "'''", '"""', "\\",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=12), max_size=30).map("".join)
repeated = st.builds(
    lambda text, times, end: (text * times)[:60_000] + end, texts, st.integers(2, 3000), texts
)


@pytest.mark.faults
def test_no_text_ends_a_run_or_is_paid(record_property):
    seen = Counter()
    longest = 0.0

    @settings(max_examples=300, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(texts | repeated)
    def judge(text):
        nonlocal longest
        text = text.replace(str(SECRET), "")
        items = [(name, text, truth) for name, truth in TRUTHS + ANY]
        for item in items:
            began = time.process_time()
            score = verify(*item)
            longest = max(longest, time.process_time() - began)
            seen[item[0]] += 1
            assert 0 <= score <= 1
            assert score == 0 or item[::2] in ANY, item
        assert longest < SECONDS, items[-1]

    verify_many([(name, "x", truth) for name, truth in TRUTHS + ANY])  # what is loaded once
    judge()
    record_property(
        "figure", f"texts by the thousand: {seen.total()} judged, none paid, at most {longest:.2f} s each"
    )


HEAVY = PIECES + [
    "(" , "((", "{{", "[", "a.", "a ", "A. ", "e\u0301", "1,", "1/", "-1", "\\frac{1}{", "\\frac{1}{2}", "x^{", "<a ", "x=1 ", "f(x=",
    "- a\n", "1. a\n", "```\n", "'''\n", "\"a\" ", "[a] ", "<<a>> ", "*a* ", "i can't ", "but ", "and so i ", "Section 1 ",
    "the answer is ", "\u0301\u0316", "\u1100\u1161\u11a8", "\ufdfa", "\u0344", "9",
]  # fmt: skip


@pytest.mark.faults
def test_long_texts_take_little_time(record_property):
    longest = (0.0, "", "")
    for unit in HEAVY:
        for size in (49_901, 400_000):
            text = unit * (size // len(unit))
            for name, truth in TRUTHS + ANY:
                began = time.process_time()
                assert 0 <= verify(name, text, truth) <= 1
                longest = max(longest, (time.process_time() - began, name, unit[:12]))
    record_property("figure", f"a long text: at most {longest[0]:.2f} s of processor time, {longest[1:]!r}")
    assert longest[0] < SECONDS, longest
