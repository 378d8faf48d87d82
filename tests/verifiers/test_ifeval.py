"""IFEval's constraints by their published names, against lm-eval's own grader on generated texts."""

import json

import pytest
from ifeval_cases import cases, lm_evals

from megatron_bar.errors import BarError
from megatron_bar.verifiers import check_task, verify
from megatron_bar.verifiers.ifeval import IFEVAL
from megatron_bar.verifiers.rlvr_ifeval import FUNCTIONS
from megatron_bar.verifiers.text import says_something


@pytest.fixture(scope="module")
def theirs():
    with lm_evals() as grader:
        yield grader


def test_the_same_grades_as_lm_eval(theirs):
    """Each of the 25 on its own, and all of a prompt's together, by google/IFEval's row and by IF-RLVR's. Texts
    without a letter or digit obey nothing here."""
    verdicts = {name: set() for name in IFEVAL}
    parted = []
    for answer, names, kwargs in cases(2_000):
        given = [arguments or {} for arguments in kwargs]
        row = theirs.InputExample(0, names, "", given)
        strict = theirs.test_instruction_following_strict(row, answer)
        truth = {
            "instruction_id_list": names,
            "kwargs": [{"unused": None} | arguments for arguments in given],
        }
        check_task("instruction", truth, "here")
        if not says_something(answer):
            assert verify("instruction", answer, truth) == 0
            continue
        if verify("instruction", answer, truth) != strict.follow_all_instructions:
            parted.append((answer, truth))
        text_of_row = str([{"instruction_id": names, "kwargs": kwargs}])
        share = verify("instruction", answer, {"constraints": text_of_row, "reward": "fraction"})
        assert share == pytest.approx(sum(strict.follow_instruction_list) / len(names)), (answer, truth)
        for name, verdict in zip(names, strict.follow_instruction_list, strict=True):
            verdicts[name].add(verdict)
    assert parted == []
    assert verdicts == {name: {True, False} for name in IFEVAL}


PARTS = "Eins.\n* * *\nZwei, zwei."
FUNCTIONS_ROWS = [
    ({"func_name": "verify_keywords", "keyword_list": ["fox", "c++"]}, "A Fox in C++", "A fox in C"),
    ({"func_name": "verify_keyword_frequency", "word": "fox", "N": 2}, "fox, Fox foxes", "fox"),
    ({"func_name": "validate_forbidden_words", "forbidden_words": ["fox", "dog"]}, "cats", "a Dog"),
    ({"func_name": "verify_letter_frequency", "letter": "a", "N": 2}, "banal", "banana"),
    (
        {"func_name": "validate_response_language", "language": "de"},
        "Das ist ein deutscher Satz.",
        "It is English.",
    ),
    ({"func_name": "verify_paragraph_count", "N": 2}, PARTS, "a\n\nb"),
    ({"func_name": "validate_word_constraint", "N": 20, "quantifier": "around"}, "a " * 18, "a " * 17),
    ({"func_name": "validate_word_constraint", "N": 3, "quantifier": "at most"}, "a b c", "a b c d"),
    ({"func_name": "validate_word_constraint", "N": 3, "quantifier": "at least"}, "a b c", "a b"),
    ({"func_name": "verify_sentence_constraint", "N": 2, "quantifier": "around"}, "A. B. C.", "A. B. C. D."),
    ({"func_name": "validate_paragraphs", "N": 2, "first_word": "Two", "i": 2}, "a\n\nTwo b", "Two\n\nb"),
    ({"func_name": "verify_postscript", "postscript_marker": "P.S."}, "Hi\nP.S. b", "Hi"),
    ({"func_name": "validate_placeholders", "N": 2}, "[a] [b]", "[a]"),
    ({"func_name": "verify_bullet_points", "N": 2}, "* a\n- b", "* a"),
    ({"func_name": "validate_title"}, "<<a>> b", "a"),
    ({"func_name": "validate_choice", "options": ["(a)", "b"]}, "I take (a)", "I take C"),
    ({"func_name": "validate_highlighted_sections", "N": 2}, "*a* **b**", "*a*"),
    ({"func_name": "validate_sections", "N": 2, "section_splitter": "Part"}, "Part 1 a Part 2 b", "Part 1"),
    ({"func_name": "validate_json_format"}, '{"a": 1}', "a"),
    ({"func_name": "validate_repeat_prompt", "original_prompt": "Why?"}, "Why? So.", "So."),
    ({"func_name": "validate_two_responses"}, "a ****** b", "a ****** a"),
    ({"func_name": "validate_uppercase"}, "A B", "A b"),
    ({"func_name": "validate_lowercase"}, "a b", "A b"),
    ({"func_name": "validate_frequency_capital_words", "N": 2, "quantifier": "at least"}, "A BC d", "A bc"),
    ({"func_name": "validate_end", "end_phrase": "The end."}, "a. The end.", "The end. a"),
    ({"func_name": "validate_quotation"}, '"a b"', "a"),
    ({"func_name": "validate_no_commas"}, "a", "a, b"),
]


