r"""Numbers written out: "42", "-1,234.50", "115 000", "3/4", "\frac{3}{4}", "\frac34", "1 1/2", "50%",
"90^\circ", "1.5 \times 10^3", "10^6", "0.1\overline{6}"; no operators.

The math and numeric verifiers accept nothing else for a number: a question copied back ("3 * 4 + 5") holds
its answer too. Powers of ten are notation, other powers are not. Words around a number must come from two
lists, for most words change what it says ("less than 42", "5 millions"), and nobody can list those; inside
\text{...} behind a number, where units stand, all words pass but those known to change it. Values are exact
fractions.
"""

import re
from fractions import Fraction

from megatron_bar.verifiers.words import (
    BETWEEN,
    CHANGED_AFTER,
    CHANGED_BEFORE,
    LEAD,
    MEASURES,
    MODIFIED,
    SYMBOLS,
    UNITS,
)

_PLAIN = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
_UNSIGNED = rf"{_PLAIN}(?:[eE][-+]?[0-9]{{1,2}}(?![0-9]))?"
_FRACTION = re.compile(
    rf"(?:(?P<digit>[0-9])\s*)?\\frac\{{\s*(?P<top>[-+]?\s*{_UNSIGNED})\s*\}}\{{\s*(?P<under>[-+]?\s*{_UNSIGNED})\s*\}}"
)
_SPACED = re.compile(r"(?<![0-9.,/^{])[0-9]{1,3}(?: [0-9]{3})+(?![0-9/,])")
NUMBER = re.compile(
    rf"(?P<sign>[-+])?\s*(?:"
    rf"(?P<whole>[0-9]+)\s+(?P<part>[0-9]+)\s*/\s*(?P<parts>[0-9]+)"
    r"|(?P<once>[0-9]*)\.(?P<then>[0-9]*)(?:\\(?:overline|bar|dot)\s*(?:\{(?P<period>[0-9]+)\}|(?P<figure>[0-9]))"
    r"|\((?P<enclosed>[0-9]+)\))"
    rf"|(?:(?P<mantissa>{_PLAIN})\s*(?:\\times|\\cdot|\*|x)\s*)?10\s*\^\s*(?:\{{\s*(?P<power>[-+]?[0-9]{{1,3}})\s*\}}"
    r"|(?P<digits>-?[0-9]{1,3}))(?![0-9])"
    rf"|(?P<top>{_UNSIGNED})(?:\s*/\s*(?P<under>-?{_UNSIGNED}))?)"
)
IN_TEXT = re.compile(
    rf"(?:(?<![\w).}}])[-+])?(?:(?<![\w.])(?:{_PLAIN}\s*(?:\\times|\\cdot|\u00d7)\s*)?10\^(?:\{{-?[0-9]{{1,3}}\}}|[0-9]{{1,3}})"
    rf"|(?<![\w.^{{\\/]){_UNSIGNED}(?:/{_UNSIGNED})?"
    rf"|\\[dt]?frac\{{{_UNSIGNED}\}}\{{{_UNSIGNED}\}})"
)
"""A number in running text: the minus of "10-3" is no sign, the 2 of "H2" or of "\\sqrt{2}" no number."""
APPLIED = re.compile(
    r"\\(?:sqrt|log|ln|exp|sin|cos|tan|cot|sec|csc|pi|times|cdot|div|pm|ne|neq|[lg]eq?|lt|gt)(?:_\{?\w+\}?)?\s*\Z"
    r"|\w\(\s*\Z|(?:\b[A-Za-z]|[)}\]])\s*[-+*/]\s*\Z|(?<!<)(?<!</)\b\w{1,20}\s*[<>]=?\s*\Z|[\u2248~]\s*\Z"
    r"|\bup\s+to\s*\Z|\bbetween\s+\S{1,20}\s+and\s*\Z",
    re.IGNORECASE,
)
"""What is done to a number in running text."""
ASIDE = re.compile(r"(?<=[\w*)%}])\s*\((?!\s*(?:mod|base|or|and|not|to)\b)[^()]*[\s%][^()]*\)[\s.*]*\Z")
"""What a text adds to its number: "72 clips (48 in April and 24 in May)"."""
STEP = re.compile(
    r"(?:^|\n)[ \t*#_]*"
    r"(?:(?:step|part|case|question|problem|example|exercise|section|chapter|task|note)\s*)?\Z",
    re.IGNORECASE,
)
"""Before a number that counts lines, if a colon, full stop or bracket and words follow."""
LONGEST = 300
"""Characters; no honest number is longer, and Python refuses to read integers of more than 4300 digits."""

