"""IFEval's constraints by their published names, against lm-eval's own grader on generated texts."""

import json
import random

import pytest

from megatron_bar.errors import BarError
from megatron_bar.verifiers import check_task, verify
from megatron_bar.verifiers.ifeval import IFEVAL, RELATIONS
from megatron_bar.verifiers.rlvr_ifeval import FUNCTIONS

WORDS = (
    "the a river fox NASA Runs slowly over old stones, and then it SLEEPS; while we wait. Yes! No? My answer is "
    "Dr. Smith said: e.g. this etc. U.S. 3.5 10,000 it's DON'T I'M C++ <<A Song>> << >> <<>> [name] [] [a [b] "
    "*one* **two** * ** *** ****** P.S. P.P.S p. s. PS: \"quoted\" ' 'twas section Section 1 SECTION 2 . ... ?! "
    "Any other questions? yes."
).split(" ")
BREAKS = (
    "\n",
    "\n\n",
    "\n* ",
    "\n- ",
    "\n-",
    "\n\n\n",
    "\n***\n",
    "\n******\n",
    " ",
    "\r\n",
    "\t",
    "\n*\n",
    "\n  - - -\n",
)
WHOLE = (
    "{}", '```json\n{"a": 1}\n```', '{"a": NaN}', "7", '"a" and "b"', '"', '"all of it"', "My answer is no.",
    "MY WHOLE ANSWER IS WRITTEN IN CAPITAL LETTERS, AS YOU ASKED.", "all of this is in lowercase english words",
    "Das ist ein deutscher Satz, der lang genug ist.", "Ceci est une phrase en fran\u00e7ais, assez longue.",
    "one\n\nTwo words\n\n'third' here", "\n\nTwo first", "Two\n\nx", "a ****** b", "a ****** a", "******a******b******",
    "  ", "", "\n", "2*3*4", "* *one*\n* *two*", "[a][b]", "[\n]", "*\n- a", "repeat this please. And then more",
    "123 456", "Is that all? Any other questions?\"", "Section 1\none\nSection 2\ntwo", "SECTION 1 a SECTION2 b", "x ***y*** z", "*** a ***", "a *** *** b",
)  # fmt: skip


def text(draw: random.Random) -> str:
    if draw.random() < 0.4:
        return draw.choice(WHOLE)
    said = "".join(
        draw.choice(WORDS) + (draw.choice(BREAKS) if draw.random() < 0.2 else " ")
        for _ in range(draw.randint(1, 60))
    )
    case = draw.random()
    said = said.upper() if case < 0.1 else said.lower() if case < 0.2 else said
    return said if draw.random() < 0.5 else said.strip()


def arguments(name: str, answer: str, draw: random.Random) -> dict:
    """Draws arguments that answers meet about as often as not."""
    near = draw.randint(1, 6)
    counted = draw.randint(1, max(2, 2 * len(answer.split())))
    relation = draw.choice(RELATIONS)
    parts = [part for part in answer.split("\n\n") if part.strip()] or ["none"]
    nth = draw.randrange(len(parts))
    return {
        "keywords:existence": {
            "keywords": draw.sample(["fox", "river", "stones,", "the", "C++", "a.c", "Yes"], 2)
        },
        "keywords:frequency": {
            "keyword": draw.choice([" fox", "the", "a"]),
            "frequency": near,
            "relation": relation,
        },
        "keywords:forbidden_words": {
            "forbidden_words": draw.sample(["fox", "NASA", "sleep", "section", "yes"], 2)
        },
        "keywords:letter_frequency": {
            "letter": draw.choice("aeTz"),
            "let_frequency": near,
            "let_relation": relation,
        },
        "language:response_language": {"language": draw.choice(["en", "de", "fr"])},
        "length_constraints:number_sentences": {"num_sentences": near, "relation": relation},
        "length_constraints:number_paragraphs": {"num_paragraphs": draw.randint(1, 3)},
        "length_constraints:number_words": {"num_words": counted, "relation": relation},
        "length_constraints:nth_paragraph_first_word": {
            "num_paragraphs": len(parts),
            "nth_paragraph": nth + 1,
            "first_word": draw.choice(["Two", "the", parts[nth].split()[0].strip(".,?!'\"") or "a"]),
        },
        "detectable_content:number_placeholders": {"num_placeholders": draw.randint(1, 3)},
        "detectable_content:postscript": {"postscript_marker": draw.choice(["P.S.", "P.P.S", "PS:"])},
        "detectable_format:number_bullet_lists": {"num_bullets": draw.randint(1, 3)},
        "detectable_format:number_highlighted_sections": {"num_highlights": draw.randint(1, 4)},
        "detectable_format:multiple_sections": {
            "section_spliter": draw.choice(["Section", "SECTION"]),
            "num_sections": draw.randint(1, 2),
        },
        "combination:repeat_prompt": {
            "prompt_to_repeat": draw.choice(["repeat THIS please.", "The river", "a"])
        },
        "startend:end_checker": {"end_phrase": draw.choice(["Any other questions?", "fox", "more ", "z"])},
        "change_case:capital_word_frequency": {"capital_frequency": near, "capital_relation": relation},
    }.get(name, {})


def cases(count: int):
    for number in range(count):
        draw = random.Random(number)
        answer = text(draw)
        names = draw.sample(list(IFEVAL), draw.randint(1, 3))
        yield answer, names, [arguments(name, answer, draw) or None for name in names]


@pytest.fixture(scope="module")
def theirs():
    """lm-eval's grader. It wants NLTK's punkt_tab and tries to fetch it on import: where there is none, its
    sentences are Punkt's with our table."""
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("lm_eval")
    langdetect = pytest.importorskip("langdetect")
    langdetect.DetectorFactory.seed = 0
    try:
        nltk.data.find("tokenizers/punkt_tab")
        has_table = True
    except LookupError:
        has_table = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk, "download", lambda *_: None)
        from lm_eval.tasks.ifeval import instructions_util, utils

        if not has_table:
            from megatron_bar.verifiers.ifeval import punkt

            patch.setattr(instructions_util, "_get_sentence_tokenizer", punkt)
            patch.setattr(nltk, "word_tokenize", _words_by(nltk, punkt()))
        yield utils


def _words_by(nltk, tokenizer):
    words = nltk.tokenize.NLTKWordTokenizer()
    return lambda text: [word for part in tokenizer.tokenize(text) for word in words.tokenize(part)]


def test_the_same_grades_as_lm_eval(theirs):
    """Each of the 25 on its own, and all of a prompt's together, by google/IFEval's row and by IF-RLVR's."""
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
