"""The functions of the older set RLVR-IFeval, as the constraints that say the same.

open-instruct's own functions count a few things otherwise (white space at the ends, the case of a letter, a
forbidden word inside another); a row is worth the same to whoever does what its prompt asks.
"""

import re
from collections.abc import Callable
from typing import Literal

Quantifier = Literal["at least", "around", "at most"]
Constraints = list[tuple[str, dict]]


def _counted(what: str, n: int, quantifier: str, slack: int) -> Constraints:
    """Returns bounds on a count; around n is n and ``slack`` more or less."""
    low = n if quantifier == "at least" else n - slack if quantifier == "around" else 0
    high = n if quantifier == "at most" else n + slack if quantifier == "around" else None
    bounds = ((f"min_{what}", low), (f"max_{what}", high))
    return [(kind, {"n": bound}) for kind, bound in bounds if bound and bound > 0]


def _exactly(what: str, text: str, n: int) -> Constraints:
    return [(f"{bound}_{what}", {"text": text, "n": n}) for bound in ("min", "max")]


def _tenth(n: int) -> int:
    return max(round(n * 0.1), 1)


FUNCTIONS: dict[str, tuple[dict[str, object], Callable[..., Constraints]]] = {
    "verify_keywords": (
        {"keyword_list": list},
        lambda keyword_list: [("keywords:existence", {"keywords": list(map(re.escape, keyword_list))})],
    ),
    "verify_keyword_frequency": ({"word": str, "N": int}, lambda word, N: _exactly("count", word, N)),
    "validate_forbidden_words": (
        {"forbidden_words": list},
        lambda forbidden_words: [
            ("keywords:forbidden_words", {"forbidden_words": list(map(re.escape, forbidden_words))})
        ],
    ),
    "verify_letter_frequency": ({"letter": str, "N": int}, lambda letter, N: _exactly("letters", letter, N)),
    "validate_response_language": (
        {"language": str},
        lambda language: [("language:response_language", {"language": language})],
    ),
    "verify_paragraph_count": ({"N": int}, lambda N: [("exact_parts", {"n": N})]),
    "validate_word_constraint": (
        {"N": int, "quantifier": Quantifier},
        lambda N, quantifier: _counted("words", N, quantifier, _tenth(N)),
    ),
    "verify_sentence_constraint": (
        {"N": int, "quantifier": Quantifier},
        lambda N, quantifier: _counted("sentences", N, quantifier, 1),
    ),
    "validate_paragraphs": (
        {"N": int, "first_word": str, "i": int},
        lambda N, first_word, i: [
            ("exact_paragraphs", {"n": N}),
            ("paragraph_starts_with", {"n": i, "text": first_word}),
        ],
    ),
    "verify_postscript": (
        {"postscript_marker": str},
        lambda postscript_marker: [("postscript", {"text": postscript_marker})],
    ),
    "validate_placeholders": ({"N": int}, lambda N: [("min_placeholders", {"n": N})]),
    "verify_bullet_points": ({"N": int}, lambda N: [("bullets", {"n": N})]),
    "validate_title": ({}, lambda: [("title", {})]),
    "validate_choice": (
        {"options": list},
        lambda options: [("keywords:existence", {"keywords": ["|".join(map(re.escape, options))]})],
    ),
    "validate_highlighted_sections": ({"N": int}, lambda N: [("min_highlights", {"n": N})]),
    "validate_sections": (
        {"N": int, "section_splitter": str},
        lambda N, section_splitter: [
            (
                "detectable_format:multiple_sections",
                {"section_spliter": re.escape(section_splitter), "num_sections": N},
            )
        ],
    ),
    "validate_json_format": ({}, lambda: [("detectable_format:json_format", {})]),
    "validate_repeat_prompt": (
        {"original_prompt": str},
        lambda original_prompt: [("combination:repeat_prompt", {"prompt_to_repeat": original_prompt})],
    ),
    "validate_two_responses": ({}, lambda: [("two_responses", {})]),
    "validate_uppercase": ({}, lambda: [("all_uppercase", {})]),
    "validate_lowercase": ({}, lambda: [("all_lowercase", {})]),
    "validate_frequency_capital_words": (
        {"N": int, "quantifier": Quantifier},
        lambda N, quantifier: _counted("capital_words", N, quantifier, _tenth(N)),
    ),
    "validate_end": (
        {"end_phrase": str},
        lambda end_phrase: [("startend:end_checker", {"end_phrase": end_phrase})],
    ),
    "validate_quotation": ({}, lambda: [("quoted", {})]),
    "validate_no_commas": ({}, lambda: [("no_commas", {})]),
}
"""Types of the arguments of each, and the constraints for them."""
