r"""Math: the final answer of a worked solution, compared as a number, else as an expression.

truth = a number or a text (LaTeX or plain). Where the answer stands: extract.py; how it may be written:
notation.py. Without a mark it is the last number of the text, if the words beside it do not change it, or for
other truths the last formula.

Decided here, exactly:
- Where the truth is a number, the answer must be one, written out (literal.py): nothing is calculated for it,
  so a question copied back earns nothing. "42.0" = "42" = "$42." = "42%" = "42 apples" = "x = 42", thousands
  take commas or spaces, fractions are exact ("0.333" is not 1/3), of "12 - 5 = 7" the last side counts. Units
  are judged only where both have one that literal.py can name.
- A truth of letters is a text: "ACB" is not "ABC", as it would be for a parser that reads products. One
  letter from A to J is a choice: "(B) 12" and "B: twelve" are B.
- A number with a base is its digits and its base (parsers drop the base); "12:00" and "3:4" are their parts.
- "1, 2" and "\{1, 2\}" have no order, "(1, 2)" has, and brackets tell [0, 5) from [0, 5] and a point from a
  list; a list may be written as a point ("(0, 1)" for "0, 1") but not a point as a list. "\pm 5" are two
  numbers.

- Sums, products, powers and roots are compared by their values (formula.py): math-verify takes what is below
  1e-15 for zero, and floats that agree to six digits for equal.

Anything else goes to math-verify (math_child.py), with its leniences (x = 5 is 5), in a process that ends
within a second; what it cannot decide by then is wrong. Unevaluated sums, integrals, derivatives, limits and
the like never count, nor do commands that are neither plain notation nor in the truth; a constant truth
("2\sqrt{2}") allows no more sums, products and powers of numbers than it has itself. Quirk: between truths
with variables and a question that only asks to rewrite ("expand (x+1)^2") the verifier cannot tell, for any
equal expression is right.
"""

import functools
import importlib.util
import os
import re
from collections import Counter
from fractions import Fraction

from megatron_bar.errors import BarError
from megatron_bar.verifiers import extract, formula, literal
from megatron_bar.verifiers.elements import CONJUNCTION, INEQUALITY, elements, named
from megatron_bar.verifiers.notation import plain, top_level, unwrapped
from megatron_bar.verifiers.sandbox import fork_server

LONGEST = extract.LONGEST
DEEPEST = 8
"""Brackets within brackets."""

COMMAND = re.compile(r"\\[A-Za-z]+")
NOTATION = frozenset(
    r"""\frac \dfrac \tfrac \cdot \times \div \pm \mp \left \right \text \mathrm \mathbf \mathbb
    \infty \cup \cap \in \le \leq \ge \geq \lt \gt \ne \neq \emptyset \varnothing \quad \circ
    \degree \begin \end \alpha \beta \gamma \delta \epsilon \theta \lambda \mu \nu \rho \sigma \tau
    \phi \varphi \omega \angle \to \rightarrow \land \lor \wedge \vee \mid \setminus""".split()
)
"""Commands an answer may be written with; functions and roots must occur in a constant truth."""
FUNCTIONS = frozenset(
    r"\sqrt \pi \sin \cos \tan \cot \sec \csc \arcsin \arccos \arctan \sinh \cosh \tanh \ln \log \exp".split()
)
UNEVALUATED = re.compile(
    r"\\(?:sum|prod|i*nt|oint|lim|limsup|liminf|gcd|lcm|det|max|min|sup|inf|operatorname|partial|nabla"
    r"|[bp]?mod|pod|prime)(?![a-z])"
    r"|(?<![a-z\\])(?:gcd|lcm|mod|sum|prod|lim|diff|integrate|int|max|min)(?![a-z])"
    r"|frac\s*\{\s*d[^{}]*\}\s*\{\s*d\s*\\?[a-z]|\bd\s*/\s*d\s*[a-z]|'\s*\(",
    re.IGNORECASE,
)
CALCULATION = re.compile(
    r"(?<=[\w)}!])\s*[-+](?!\s*\Z)|[0-9]\s*(?:\\div|\^)|[0-9}]\s*(?:\*|\\cdot|\\times)\s*[({+-]*(?:[0-9.]|\\frac)"
    r"|\}\s*(?:\*|\\cdot|\\times)?\s*\\sqrt|!|\\pm"
)
"""Work left undone in a constant: a sum, a product, quotient or power of numbers, a factorial."""
TOWER = re.compile(r"\^\s*\{?\s*[0-9.]+\s*\^|\^\s*\{?\s*[-+]?[0-9]{5}|!\s*!|[0-9]{5}\s*!|[0-9]{60}")
"""Numbers that nobody could write down."""
CHOICE = re.compile(
    r"(?:option|choice)?\s*(?:\(\s*([A-J])\s*\)(?=[\s.:]|\Z)|([A-J])\s*(?:[).:]|\Z))", re.IGNORECASE
)
SECOND_CHOICE = re.compile(
    r"^\W*(?:wrong|incorrect)\b|\bis\W+[A-J]\W*$|^\W*is(?:n't|\s+(?:not|wrong|incorrect|false))\b|\([A-J]\)|\b[A-J][).:]|^[\W]*(?:and|or)?\W*\b[A-J]\W*$|^\W*(?:and|or|not)\b"
)
WORDS = re.compile(r"[^\W\d_]{2,}(?:['-][^\W\d_]{2,}|\s+[^\W\d_]+)*")
BASES = "two three four five six seven eight nine ten eleven twelve".split()
BASE = re.compile(
    rf"([0-9][0-9A-Z]*)\s*_\s*(?:\{{\s*\(?\s*([0-9]+|{'|'.join(BASES)})\s*\)?\s*\}}|([0-9])|({'|'.join(BASES)}))"
)
MONEY = re.compile(r"\\\$\s*[0-9.]|^[^$]*\$\s*[0-9.][^$]*$")
"""A dollar sign that opens no formula."""
CHAIN = re.compile(r"([^<>]+?)\s*(<|\\le)\s*[A-Za-z]\s*(<|\\le)\s*([^<>]+)")
BOUND = re.compile(r"[A-Za-z]\s*([<>]|\\[lg]e)\s*([^<>]+)")
PARTS = re.compile(r"([0-9]+)\s*((?::\s*[0-9]+)+)\s*(?:([ap])\.?\s*m\.?)?", re.IGNORECASE)


