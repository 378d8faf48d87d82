"""The constraints of IF-RLVR (arXiv 2507.02833) beyond IFEval's, by their published names and arguments.

As open-instruct grades them, and to the letter too: words of NLTK count punctuation, a palindrome may be "a".
Sentences end at every ".", "!" and "?" but those of titles, initials and numbers; open-instruct knows more.
"""

import itertools
import re
from collections.abc import Callable

from megatron_bar.verifiers.ifeval import Relation, frequency, holds, letter_frequency, words

SENTENCE = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St)\.|\d\.(?=\d)|(?<=\s)[A-Za-z]\.(?=\s)|[^.?!])++[.?!]*[\"\u201d]?|[.?!]+"
)


def sentences(text: str) -> list[str]:
    found = [sentence.strip() for sentence in SENTENCE.findall(text.replace("\n", " "))]
    return [sentence for sentence in found if sentence]


def repeat_phrase(text: str, *, phrase: str, small_n: int) -> bool:
    """Holds if the phrase occurs n times, each with one of its inner words replaced."""
    wanted = phrase.split()
    first, last = wanted[0], wanted[-1]
    # The shortest from a first word to the next last word, in its line; behind the line's last one is none.
    lines = [line[: line.rfind(last) + len(last)] for line in text.split("\n") if last in line]
    found = re.findall(rf"{re.escape(first)} .*? {re.escape(last)}", "\n".join(lines))
    changed = [sum(a != b for a, b in zip(part.split(), wanted, strict=False)) for part in found]
    whole = all(len(part.split()) == len(wanted) for part in found)
    return len(found) == small_n and whole and all(count == 1 for count in changed)


