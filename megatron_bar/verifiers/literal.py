r"""Numbers written out: "42", "-1,234.50", "3/4", "\frac{3}{4}", "1 1/2", "50%", "90^\circ"; no operators.

The math and numeric verifiers accept nothing else for a number: a question copied back ("3 * 4 + 5") holds
its answer too. Words around a number must come from two lists, for most words change what it says ("less than
42", "5 millions"), and nobody can list those. Values are exact fractions.
"""

import re
from fractions import Fraction

_UNSIGNED = (
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,2}(?![0-9]))?"
)
_FRAC = re.compile(
    rf"(?P<digit>[0-9])?\s*\\[dt]?frac\s*(?:\{{\s*(-?{_UNSIGNED})\s*\}}\s*\{{\s*({_UNSIGNED})\s*\}}"
    r"|([0-9])\s*([0-9]))"
)
NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?P<whole>[0-9]+)\s+(?P<part>[0-9]+)\s*/\s*(?P<parts>[0-9]+)"
    rf"|(?P<top>{_UNSIGNED})(?:\s*/\s*(?P<under>{_UNSIGNED}))?)"
)
IN_TEXT = re.compile(
    rf"(?:(?<![\w).])[-+])?(?:(?<![\w.]){_UNSIGNED}(?:/{_UNSIGNED})?"
    rf"|\\[dt]?frac\{{{_UNSIGNED}\}}\{{{_UNSIGNED}\}})"
)
"""A number in running text: the minus of "10-3" is no sign, the 2 of "H2" no number."""
LONGEST = 300
"""Characters; no honest number is longer, and Python refuses to read integers of more than 4300 digits."""

LEAD = frozenset(
    """a all altogether amount an and answer are area as be cost costs count difference distance
    equal equals exactly final gave gets got had has have he height her his in is it it's its just
    left length makes my number of only our pay pays perimeter price probability product remain
    result sale she so sold spent sum that the their then there therefore these they this thus to
    total value volume was we were will you""".split()
)
UNITS = frozenset(
    """acre adult animal apartment apple baby bag ball balloon banana barrel bead bean bee bird
    block boat book bottle bowl box boy bracelet bread brick bus byte cake calorie candies candle
    candy car card cat celsius cent center centimeter centimetre chair chicken child children
    chocolate choice city class classmate cm coin color combination cookie cow crayon cup customer
    day degree desk digit dime dog doll dollar door dress egg element elephant employee eraser euro
    family feet fish flower foot friend fruit g gallon game girl glass gram guest hat hen hour
    house inch item jar joule kg kid kilogram kilometer kilometre km kmh lb leg lemon letter liter
    litre lollipop m man marble match men meter metre mg mile minute ml mm monkey month mouse mph
    night number orange ounce outcome oz page panda paper part party path peach pear pen pencil
    penny people percent permutation person photo picture piece pig pint pizza plant plate player
    point potato pound problem puppy question rabbit radian ribbon room rose route row sandwich
    seat sec second seed sheep shell shirt shoe side slice solution song stamp star step sticker
    story student sweet table task teacher team ticket tile tomato ton toy train tree trip truck
    unit usd value vase visitor volt watt way week wheel window woman women word worker yard year
    yen yuan zebra""".split()
)
"""Singular; an ending s or es is taken off. Not in it: whatever counts in parts or bundles."""
BETWEEN = frozenset(
    """a all altogether an away each for her him his in left long my of old per remaining the their
    total""".split()
)
MODIFIED = re.compile(r"(?:square|cubic|sq|cu)")
UNIT_POWER = re.compile(r"\^(?:[23]|\{[23]\})|[\u00b2\u00b3]")
WORD = re.compile(r"[A-Za-z][A-Za-z']*")
CHANGED_BEFORE = frozenset(
    """about above almost and anything approximately around at barely below between beside besides
    beyond but by except exceeding excluding exceeds from half hardly least less minus more most
    nearly negative neither never no nor not nothing or other over per plus than times to under
    unlike unless until versus vs without wrong""".split()
)
CHANGED_AFTER = frozenset(
    """and billion billions cubed divided dozen dozens factorial half halves hundred hundreds
    million millions minus modulo mod nine nines or pairs percentage plus quarter quarters squared
    third thirds thousand thousands times to trillion trillions fifth fifths tenth tenths twelfths
    sixth sixths eighth eighths point""".split()
)
"""Words for running text, where anything may stand around a number: next best to a list of what may."""