def verify(response: str, truth) -> float:
    wanted = plain(check(truth))
    marked = extract.marked(response)
    if marked is not None:
        answer = marked
    elif _number(wanted) is not None:
        answer = literal.last_number(extract.unmarked(response))
    else:
        answer = extract.unmarked(response)
        # "C. True, False" is a choice with its option's text, and no two sentences.
        if not (_is_choice(wanted) and _choice(answer)):
            answer = extract.last_formula(answer)
    if not answer or len(answer) > LONGEST:
        return 0.0
    if MONEY.search(answer) and literal.is_in_cents(wanted):
        return 0.0
    return float(_same(wanted, plain(extract.formula(answer))))


def check(truth) -> str:
    """Returns the truth as text."""
    number = isinstance(truth, int | float) and not isinstance(truth, bool) and truth - truth == 0
    if not number and not isinstance(truth, str):
        raise BarError(f"math truth: expected a number or a text, found {truth!r:.200}")
    text = str(Fraction(str(truth))) if isinstance(truth, float) else str(truth)
    cleaned = plain(text) if len(text) <= LONGEST else ""
    nothing = re.fullmatch(r"\W*(?:inf|infinity|nan|none|null)\W*", text, re.IGNORECASE)
    if nothing or not re.search(r"[\w\\]", cleaned):
        raise BarError(
            f"math truth: expected a number or a text of up to {LONGEST} characters, found {truth!r:.200}"
        )
    unevaluated = _exact(cleaned) is None and UNEVALUATED.search(literal.without_units(cleaned))
    if unevaluated or (_is_bomb(text) and _number(cleaned) is None):
        raise BarError(f"math truth: expected a number or an evaluated expression, found {truth!r:.200}")
    return text


def final_answer(response: str) -> str:
    """Returns the text of the final answer, "" if there is none."""
    marked = extract.marked(response)
    return literal.last_number(extract.unmarked(response)) if marked is None else marked


def _same(truth: str, answer: str) -> bool:
    """Compares two final answers in plain notation."""
    if _squeezed(truth) == _squeezed(answer):
        return True
    wanted = _number(truth)
    if wanted is not None:
        names = {name for name in (named(truth)[0], named(answer)[0]) if name and len(name) == 1}
        same = wanted in (literal.number(answer), _exact(answer)) and len(names) < 2
        same = same or _is_same_ratio(truth, answer)
        return (same and not literal.units_differ(truth, answer)) or _is_same_list(truth, answer)
    if _is_choice(truth):
        return _choice(literal.without_lead(unwrapped(answer))) == _choice(truth)
    truth, answer = literal.without_units(truth), literal.without_units(literal.without_lead(answer))
    wanted = _exact(truth)
    if wanted is not None and not _may_be_product(truth, answer):
        return _exact(answer) == wanted
    return _same_parts(truth, answer)


