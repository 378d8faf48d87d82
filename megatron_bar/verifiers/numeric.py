"""Numeric: the number that answers a question, as of grade-school data sets (GSM8K, arXiv 2110.14168).

truth = a number, or a text that is one or ends with "#### number" as the data set's solutions do. Where the
answer stands: extract.py (so "####", a box or a label), and there only known words may stand beside the
number; without a mark it is the last number of the text, unless the word beside it changes it ("5 millions",
"less than 42"). How it may be written: literal.py; values are exact: "0.33" is not 1/3. Quirk: without a mark
a worked solution that ends in a remark with a number is graded by the remark.
"""

import math
from fractions import Fraction

from megatron_bar.errors import BarError
from megatron_bar.verifiers import extract
from megatron_bar.verifiers.literal import LONGEST, last_number, literal, number
from megatron_bar.verifiers.notation import plain


def verify(response: str, truth) -> float:
    wanted = check(truth)
    marked = extract.marked(response)
    if marked is None:
        found = literal(plain(last_number(extract.unmarked(response))))
    else:
        found = number(plain(marked))
    return float(found == wanted)


def check(truth) -> Fraction:
    wanted = None
    if isinstance(truth, str):
        wanted = literal(plain(truth[-LONGEST:].rsplit("####", 1)[-1].strip().split("\n", 1)[0]))
    elif isinstance(truth, int | float) and not isinstance(truth, bool) and math.isfinite(truth):
        wanted = Fraction(str(truth))
    if wanted is None:
        raise BarError(f"numeric truth: expected a number, found {truth!r:.200}")
    return wanted