DEGREES = re.compile(
    r"^\s*(?:\^?\s*\\circ|\^\s*\{\s*\\circ\s*\}|\\degree)\s*(?:\\text\{\s*[CF]\s*\}|[CF]\b)?"
)
UNIT_POWER = re.compile(r"(?<=[A-Za-z}])\^\s*(?:-?[0-9]|\{\s*-?[0-9]\s*\})")
WORD = re.compile(r"[A-Za-z][A-Za-z']*")


def literal(text: str) -> Fraction | None:
    """Returns the number that is all of ``text``, in plain notation (notation.py)."""
    match = NUMBER.fullmatch(_spelled(text).strip()) if len(text) <= LONGEST else None
    return _value(match) if match else None


def number(text: str) -> Fraction | None:
    """Returns the number of a final answer, in plain notation; None where unknown words stand around it.

    The last side of "12 - 5 = 7" and of "x = 7" counts; sides that are other numbers ("7 = 8") make it None.
    """
    if len(text) > LONGEST:
        return None
    *lefts, last = _spelled(text).split("=")
    match, _ = _with_words(last)
    value = _value(match) if match else None
    if value is None or any(literal(left) not in (None, value) or not _is_side(left) for left in lefts):
        return None
    return value


def units_differ(one: str, other: str) -> bool:
    """Returns whether two numbers with units are of different units: 5 km is not 5 m, but 5 may be."""
    sides = [_spelled(text).split("=")[-1] for text in (one, other)]
    powers = [re.findall(r"(?<=[A-Za-z}])\^\s*\{?\s*(-?[0-9])", side) for side in sides]
    measures = [_measure(side) for side in sides]
    return None not in measures and (measures[0] != measures[1] or (all(powers) and powers[0] != powers[1]))


def is_in_cents(text: str) -> bool:
    return _measure(_spelled(text).split("=")[-1]) == ["cent"]


def last_number(text: str) -> str:
    """Returns the last number of running text; "" if there is none, or words or numbers beside it change
    it."""
    aside = ASIDE.search(text[-LONGEST:])
    if aside and re.search("[0-9]", text[-LONGEST:][: aside.start()].rsplit("\n", 1)[-1]):
        text = text[-LONGEST:][: aside.start()]
    ends = [match.end() for match in re.finditer("[0-9]", text)]
    if not ends:
        return ""
    text = _ornaments_off(text[max(0, ends[-1] - 2 * LONGEST) : ends[-1] + 40])
    matches = list(IN_TEXT.finditer(text))
    if not matches or len(matches[-1][0]) > LONGEST:
        return ""
    start, end = matches[-1].span()
    if STEP.search(text[:start]) and re.match(r"[*_]*[:.)][*_]*\s+[A-Za-z]", text[end:]):
        return ""
    sentence = re.split(r"[.!?]\s|\n", text[:start])[-1]
    sentence = sentence.lower()
    clause = re.split(r"[0-9]|\b(?:is|are|was|equals|gives|makes|leaves)\b", sentence)[-1]
    before = WORD.findall(clause)[-3:]
    changing = CHANGED_BEFORE - {"to", "and", "by", "from"}
    if any(word in changing or word.endswith("n't") for word in before):
        return ""
    if _is_changed(text[end:]) or APPLIED.search(text[:start]) or _in_argument(text[:start]):
        return ""
    sides = re.search(r"[-0-9.,=\s+*/^()]*\Z", text[:start])[0].split("=")
    others = [literal(side) for side in sides[:-1]] if not sides[-1].strip() else []
    agreed = all(other in (None, literal(matches[-1][0])) for other in others)
    return matches[-1][0] if agreed else ""