def literal(text: str) -> Fraction | None:
    """Returns the number that is all of ``text``, cleaned; with sign, thousands and fraction bar."""
    match = NUMBER.fullmatch(_plain_fractions(text).strip()) if len(text) <= LONGEST else None
    return _value(match) if match else None


def number(text: str) -> Fraction | None:
    """Returns the number of a final answer, cleaned; None where unknown words stand around it.

    The last side of "12 - 5 = 7" and of "x = 7" counts; sides that are other numbers ("7 = 8") make it None.
    """
    if len(text) > LONGEST:
        return None
    *lefts, last = _plain_fractions(text).split("=")
    value = _with_words(last)
    if value is None or any(literal(left) not in (None, value) or not _is_side(left) for left in lefts):
        return None
    return value


def last_number(text: str) -> str:
    """Returns the last number of running text; "" if there is none, or words or numbers beside it change
    it."""
    matches = list(IN_TEXT.finditer(text))
    if not matches or len(matches[-1][0]) > LONGEST:
        return ""
    start, end = matches[-1].span()
    sentence = re.split(r"[.!?]\s|\n", text[max(0, start - LONGEST) : start])[-1]
    sentence = sentence.lower().replace("\u2019", "'")
    clause = re.split(r"[0-9]|\b(?:is|are|was|equals|gives|makes|leaves)\b", sentence)[-1]
    before = WORD.findall(clause)[-3:]
    after = re.match(r"[\s*$%}\])-]*([A-Za-z]*)", text[end : end + 40])[1].lower()
    changing = CHANGED_BEFORE - {"to", "and", "by", "from"}
    if after in CHANGED_AFTER or any(word in changing or word.endswith("n't") for word in before):
        return ""
    sides = re.search(r"[-0-9.,=\s+*/^()]*\Z", text[max(0, start - LONGEST) : start])[0].split("=")
    others = [literal(side) for side in sides[:-1]] if not sides[-1].strip() else []
    agreed = all(other in (None, literal(matches[-1][0])) for other in others)
    return matches[-1][0] if agreed else ""


def _is_side(text: str) -> bool:
    """Returns whether ``text`` may stand left of "=": no inequality, list or denial may."""
    if not text.strip() or text.rstrip()[-1] in "<>!~:\u2260":
        return False
    if re.search(r",\s|;|\\n(?:e|eq|ot)(?![a-z])", text):
        return False
    changing = CHANGED_BEFORE - {"to", "per"}
    return not any(word.lower() in changing or word.endswith("n't") for word in WORD.findall(text))


def _with_words(text: str) -> Fraction | None:
    text = text.strip()
    start = re.match(r"(?:[A-Za-z']+:?\s+)*", text).end()
    match = NUMBER.match(text, start)
    if not match or not all(word.lower() in LEAD for word in WORD.findall(text[:start])):
        return None
    return _value(match) if _is_unit(text[match.end() :]) else None


def _is_unit(text: str) -> bool:
    text = re.sub(r"^\s*(?:\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree|\u00b0\s*[CF]?|%)", "", text)
    words = UNIT_POWER.sub("", text.strip().rstrip(".,")).replace("/", " per ").split()
    for i, word in enumerate(words):
        bare = word.lower()
        forms = (bare, bare.removesuffix("s"), bare.removesuffix("es"))
        known = any(form in UNITS for form in forms) and bare != "s"
        modifier = MODIFIED.fullmatch(bare) and i + 1 < len(words)
        if not (known or modifier or bare in BETWEEN):
            return False
    return True


def _value(match: re.Match) -> Fraction | None:
    top = match["part"] or match["top"]
    under = match["parts"] or match["under"] or "1"
    top, under, whole = (Fraction(part.replace(",", "")) for part in (top, under, match["whole"] or "0"))
    if under == 0:
        return None
    value = whole + top / under
    return -value if match["sign"] == "-" else value


def _plain_fractions(text: str) -> str:
    r"""Writes a/b for \frac{a}{b}, which after a digit is a mixed number: "1 1/2"."""

    def plain(match: re.Match) -> str:
        digit, *parts = match.groups()
        return (f"{digit} " if digit else "") + "/".join(part for part in parts if part)

    return _FRAC.sub(plain, text)
