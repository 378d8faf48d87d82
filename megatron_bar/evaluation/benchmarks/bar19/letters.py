"""The letter that an answer to a multiple-choice question gives, by oe-eval's rules for OLMo 3.

The first rule that is found anywhere decides, by its last place. Loose as the later ones are ("clearly"
behind "the answer is" reads as C), they are the published ones, but for the tenth: oe-eval's also finds
capital letters inside words. Two further ones of its own find nothing that the ninth does not.
"""

import re
from collections import deque

from megatron_bar.errors import BarError
from megatron_bar.evaluation.benchmarks.benchmark import Grade

DIFFERS = "a capital letter inside a word is no answer"
_EXACT = r"Therefore, the answer is \(([A-X])\)"
_RULES = (
    r"(?i)therefore,?\s*the\s*answer\s*is:?\s*\(?ANSWER\b",
    r"(?i)so\s+the\s+answer\s+is\s+ANSWER",
    r"(?i)the\s+correct\s+answer\s+is:?\s*ANSWER",
    r"(?i)the\s+answer\s+is\s+ANSWER",
    r"(?i)a:\s*ANSWER",
    r"(?i)answer:\s*ANSWER",
    r"(?i)\bANSWER\)?\s+is\s+correct",
    r"(?i)\(ANSWER\)",
    r"(?i)\bANSWER\b",
    r"(?<![^\W_])ANSWER(?![^\W_])",
)


def _rules(last: str) -> tuple[re.Pattern, ...]:
    loose = (rule.replace("ANSWER", rf"\(?([A-{last}])\)?") for rule in _RULES)
    return tuple(map(re.compile, (_EXACT.replace("X", last), *loose)))


_UP_TO = {last: _rules(last) for last in "DF"}


def letter(answer: str, last: str = "D", *, exact: bool = True) -> tuple[str, int]:
    """Returns the letter from A to ``last`` (D or F) that an answer gives, "" for none, and the number of the
    rule that found it: 0 for the sentence that was asked for, which only ``exact`` tries, 1 to 10."""
    for number, rule in enumerate(_UP_TO[last]):
        if (exact or number) and (found := deque(rule.finditer(answer), maxlen=1)):
            return found[0][1].upper(), number
    return "", 0


def graded(answer: str, right: object, last: str = "D", *, exact: bool = True) -> Grade:
    """Returns 1 for the letter ``right``. Raises BarError unless that is one from A to ``last``."""
    if not (isinstance(right, str) and len(right) == 1 and "A" <= right <= last):
        raise BarError(f"right choice: expected a letter from A to {last}, found {right!r:.100}")
    found, rule = letter(answer, last, exact=exact)
    return Grade(score=float(found == right), detail={"answer": found, "rule": rule})