def without_lead(text: str) -> str:
    """Takes off the words that lead to an answer: "The value is x" is x."""
    lead = re.match(r"(?:[A-Za-z']{2,}:?\s+|a\s+(?=[A-Za-z']{2}))*", text)[0]
    known = all(word.lower() in LEAD for word in WORD.findall(lead))
    return text[len(lead) :] if known else text


def without_units(text: str) -> str:
    """Takes off the units behind an expression."""
    wrapped = re.search(r"\s*\\text\{([^{}]*)\}(?:\^\s*(?:[0-9]|\{[^{}]*\}))?\s*\Z", text)
    if wrapped and wrapped.start() and text[wrapped.start() - 1] != "_" and _are_units(wrapped[1]):
        return text[: wrapped.start()]
    words = re.search(r"(?:\s+[A-Za-z]{2,}\.?)+(?:\^\s*[23])?\s*\Z", text)
    return text[: words.start()] if words and words.start() and _is_unit(words[0]) else text


def _ornaments_off(text: str) -> str:
    """Takes the signs of money, mathematics and Markdown off running text."""
    text = text.replace("\u2212", "-").replace("\u2013", "-").replace("\u2019", "'").replace("{,}", ",")
    return re.sub(r"[$\u20ac\u00a3\u00a5`]|\\[$()\[\]!]", "", text)


def _is_changed(after: str) -> bool:
    """Returns whether what follows a number in running text makes it another one: a word, a factor."""
    if re.match(r"-ish\b|\s*(?:[\^!_]|\\(?!text|mathrm|mbox|q?quad|circ|degree|[ ,;%]))|\(|[A-Za-z]", after):
        adjacent = re.match(r"[A-Za-z]+", after)
        return not adjacent or not _is_unit(adjacent[0])
    word = re.match(r"[\s*%}\])-]*([A-Za-z]*)", after)[1].lower()
    return word in CHANGED_AFTER or word.endswith(("illion", "illions"))


def _in_argument(before: str) -> bool:
    r"""Returns whether what follows ``before`` stands in an argument of LaTeX, as the 2 of "x^{n+2}"."""
    depth = 0
    for i in reversed(range(len(before))):
        depth += (before[i] == "}") - (before[i] == "{")
        if depth < 0:
            return not re.search(r"\\(?:text|math|m?box)[a-z]*\s*\Z", before[:i])
    return False


def _is_side(text: str) -> bool:
    """Returns whether ``text`` may stand left of "=": no inequality, list or denial may."""
    if not text.strip() or text.rstrip()[-1] in "<>!~:\u2260":
        return False
    if re.search(r",\s|,[A-Za-z]|;|\\n(?:e|eq|ot)(?![a-z])", text):
        return False
    changing = CHANGED_BEFORE - {"to", "per"}
    if any(word.lower() in changing or word.endswith("n't") for word in WORD.findall(text)):
        return False
    return _is_named_or_worked_out(text)


def _is_named_or_worked_out(text: str) -> bool:
    """Returns whether ``text`` is a name ("x_1", "f(2)", "the total", "a + b") or a calculation without
    one: "x^2 = 5" and "2x = 5" say something else than 5, and "x = 4 / x = 5" says two things."""
    if re.fullmatch(r"\s*[A-Za-z]\([^()=]*\)\s*", text):
        return True
    text = re.sub(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"_(?:\{\w+\}|\w)", "", text)
    text = re.sub(r"\\(?:[dt]?frac|times|cdot|div|left|right|%|\$)", " ", text)
    text = text.replace("\\sqrt", "0")
    if re.search(r"[\\|&?~]", text):
        return False
    text = re.sub(
        r"(?<=[0-9])\s+[A-Za-z](?![\w'])", lambda unit: "" if unit[0].strip() in UNITS else unit[0], text
    )
    names = [word for word in WORD.findall(text) if len(word) == 1 and word not in ("a", "A", "I")]
    return not names or not re.search("[0-9]|^\\s*-", text)


