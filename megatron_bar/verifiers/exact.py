"""Exact match: equal up to case, white space, one final full stop, and Markdown or quotation marks around it.

truth = a text. The answer is what stands in the last pair of <answer> tags, else all of the response. Quirk:
the sets whose verifier is called string_matcher (open-instruct) ask for the tags, and their own grader gives
nothing without them and also drops articles and all punctuation; here tags are not required, and "the" and
commas count.
"""

import re

from megatron_bar.errors import BarError

LAYERS = 3
WRAPPED = re.compile(
    r"(\*{1,3}|__|_|`)(?!\s)((?:(?!\1).)+)(?<!\s)\1|\"([^\"]+)\"|\u201c([^\u201c\u201d]+)\u201d", re.DOTALL
)


def verify(response: str, truth) -> float:
    wanted, answer = normalise(check(truth)), normalise(tagged(response))
    for _ in range(LAYERS):
        wrapped = WRAPPED.fullmatch(answer)
        if answer == wanted or not wrapped:
            break
        answer = normalise(wrapped[2] or wrapped[3] or wrapped[4])
    return float(answer == wanted)


def check(truth) -> str:
    if not isinstance(truth, str) or not normalise(truth):
        raise BarError(f"exact truth: expected a text, found {truth!r:.200}")
    return truth


def tagged(response: str) -> str:
    """Returns what the last <answer> holds, the whole text where no pair of tags ends with it."""
    inside, closed, _ = response.rpartition("<answer>")[2].partition("</answer>")
    return inside if closed and "<answer>" in response else response


def normalise(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()
