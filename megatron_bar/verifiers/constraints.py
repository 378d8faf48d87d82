"""Constraints on a text that a program can check, after IFEval (arXiv 2311.07911) as implemented openly.

Each takes the answer, without white space around, and its fields. Words are what white space separates,
sentences end with ".", "!" or "?" before white space or the end, paragraphs are separated by a blank line or
by "***" on a line of its own, lines count when they are not blank. Letter case counts unless a constraint
says otherwise. Left out: the language of an answer, which takes a package and errs on short texts (``script``
checks its alphabet instead).
"""

import json
import re
import unicodedata
from collections.abc import Callable

BULLET = re.compile(r"^[ \t]*[*+-][ \t]+\S", re.MULTILINE)
NUMBERED = re.compile(r"^[ \t]*([0-9]+)[.)][ \t]+\S", re.MULTILINE)
SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"')\]*_]*+(?=\s|\Z)")
RULE = re.compile(r"^[ \t]*\*{3}[ \t]*$", re.MULTILINE)


def sentences(text: str) -> int:
    """Counts sentences; a rest without a full stop is one more."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return len(ends) + bool(text[ends[-1] if ends else 0 :].strip())


def paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n[ \t]*\n", RULE.sub("\n\n", text)) if part.strip()]


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def capitals(text: str) -> int:
    return sum(word.isupper() for word in text.split())


def exact_words(answer: str, *, n: int) -> bool:
    return len(answer.split()) == n


def max_words(answer: str, *, n: int) -> bool:
    return len(answer.split()) <= n


def min_words(answer: str, *, n: int) -> bool:
    return len(answer.split()) >= n


def exact_sentences(answer: str, *, n: int) -> bool:
    return sentences(answer) == n


def max_sentences(answer: str, *, n: int) -> bool:
    return sentences(answer) <= n


def min_sentences(answer: str, *, n: int) -> bool:
    return sentences(answer) >= n


def exact_lines(answer: str, *, n: int) -> bool:
    return len(lines(answer)) == n


def exact_paragraphs(answer: str, *, n: int) -> bool:
    return len(paragraphs(answer)) == n


def paragraph_starts_with(answer: str, *, n: int, text: str) -> bool:
    """Holds if the n-th paragraph, counted from 1, starts with the text."""
    found = paragraphs(answer)
    return len(found) >= n and found[n - 1].startswith(text)


def all_uppercase(answer: str) -> bool:
    return answer.isupper()


def all_lowercase(answer: str) -> bool:
    return answer.islower()


def min_capital_words(answer: str, *, n: int) -> bool:
    """Holds for at least n words wholly in capitals."""
    return capitals(answer) >= n


def max_capital_words(answer: str, *, n: int) -> bool:
    return capitals(answer) <= n


def starts_with(answer: str, *, text: str) -> bool:
    return answer.startswith(text)


def ends_with(answer: str, *, text: str) -> bool:
    return answer.endswith(text)


def contains(answer: str, *, text: str) -> bool:
    return text in answer


def not_contains(answer: str, *, text: str) -> bool:
    return text not in answer


def min_count(answer: str, *, text: str, n: int) -> bool:
    """Holds if the text occurs as whole words at least n times, in any case."""
    return _count(answer, text) >= n


def max_count(answer: str, *, text: str, n: int) -> bool:
    return _count(answer, text) <= n


def _count(answer: str, text: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(text)}(?!\w)", answer, re.IGNORECASE))


def min_letters(answer: str, *, text: str, n: int) -> bool:
    """Holds if the text (a letter, say) occurs anywhere at least n times, in any case."""
    return answer.lower().count(text.lower()) >= n


def max_letters(answer: str, *, text: str, n: int) -> bool:
    return answer.lower().count(text.lower()) <= n


def no_commas(answer: str) -> bool:
    return "," not in answer


def no_digits(answer: str) -> bool:
    return not any(character.isdigit() for character in answer)


def comma_separated(answer: str, *, n: int) -> bool:
    """Holds for n items, none empty."""
    items = [item.strip() for item in answer.removesuffix(".").split(",")]
    return len(items) == n and all(items)


def repeat(answer: str, *, text: str, n: int) -> bool:
    """Holds for the text n times and nothing besides, with white space or one comma between."""
    rest = answer
    for i in range(n):
        if not rest.startswith(text):
            return False
        rest = rest[len(text) :]
        if i < n - 1:
            tail = rest.removeprefix(",")
            if tail == rest and not rest[:1].isspace():
                return False
            rest = tail.lstrip()
    return rest == ""


def repeat_prompt(answer: str, *, text: str) -> bool:
    """Holds for the text word for word, then something more."""
    return answer.startswith(text) and answer != text


def one_of(answer: str, *, options: list) -> bool:
    """Holds for exactly one of the options, up to a full stop."""
    return answer.removesuffix(".") in {option.removesuffix(".") for option in options}


def two_responses(answer: str) -> bool:
    """Holds for two different texts with "******" between."""
    parts = [part.strip() for part in answer.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def bullets(answer: str, *, n: int) -> bool:
    """Holds for n lines that start with "*", "-" or "+"."""
    return len(BULLET.findall(answer)) == n


def numbered_list(answer: str, *, n: int) -> bool:
    """Holds if lines start with "1.", "2.", ... up to n, in order."""
    return NUMBERED.findall(answer) == [str(i) for i in range(1, n + 1)]


def title(answer: str) -> bool:
    """Holds if there is a title in <<double angle brackets>> anywhere."""
    return any(found.strip() for found in re.findall(r"<<([^<>\n]+)>>", answer))


def min_highlights(answer: str, *, n: int) -> bool:
    """Holds for at least n parts between asterisks, *one* or two, that are not empty."""
    return sum(found.strip("* ") != "" for found in re.findall(r"\*\*[^*\n]+\*\*|\*[^*\n]+\*", answer)) >= n


def min_placeholders(answer: str, *, n: int) -> bool:
    """Holds for at least n [square brackets] with something in them."""
    return sum(found.strip() != "" for found in re.findall(r"\[([^\[\]\n]+)\]", answer)) >= n


def sections(answer: str, *, text: str, n: int) -> bool:
    """Holds if lines start with the text and a number: "Section 1", "Section 2", ... up to n, in order."""
    found = re.findall(rf"^[ \t#*]*{re.escape(text)}[ \t]+([0-9]+)\b", answer, re.MULTILINE)
    return found == [str(i) for i in range(1, n + 1)]


def postscript(answer: str, *, text: str) -> bool:
    """Holds if after the first line, a line starts with the text ("P.S.") and says something."""
    return re.search(rf"\n[ \t]*{re.escape(text)}[ \t]*\S", answer) is not None


def quoted(answer: str) -> bool:
    """Holds if all of it is between double quotation marks."""
    return len(answer) > 2 and answer[0] + answer[-1] in ('""', "\u201c\u201d")


def json_only(answer: str) -> bool:
    """Holds for a JSON object or list and nothing else, save a fence around it."""
    fence = re.fullmatch(r"```(?:json)?[ \t]*\n(.*)\n```", answer, re.DOTALL)
    try:
        return isinstance(json.loads(fence[1] if fence else answer), dict | list)
    except (ValueError, RecursionError):
        return False


def script(answer: str, *, text: str) -> bool:
    """Holds if there are letters, all of one alphabet by its Unicode name ("LATIN", "CYRILLIC", "CJK")."""
    letters = {character for character in answer if character.isalpha()}
    return bool(letters) and all(unicodedata.name(letter, "").startswith(text) for letter in letters)


CONSTRAINTS: dict[str, Callable[..., bool]] = {
    "exact_words": exact_words,
    "max_words": max_words,
    "min_words": min_words,
    "exact_sentences": exact_sentences,
    "max_sentences": max_sentences,
    "min_sentences": min_sentences,
    "exact_lines": exact_lines,
    "exact_paragraphs": exact_paragraphs,
    "paragraph_starts_with": paragraph_starts_with,
    "all_uppercase": all_uppercase,
    "all_lowercase": all_lowercase,
    "min_capital_words": min_capital_words,
    "max_capital_words": max_capital_words,
    "starts_with": starts_with,
    "ends_with": ends_with,
    "contains": contains,
    "not_contains": not_contains,
    "min_count": min_count,
    "max_count": max_count,
    "min_letters": min_letters,
    "max_letters": max_letters,
    "no_commas": no_commas,
    "no_digits": no_digits,
    "comma_separated": comma_separated,
    "repeat": repeat,
    "repeat_prompt": repeat_prompt,
    "one_of": one_of,
    "two_responses": two_responses,
    "bullets": bullets,
    "numbered_list": numbered_list,
    "title": title,
    "min_highlights": min_highlights,
    "min_placeholders": min_placeholders,
    "sections": sections,
    "postscript": postscript,
    "quoted": quoted,
    "json_only": json_only,
    "script": script,
}