def _with_words(text: str) -> tuple[re.Match | None, str]:
    """Returns the number that ``text`` is but for known words, and the words behind it."""
    text = re.sub(r"^\s*\\text\{([^{}0-9]*)\}", r"\1 ", text).strip()
    start = re.match(r"(?:[A-Za-z']+:?\s+)*", text).end()
    match = NUMBER.match(text, start)
    if not match or not all(word.lower() in LEAD for word in WORD.findall(text[:start])):
        return None, ""
    unit = text[match.end() :]
    return (match, unit) if _is_unit(unit) else (None, "")


def _measure(text: str) -> list[str] | None:
    """Returns the units behind a number as MEASURES names them; None without, or with others."""
    words = WORD.findall(UNIT_POWER.sub("", _with_words(text)[1]).replace("/", " per ").replace("\\text", ""))
    named = [MEASURES.get(_singular(word, MEASURES), word if word == "per" else "") for word in words]
    return named if named and all(named) else None


def _singular(word: str, known) -> str:
    forms = (word.lower(), word.lower().removesuffix("s"), word.lower().removesuffix("es"))
    return next((form for form in forms if form in known and form), "")


def _is_unit(text: str) -> bool:
    text = DEGREES.sub("", text)
    text = UNIT_POWER.sub("", text)
    text = re.sub(r"\\text\{([^{}]*)\}", lambda roman: " " if _are_units(roman[1]) else " ? ", text)
    words = text.strip().lstrip("%").rstrip(".,").replace("/", " per ").split()
    for i, word in enumerate(words):
        bare = word.lower()
        modifier = MODIFIED.fullmatch(bare.rstrip(".")) and i + 1 < len(words)
        known = word in UNITS if len(word) == 1 else _singular(bare, UNITS)
        if not (known or modifier or bare in BETWEEN):
            return False
    return True


def _are_units(text: str) -> bool:
    r"""Returns whether the words of \text{...} behind a number leave it as it is."""
    text = UNIT_POWER.sub("", text)
    words = [word if len(word) == 1 else word.lower() for word in WORD.findall(text)]
    changing = (CHANGED_BEFORE | CHANGED_AFTER) - {"per", "from"}
    return (
        not re.search(r"[^A-Za-z\s.,/*'()-]", text)
        and len(words) <= 6
        and not any(word in changing or word.endswith(("illion", "illions")) for word in words)
        and all(len(word) > 1 or word in SYMBOLS for word in words if word != "a")
    )


def _value(match: re.Match) -> Fraction | None:
    power = match["power"] or match["digits"]
    if power:
        value = Fraction((match["mantissa"] or "1").replace(",", "")) * Fraction(10) ** int(power)
    elif match["then"] is not None:
        period = match["period"] or match["figure"] or match["enclosed"]
        before = match["then"]
        rest = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(before))
        value = Fraction(f"{match['once'] or 0}.{before or 0}") + rest
    else:
        top, under = match["part"] or match["top"], match["parts"] or match["under"] or "1"
        top, under, whole = (Fraction(part.replace(",", "")) for part in (top, under, match["whole"] or "0"))
        if under == 0:
            return None
        value = whole + top / under
    return -value if match["sign"] == "-" else value


def _spelled(text: str) -> str:
    r"""Writes a/b for \frac{a}{b}, which after a digit is a mixed number: "1 1/2"; 115000 for "115 000"."""

    def plain(match: re.Match) -> str:
        fraction = f"{match['top']}/{match['under']}".replace(" ", "")
        return f"{match['digit']} {fraction}" if match["digit"] else fraction

    spelled = _FRACTION.sub(plain, text)
    return _SPACED.sub(lambda found: found[0].replace(" ", ""), spelled)
