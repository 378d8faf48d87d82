"""Constraints on a text that a program can check, as a reader would count (ifeval.py has the published ones).

Each takes the answer, without white space around, and its fields. Words are what white space separates and
has a letter or digit, sentences end with ".", "!" or "?" before white space or the end, paragraphs are
separated by a blank line or by a rule of asterisks, lines count when they are not blank. What is counted or
asked for has a letter or digit: a sentence of a full stop, or an item of a dash, is none. Letter case counts
unless a constraint says otherwise, and a text at the start or end of something is not part of a longer word.
``script`` checks an answer's alphabet, not its language.
"""

import json
import re
import unicodedata
from collections.abc import Callable

from megatron_bar.verifiers.text import says_something

BULLET = re.compile(r"^(?![ \t]*([*-])(?:[ \t]*\1){2,}[ \t]*$)[ \t]*[*+-][ \t]+(?=.*[^\W_])", re.MULTILINE)
"""A line of three or more of one sign is a rule."""
NUMBERED = re.compile(r"^[ \t]*([0-9]+)[.)][ \t]+(?=.*[^\W_])", re.MULTILINE)
SENTENCE_END = re.compile(
    r"(?<![.!?])(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\bMrs)(?<!\bProf)(?<!\be\.g)(?<!\bi\.e)"
    r"[.!?]++[\"')\]*_]*+(?=\s|\Z)"
)
LIST_NUMBER = re.compile(r"^[ \t]*[0-9]+[.)](?=[ \t])", re.MULTILINE)
RULE = re.compile(r"^[ \t]*\*(?:[ \t]*\*){2}[ \t]*$", re.MULTILINE)
HIGHLIGHT = re.compile(r"(?<![\w*])(\*{1,3})(?![\s*])[^*\n]*[^\s*]\1(?![\w*])")


def sentences(text: str) -> int:
    """Counts sentences; a rest without a full stop is one more. A list's number ends none."""
    return sum(map(says_something, SENTENCE_END.split(LIST_NUMBER.sub("", text))))


def paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n[ \t]*\n", RULE.sub("\n\n", text)) if says_something(part)]


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def words(text: str) -> int:
    return sum(says_something(word) for word in text.split())


def starts(answer: str, text: str) -> bool:
    return re.match(rf"{re.escape(text)}{_edge(text[-1])}", answer) is not None


def ends(answer: str, text: str) -> bool:
    return answer.endswith(text) and re.search(rf"{_edge(text[0])}{re.escape(text)}\Z", answer) is not None


def _edge(character: str) -> str:
    return r"\b" if character.isalnum() else ""


def capitals(text: str) -> int:
    return sum(word.isupper() for word in text.split())


def exact_words(answer: str, *, n: int) -> bool:
    return words(answer) == n


def max_words(answer: str, *, n: int) -> bool:
    return words(answer) <= n


def min_words(answer: str, *, n: int) -> bool:
    return words(answer) >= n


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


def exact_parts(answer: str, *, n: int) -> bool:
    """Holds for n parts, none empty, with a rule of asterisks between."""
    parts = [part.strip() for part in RULE.split(answer)]
    return len(parts) == n and all(map(says_something, parts))


def paragraph_starts_with(answer: str, *, n: int, text: str) -> bool:
    """Holds if the n-th paragraph, counted from 1, starts with the text."""
    found = paragraphs(answer)
    return len(found) >= n and starts(found[n - 1], text)


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
    return starts(answer, text)


def ends_with(answer: str, *, text: str) -> bool:
    return ends(answer, text)


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
    return len(items) == n and all(map(says_something, items))


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
    return starts(answer, text) and answer != text


def one_of(answer: str, *, options: list) -> bool:
    """Holds for exactly one of the options, up to a full stop."""
    return answer.removesuffix(".") in {option.removesuffix(".") for option in options}


def two_responses(answer: str) -> bool:
    """Holds for two different texts with "******" between."""
    parts = [part.strip() for part in answer.split("******")]
    return len(parts) == 2 and all(map(says_something, parts)) and parts[0] != parts[1]


def bullets(answer: str, *, n: int) -> bool:
    """Holds for n lines that start with "*", "-" or "+"."""
    return len(BULLET.findall(answer)) == n


def numbered_list(answer: str, *, n: int) -> bool:
    """Holds if lines start with "1.", "2.", ... up to n, in order."""
    return NUMBERED.findall(answer) == [str(i) for i in range(1, n + 1)]


def title(answer: str) -> bool:
    """Holds if there is a title in <<double angle brackets>> anywhere."""
    return any(says_something(found) for found in re.findall(r"<<([^<>\n]+)>>", answer))


def min_highlights(answer: str, *, n: int) -> bool:
    """Holds for at least n parts between asterisks as Markdown has them: *one* or **two** around words."""
    return sum(says_something(match[0]) for match in HIGHLIGHT.finditer(answer)) >= n


def min_placeholders(answer: str, *, n: int) -> bool:
    """Holds for at least n [square brackets] with something in them."""
    return sum(says_something(found) for found in re.findall(r"\[([^\[\]\n]+)\]", answer)) >= n


def sections(answer: str, *, text: str, n: int) -> bool:
    """Holds if lines start with the text and a number: "Section 1", "Section 2", ... up to n, in order."""
    found = re.findall(rf"^[ \t#*]*{re.escape(text)}[ \t]+([0-9]+)\b", answer, re.MULTILINE)
    return found == [str(i) for i in range(1, n + 1)]


def postscript(answer: str, *, text: str) -> bool:
    """Holds if after the first line, a line starts with the text ("P.S.") and says something."""
    return re.search(rf"\n[ \t]*{re.escape(text)}(?=.*[^\W_])", answer) is not None


def quoted(answer: str) -> bool:
    """Holds if all of it is between double quotation marks, and the first closes at the end."""
    if len(answer) < 3 or answer[0] + answer[-1] not in ('""', "\u201c\u201d"):
        return False
    depth = 1
    for mark in re.finditer(r'(^|[\s(\[])?["\u201c]|["\u201d]', answer[1:-1].replace('\\"', "")):
        opens = mark[1] is not None or mark[0] == "\u201c"
        depth += 1 if opens else -1
        if depth == 0:
            return False
    return depth == 1


def json_only(answer: str) -> bool:
    """Holds for a JSON object or list and nothing else, save a fence around it."""
    fence = re.fullmatch(r"```(?:json)?[ \t]*\n(.*)\n```", answer, re.DOTALL | re.IGNORECASE)
    try:
        return isinstance(json.loads(fence[1] if fence else answer, parse_constant=_no_number), dict | list)
    except (ValueError, RecursionError):
        return False


def _no_number(name: str):
    raise ValueError(name)


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
    "exact_parts": exact_parts,
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