def _number(truth: str) -> Fraction | None:
    """Returns the number that a truth is; "x = 5" is one, but "x + y = 5" is an equation."""
    left = unwrapped(truth).rpartition("=")[0]
    words = not literal.without_lead(left + " ").strip()
    is_equation = re.search("[A-Za-z]", left) and not words and not named(truth)[0]
    return None if is_equation else literal.number(truth)


def _squeezed(text: str) -> str:
    """Takes off the spaces that separate nothing."""
    return re.sub(r"\s+(?![0-9A-Za-z])|(?<![0-9A-Za-z])\s+", "", text)


def _is_same_list(truth: str, answer: str) -> bool:
    """Returns whether a truth that reads as one number with thousands ("100,200") is the list "100, 200"."""
    parts = [literal.number(part) for part in top_level(answer, ",;")]
    return len(parts) > 1 and ", " in answer and parts == [literal.number(part) for part in truth.split(",")]


def _is_same_ratio(truth: str, answer: str) -> bool:
    """Returns whether a fraction is the ratio of the same two numbers: 3/4 and 3:4."""
    parts = re.fullmatch(r"([0-9]+)\s*:\s*([0-9]+)", answer)
    return bool(parts) and _squeezed(truth) in (
        f"{parts[1]}/{parts[2]}",
        rf"\frac{{{parts[1]}}}{{{parts[2]}}}",
    )


def _interval(text: str) -> str:
    """Writes an inequality of one letter as the interval that it is."""
    chain, bound = CHAIN.fullmatch(text), BOUND.fullmatch(text)
    if chain and not re.search(r"\\[lg]e", chain[1] + chain[4]):
        return f"{'[('[chain[2] == '<']}{chain[1]}, {chain[4]}{'])'[chain[3] == '<']}"
    if bound and not re.search(r"\\[lg]e|,", bound[2]):
        below, closed = bound[1] in ("<", r"\le"), "e" in bound[1]
        if below:
            return rf"(-\infty, {bound[2]}{')]'[closed]}"
        return rf"{'(['[closed]}{bound[2]}, \infty)"
    return text


def _is_choice(truth: str) -> bool:
    return not truth.islower() and _choice(truth) is not None


def _choice(text: str) -> str | None:
    """Returns the letter of a choice, alone or before the option's text."""
    text = unwrapped(text)
    match = CHOICE.match(text)
    if not match or SECOND_CHOICE.search(text[match.end() :]):
        return None
    return (match[1] or match[2]).upper()


def _exact(text: str) -> object | None:
    """Returns what ``text`` is as a value with an equality that needs no mathematics; None for the rest."""
    value = _number(text)
    if value is not None:
        return value
    text = unwrapped(text)
    if re.fullmatch(r"[-+]?\\infty|[A-Za-z]", text):
        return text.lstrip("+")
    based, parts = BASE.fullmatch(text), PARTS.fullmatch(text)
    if based:
        digits, base = based[1].lstrip("0") or "0", based[2] or based[3] or based[4]
        base = str(BASES.index(base) + 2) if base in BASES else base
        return Fraction(digits) if base == "10" and digits.isdigit() else (digits, base)
    if parts:
        return [int(part) for part in (parts[1] + parts[2]).split(":")], (parts[3] or "").lower()
    text = re.sub(r"\b([A-Za-z])\s+(?=[A-Za-z]\b)", r"\1", text)
    return text.casefold() if WORDS.fullmatch(text) and not CONJUNCTION.search(text) else None


def _may_be_product(truth: str, answer: str) -> bool:
    r"""Returns whether letters without a sign between them meet an answer with signs: "xy", "x \cdot y".

    Capitals, and letters of which one occurs twice, are a word unless the answer keeps their order."""
    if not re.fullmatch(r"[A-Za-z]{2,4}", truth) or re.fullmatch(r"[A-Za-z\s]*", unwrapped(answer)):
        return False
    letters = re.sub("[^A-Za-z]", "", COMMAND.sub("", unwrapped(answer)))
    return letters == truth or (truth.islower() and len(set(truth)) == len(truth))