def copy(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower() == prompt_to_repeat.strip().lower()


def copy_span_idx(text: str, *, prompt_to_repeat: str, n_end: int, n_start: int = 0) -> bool:
    return copy(text, prompt_to_repeat=prompt_to_repeat[n_start:n_end])


def copying_multiple(text: str, *, prompt_to_repeat: str, N: int) -> bool:
    parts = text.split("******")
    return len(parts) == N and all(copy(part, prompt_to_repeat=prompt_to_repeat) for part in parts)


def sentence_hyphens(text: str) -> bool:
    """Holds if hyphens and nothing else stand between sentences."""
    said = sentences(text.replace("-", " "))
    return all(a == b for a, b in zip(text.split("-"), said, strict=False))


def no_adjacent_consecutive(text: str) -> bool:
    """Holds if no word starts with the letter that follows, in the alphabet, that of the word before."""
    first = [word[0].lower() for word in text.split()]
    return all(len(a) == len(b) == 1 and ord(b) - ord(a) != 1 for a, b in itertools.pairwise(first))


def square_brackets(text: str) -> bool:
    return all(word.startswith("[") and word.endswith("]") for word in text.split())


def bigram_wrapping(text: str) -> bool:
    said = text.split()
    return all(a.startswith("<<") and b.endswith(">>") for a, b in zip(said[::2], said[1::2], strict=False))


def word_once(text: str, *, keyword: str) -> bool:
    return _count(text, keyword) == 1


def count_increment_word(text: str, *, keyword1: str, keyword2: str) -> bool:
    return _count(text, keyword1) == 1 and _count(text, keyword2) == 2


def _count(text: str, keyword: str) -> int:
    return len(re.findall(keyword.strip(), text, re.IGNORECASE))


def exclude_word_harder(text: str, *, keyword: str, instruction: str = "") -> bool:
    return f" {keyword.strip()} " not in text


def paragraphs(text: str) -> bool:
    return _two(text.split("***"))


def paragraphs2(text: str) -> bool:
    return _two(text.split("\n\n"))


def _two(parts: list[str]) -> bool:
    said = [part.strip() for part in parts]
    return all(said[1:-1]) and sum(part != "" for part in said) == 2


def first_word_sent(text: str, *, first_word: str) -> bool:
    return all(first_word_answer(sentence, first_word=first_word) for sentence in sentences(text))


def first_word_answer(text: str, *, first_word: str) -> bool:
    return text.split()[:1] != [] and text.split()[0].lower() == first_word.strip().lower()


def last_word_sent(text: str, *, last_word: str) -> bool:
    return all(last_word_answer(sentence, last_word=last_word) for sentence in sentences(text))


def last_word_answer(text: str, *, last_word: str) -> bool:
    last = text.split()[-1:]
    return last != [] and re.sub(r"[^\w\s]", "", last[0]).lower() == last_word.strip().lower()


def punctuation_dot(text: str) -> bool:
    return "." not in text


def punctuation_exclamation(text: str) -> bool:
    return "!" not in text


def lowercase_counting(text: str, *, N: int) -> bool:
    return len(re.findall(r"\b[a-z]+\b", text)) <= N


def letter_counting(text: str, *, N: int, relation: Relation) -> bool:
    return holds(len(re.findall("[a-zA-Z]", text)), relation, N)


def counting_composition(text: str, *, n_sent: int, n_words: int) -> bool:
    """Holds for three parts with ``***`` between, each of so many sentences of so many words."""
    parts = [part.strip() for part in text.split("***")]
    return len(parts) == 3 and all(
        len(said) == n_sent and all(len(words(sentence)) == n_words for sentence in said)
        for said in map(sentences, parts)
    )


def count_unique(text: str) -> bool:
    said = words(text)
    return len(said) == len(set(said))


def palindrome(text: str) -> bool:
    return any(word == word[::-1] for word in text.split())


def keyword_specific_position(text: str, *, keyword: str, n: int, m: int) -> bool:
    """Holds if the m-th word of the n-th sentence, counted from 1, is the keyword."""
    said = sentences(text)
    return len(said) >= n and words(said[n - 1])[m - 1 : m] == [keyword.strip()]


def start_end(text: str) -> bool:
    said = words(text)
    return len(said) > 1 and said[0].lower() == said[-1].lower()


IF_RLVR: dict[str, Callable[..., bool]] = {
    "copy:repeat_phrase": repeat_phrase,
    "copy:copy": copy,
    "copy:copying_simple": copy,
    "copy:copying_multiple": copying_multiple,
    "new:copy_span_idx": copy_span_idx,
    "detectable_format:sentence_hyphens": sentence_hyphens,
    "detectable_format:square_brackets": square_brackets,
    "detectable_format:bigram_wrapping": bigram_wrapping,
    "keywords:no_adjacent_consecutive": no_adjacent_consecutive,
    "keywords:word_once": word_once,
    "keywords:word_count_different_numbers": frequency,
    "keywords:exclude_word_harder": exclude_word_harder,
    "keywords:palindrome": palindrome,
    "keywords:keyword_specific_position": keyword_specific_position,
    "keywords:start_end": start_end,
    "paragraphs:paragraphs": paragraphs,
    "paragraphs:paragraphs2": paragraphs2,
    "first_word:first_word_sent": first_word_sent,
    "first_word:first_word_answer": first_word_answer,
    "last_word:last_word_sent": last_word_sent,
    "last_word:last_word_answer": last_word_answer,
    "punctuation:punctuation_dot": punctuation_dot,
    "punctuation:punctuation_exclamation": punctuation_exclamation,
    "letters:letter_counting": letter_counting,
    "letters:letter_counting2": letter_frequency,
    "count:lowercase_counting": lowercase_counting,
    "count:counting_composition": counting_composition,
    "count:count_unique": count_unique,
    "count:count_increment_word": count_increment_word,
}
PACKAGES = dict.fromkeys(
    (
        "keywords:keyword_specific_position",
        "keywords:start_end",
        "count:counting_composition",
        "count:count_unique",
    ),
    "nltk",
)
"""Packages that constraints need."""
