"""Generated texts with IFEval's constraints, and lm-eval's own grader of them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from megatron_bar.verifiers.ifeval import IFEVAL, RELATIONS

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


@contextmanager
def lm_evals() -> Iterator:
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
