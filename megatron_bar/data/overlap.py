"""Items of test sets in texts to learn from, by n-grams of words.

A text holds an item where it has 13 words of it in a row; of an item with fewer words (and at least
``SHORTEST``) all of them. Words are runs of letters and digits, in lower case, so punctuation and layout do
not hide an item.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

LENGTH = 13
"""Words in a row; as GPT-3's decontamination (arXiv 2005.14165)."""
SHORTEST = 6
"""Words of an item below which it says too little: "What is 7 + 5?"."""
_WORD = re.compile(r"[^\W_]+")


@dataclass
class KnownItems:
    """What must not be learnt: n-grams of test items, by the name of what they are from."""

    grams: dict[tuple[str, ...], str] = field(default_factory=dict)
    lengths: set[int] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    """Items by test set, those that are too short left out."""

    def add(self, name: str, texts: Iterable[str]) -> None:
        """Adds the items of the test set ``name``, a text each."""
        self.counts.setdefault(name, 0)
        for number, text in enumerate(texts):
            words = _words(text)
            length = min(len(words), LENGTH)
            if length < SHORTEST:
                continue
            self.counts[name] += 1
            self.lengths.add(length)
            for gram in _grams(words, length):
                self.grams.setdefault(gram, f"{name}:{number}")

    def found(self, text: str) -> str | None:
        """Returns an item that ``text`` holds (its test set and number, from 0), or None."""
        words = _words(text)
        for length in self.lengths:
            for gram in _grams(words, length):
                if gram in self.grams:
                    return self.grams[gram]
        return None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(words: list[str], length: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[at : at + length]) for at in range(len(words) - length + 1))