def _same_parts(truth: str, answer: str) -> bool:
    """Compares two texts element by element, each alone if it is no list, set, point or interval."""
    same_equation = formula.same_equation(*map(_askable, (truth, answer)))
    if same_equation is not None:
        return same_equation
    (name, truth), (other, answer) = named(truth), named(answer)
    if name and other and name != other:
        if top_level(truth, ",;")[1:] or top_level(answer, ",;")[1:]:
            return False
        truth, answer = f"{name} = {truth}", f"{other} = {answer}"
    joined = [set(re.findall(r"\b(?:and|or)\b", unwrapped(text))) for text in (truth, answer)]
    if INEQUALITY.search(truth) and all(joined) and joined[0] != joined[1]:
        return False
    (brackets, wanted), (enclosing, given) = elements(truth), elements(answer)
    if len(wanted) == 2 and brackets not in ("", "{}") and len(given) == 1:
        enclosing, given = elements(_interval(answer.strip()))
    if len(wanted) == 1 and brackets == "" and enclosing not in ("", "{}") and INEQUALITY.search(truth):
        enclosing, given = "", [answer]  # math-verify knows which interval it is
    if len(wanted) != len(given) or not all(given):
        return False
    names, others = (sorted(filter(None, (named(part)[0] for part in parts))) for parts in (wanted, given))
    if len(names) == len(others) == len(wanted) > 1:
        if names != others:
            return False
        wanted, given = sorted(wanted), sorted(given)
    by_name = len(set(names)) > 1 or len(set(others)) > 1
    if len(wanted) > 1:
        wanted, given = [named(part)[1] for part in wanted], [named(part)[1] for part in given]
    lists = ("", "{}")
    if brackets != enclosing and r"\emptyset" in given + wanted:
        return False
    if brackets not in lists and enclosing != brackets and not (by_name and enclosing == ""):
        return False
    if brackets == "{}" and enclosing not in lists:
        return False
    ordered = by_name or enclosing not in lists
    return _all_same(wanted, given, ordered)


def _all_same(wanted: list[str], given: list[str], ordered: bool) -> bool:
    keys, others = [_exact(part) for part in wanted], [_exact(part) for part in given]
    if None not in keys and None not in others:
        return keys == others if ordered else Counter(map(repr, keys)) == Counter(map(repr, others))
    if any("=" in part for part in wanted) and not all("=" in part for part in given):
        return False  # to math-verify 4 is x + y = 4
    if not all(_may_be_asked(wanted, part) for part in given):
        return False
    _start(os.getpid())
    wanted, given = ([_askable(part) for part in parts] for parts in (wanted, given))
    if ordered or len(wanted) == 1:
        verdicts = [formula.equal(*pair) for pair in zip(wanted, given, strict=True)]
        if None not in verdicts or False in verdicts:
            return False not in verdicts
    return fork_server.ask_any("math_child", wanted, given, ordered) is True


def _askable(text: str) -> str:
    r"""Returns ``text`` as the parser takes it: decimals as fractions, for it reads them as floats."""

    def fraction(match: re.Match) -> str:
        return rf"\frac{{{match[1]}{match[2]}}}{{1{'0' * len(match[2])}}}"

    def improper(match: re.Match) -> str:
        whole, top, under = (int(part) for part in match.groups())
        return rf"\frac{{{whole * under + top}}}{{{under}}}" if top < under else match[0]

    text = re.sub(r"(?<![0-9.}])([0-9]{1,9})\s*\\frac\{([0-9]{1,9})\}\{([0-9]{1,9})\}", improper, text)
    value = _number(text)
    if value is not None:
        top, under = value.as_integer_ratio()
        return str(top) if under == 1 else rf"\frac{{{top}}}{{{under}}}"
    return re.sub(r"([0-9]*)\.([0-9]+)", fraction, re.sub(r"(?<=[0-9]),(?=[0-9]{3})", "", unwrapped(text)))


def _may_be_asked(truths: list[str], answer: str) -> bool:
    """Returns whether ``answer`` is a result, small enough to be parsed. Decided on its text, for the parser
    evaluates some of what it reads."""
    truth = " , ".join(truths)
    primed = "'" in answer and "'" not in truth  # the parser drops the sign of a derivative
    if _is_bomb(answer) or UNEVALUATED.search(answer) or primed:
        return False
    constant = not re.search(r"[A-Za-df-hj-z]", COMMAND.sub("", truth))  # e and i are numbers
    allowed = NOTATION | set(COMMAND.findall(truth)) | (frozenset() if constant else FUNCTIONS)
    if not allowed.issuperset(COMMAND.findall(answer)):
        return False
    work = max(len(CALCULATION.findall(part)) for part in truths)
    return not constant or len(CALCULATION.findall(answer)) <= work


def _is_bomb(text: str) -> bool:
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest > DEEPEST or bool(TOWER.search(text))


@functools.cache
def _start(pid: int) -> None:
    """Starts this process's server with its first symbolic answer, whoever decides that one: it takes seconds
    of processor time, which no later answer is to pay for."""
    if importlib.util.find_spec("math_verify") is None:
        raise BarError(
            "math verifier: package math-verify expected for symbolic answers, not found; "
            "pip install math-verify"
        )
    fork_server.ask_any("math_child", ["x"], ["x"], True)
