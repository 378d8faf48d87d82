"""Numeric: the last number of an answer, as grade-school data sets (GSM8K, arXiv 2110.14168) are scored.

truth = a number, or a text that is one or ends with "#### number" as the data set's solutions do. The answer
is what follows the last "####" on its line, where only known words may stand beside the number, or else the
last number of the text, unless the word beside it changes it ("5 millions", "less than 42"). "42.0" = 42 =
"$42" = "42%"; "$1,234.50" = 1234.5; values are exact: "0.33" is not 1/3. Quirk: without "####" a worked
solution that ends in a remark with a number is graded by the remark.
"""

import math
from fractions import Fraction

from megatron_bar.errors import BarError
from megatron_bar.verifiers.literal import LONGEST, last_number, literal, number

TAIL = 20_000
"""Characters of a response that are searched: a final answer stands at the end."""
ORNAMENTS = str.maketrans({"\u2212": "-", "\u2013": "-"} | dict.fromkeys("$\u20ac\u00a3\u00a5*`_\\"))


def verify(response: str, truth) -> float:
    wanted = check(truth)
    text = _clean(response[-TAIL:])
    marked = text.rfind("####")
    if marked >= 0:
        found = number(_line(text[marked + 4 :]))
    else:
        found = literal(last_number(text))
    return float(found == wanted)


def check(truth) -> Fraction:
    wanted = None
    if isinstance(truth, str):
        wanted = literal(_line(_clean(truth[-LONGEST:].rsplit("####", 1)[-1])))
    elif isinstance(truth, int | float) and not isinstance(truth, bool) and math.isfinite(truth):
        wanted = Fraction(str(truth))
    if wanted is None:
        raise BarError(f"numeric truth: expected a number, found {truth!r:.200}")
    return wanted


def _line(text: str) -> str:
    return text.strip().split("\n", 1)[0].strip().removesuffix(".").removesuffix("%")


def _clean(text: str) -> str:
    return text.translate(ORNAMENTS).replace("frac{", "\\frac{")