@pytest.mark.parametrize("row, follows, fails", FUNCTIONS_ROWS)
def test_the_functions_of_the_older_set(row, follows, fails):
    nulls = dict.fromkeys(("N", "quantifier", "end_phrase", "word", "options"))
    for truth in (row, nulls | row, json.dumps(nulls | row), [row]):
        check_task("instruction", truth, "here")
        assert [verify("instruction", answer, truth) for answer in (follows, fails)] == [1, 0]
    assert {row["func_name"] for row, *_ in FUNCTIONS_ROWS} == set(FUNCTIONS)


ROW = {"instruction_id": ["punctuation:no_comma"], "kwargs": [None]}
WRONG_ROWS = [
    ROW | {"kwargs": []}, ROW | {"kwargs": None}, ROW | {"kwargs": [3]}, ROW | {"instruction_id": "punctuation:no_comma"},
    ROW | {"instruction_id": ["no_comma"]}, ROW | {"instruction_id": [None]}, {"instruction_id": [], "kwargs": []},
    ROW | {"kwargs": [{"num_words": 3}]}, {"kwargs": [{}]}, "no list", "[", "[{'instruction_id': ['x'], 'kwargs': [None]}]",
    {"instruction_id": ["keywords:existence"], "kwargs": [{"keywords": ["("]}]},
    {"instruction_id": ["keywords:existence"], "kwargs": [{"keywords": "fox"}]},
    {"instruction_id": ["length_constraints:number_words"], "kwargs": [{"num_words": 3, "relation": "at most"}]},
    {"instruction_id": ["length_constraints:number_words"], "kwargs": [{"num_words": 3.5, "relation": "at least"}]},
    {"func_name": "validate_rhyme"}, {"func_name": "validate_end"}, {"func_name": "validate_end", "end_phrase": 3},
    {"func_name": "validate_word_constraint", "N": 3, "quantifier": "exactly"}, {"func_name": []},
    {"constraints": [], "reward": "all"}, {"constraints": ROW, "reward": "most"}, {"constraints": ROW, "reward": []},
    {"constraints": ROW}, [[ROW]], [ROW, 3],
]  # fmt: skip


@pytest.mark.parametrize("truth", WRONG_ROWS)
def test_rows_that_no_answer_can_be_graded_by(truth):
    with pytest.raises(BarError, match=r"^here: instruction truth: .*expect") as caught:
        check_task("instruction", truth, "here")
    assert "\n" not in str(caught.value)


def test_numbers_of_a_column_with_nulls_and_shares():
    two = {
        "instruction_id": ["length_constraints:number_words", "punctuation:no_comma"],
        "kwargs": [
            {"num_words": 2.0, "relation": "at least", "keywords": None, "letter": ""},
            {"num_words": None},
        ],
    }
    assert [verify("instruction", answer, two) for answer in ("a b", "a, b", "a", " ")] == [1, 0, 0, 0]
    share = {"constraints": [two, {"kind": "all_lowercase"}, {"kind": "no_digits"}], "reward": "fraction"}
    assert [verify("instruction", answer, share) for answer in ("a b", "A, b", "1,", "\u200b")] == [
        1,
        0.5,
        0,
        0,
    ]
