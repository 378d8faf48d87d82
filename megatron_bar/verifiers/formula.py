r"""Sums, products, quotients, powers and roots of numbers and variables, compared by their values.

Most symbolic answers are no more than that ("2\sqrt{3}", "\frac{x-1}{2}", "x^2-4"), and math-verify takes
some 30 ms of processor time for each. Rational functions are evaluated in fractions, so exactly; what has
roots, \pi or e, to 60 digits. Whatever is written otherwise, reads in two ways ("1/2x") or is too close to
call is left to math-verify.
"""

import random
import re
from decimal import Context, Decimal, DecimalException
from fractions import Fraction

TOKEN = re.compile(r"\s*(\\[A-Za-z]+|[0-9]+|[A-Za-z]|\S)")
SIGNS = (1, 1, 1, 1, -1, -1, -1)
"""Of the points at which expressions are evaluated."""
ENOUGH = 4
"""Points with values at which two expressions must agree."""
LARGEST_POWER = 999
DIGITS = Context(prec=60)
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534")
EQUAL, DIFFERENT = Decimal("1e-40"), Decimal("1e-15")
"""Relative differences: at most, at least."""


LARGEST_FRACTION = 20_000
"""Bits of a numerator or denominator."""


class Undecided(Exception):
    """The text is not of this grammar, or its value too large or too close to another."""


def equal(one: str, other: str) -> bool | None:
    """Returns whether two expressions are equal wherever they have values; None if that is left open."""
    try:
        trees = _Reader(one).all(), _Reader(other).all()
        names = sorted({name for tree in trees for name in _names(tree)})
        points = _points(names, one + "=" + other)
        verdicts = [_agree(*trees, at) for at in points]
    except (Undecided, RecursionError, DecimalException):
        return None
    if False in verdicts:
        return False
    return True if verdicts.count(True) >= min(ENOUGH, len(points)) else None


def same_equation(one: str, other: str) -> bool | None:
    """Returns whether two equations in the same two or more variables say the same: one is a multiple of the
    other ("y = 2x + 1", "2y = 4x + 2"). None if that is left open."""
    if not one.count("=") == other.count("=") == 1:
        return None
    try:
        sides = [[_Reader(side).all() for side in text.split("=")] for text in (one, other)]
        differences = [("+", left, ("*", ("number", Fraction(-1)), right)) for left, right in sides]
        names = sorted(_names(differences[0]))
        if len(names) < 2 or names != sorted(_names(differences[1])):
            return None
        values = [[_value(tree, at) for tree in differences] for at in _points(names, one + other)]
    except (Undecided, RecursionError, DecimalException):
        return None
    if not all(isinstance(value, Fraction) for pair in values for value in pair):
        return None
    return all(a and b and a * values[0][1] == b * values[0][0] for a, b in values)


def _points(names: list[str], seed: str) -> list[dict[str, Fraction]]:
    """Returns values for variables. They depend on the texts: no answer can be made to agree there."""
    draw = random.Random(seed).randint
    signs = SIGNS if names else SIGNS[:1]
    return [{name: Fraction(sign * draw(20, 999), draw(101, 199)) for name in names} for sign in signs]


def _agree(one: tuple, other: tuple, at: dict) -> bool | None:
    """Returns whether two trees have one value at a point; None where neither has one."""
    a, b = (_value(tree, at) for tree in (one, other))
    if a is None and b is None:
        return None
    if a is None or b is None:
        raise Undecided
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = _decimal(a), _decimal(b)
    size, apart = max(abs(a), abs(b)), abs(DIGITS.subtract(a, b))
    if size >= DIFFERENT and (apart <= EQUAL * size or apart >= DIFFERENT * size):
        return apart <= EQUAL * size
    raise Undecided


def _value(tree: tuple, at: dict) -> Fraction | Decimal | None:
    """Returns a fraction where everything is rational, else a decimal; None where there is no real value."""
    kind, *parts = tree
    if kind == "number":
        return parts[0]
    if kind == "name":
        return at[parts[0]]
    values = [_value(part, at) for part in parts]
    if None in values:
        return None
    if kind == "^":
        return _power(*values)
    if not all(isinstance(value, Fraction) for value in values):
        values = [_decimal(value) for value in values]
        sums = {"+": DIGITS.add, "*": DIGITS.multiply, "/": DIGITS.divide}
    else:
        sums = {"+": Fraction.__add__, "*": Fraction.__mul__, "/": Fraction.__truediv__}
    if kind == "/" and values[1] == 0:
        return None
    value = sums[kind](*values)
    if isinstance(value, Fraction) and _bits(value) > LARGEST_FRACTION:
        raise Undecided
    return value


def _power(base: Fraction | Decimal, exponent: Fraction | Decimal) -> Fraction | Decimal | None:
    if abs(exponent) > LARGEST_POWER:
        raise Undecided
    if (base == 0 and exponent <= 0) or (base < 0 and exponent != int(exponent)):
        return None
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        if isinstance(base, Fraction):
            if _bits(base) * abs(exponent) > LARGEST_FRACTION:
                raise Undecided
            return base**exponent.numerator
        return DIGITS.power(base, exponent.numerator)
    if exponent == Fraction(1, 2):
        return DIGITS.sqrt(_decimal(base))
    return DIGITS.power(_decimal(base), _decimal(exponent))


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _decimal(value: Fraction | Decimal) -> Decimal:
    return DIGITS.divide(value.numerator, value.denominator) if isinstance(value, Fraction) else value


def _names(tree: tuple) -> set[str]:
    if tree[0] in ("number", "name"):
        return {tree[1]} if tree[0] == "name" else set()
    return set().union(*map(_names, tree[1:]))


class _Reader:
    """Reads an expression into ("+", tree, tree), ("*", ...), ("/", ...), ("^", ...), ("number", value) and
    ("name", letter)."""

    def __init__(self, text: str):
        self.tokens = TOKEN.findall(text) + [""]

    def all(self) -> tuple:
        tree = self.sum()
        if self.tokens != [""]:
            raise Undecided
        return tree

    def take(self, *expected: str) -> str | None:
        return self.tokens.pop(0) if self.tokens[0] in expected else None

    def require(self, expected: str) -> None:
        if not self.take(expected):
            raise Undecided

    def sum(self) -> tuple:
        tree = None
        while tree is None or self.tokens[0] in ("+", "-"):
            sign = self.take("+", "-")
            term = self.product()
            if sign == "-":
                term = ("*", ("number", Fraction(-1)), term)
            tree = term if tree is None else ("+", tree, term)
        return tree

    def product(self) -> tuple:
        tree, divided = self.power(), False
        while self.tokens[0] not in ("", "+", "-", ")", "}"):
            if self.take("/"):
                tree, again, divided = ("/", tree, self.power()), divided, True
                if again:
                    raise Undecided
                continue
            signed = self.take("*", "\\cdot", "\\times")
            if divided or (not signed and self.tokens[0].isdigit()):
                raise Undecided
            tree = ("*", tree, self.power())
        return tree

    def power(self) -> tuple:
        base = self.primary()
        if not self.take("^"):
            return base
        exponent = self.braced() if self.tokens[0] == "{" else self.primary()
        if self.tokens[0] == "^":
            raise Undecided
        return ("^", base, exponent)

    def braced(self) -> tuple:
        self.require("{")
        tree = self.sum()
        self.require("}")
        return tree

    def primary(self) -> tuple:
        token = self.tokens[0]
        if token == "{":
            return self.braced()
        if not token:
            raise Undecided
        self.tokens.pop(0)
        if token == "(":
            tree = self.sum()
            self.require(")")
            return tree
        if token.isdecimal():
            return ("number", Fraction(token))
        if token == "\\frac":
            return ("/", self.braced(), self.braced())
        if token == "\\sqrt":
            return ("^", self.braced(), ("number", Fraction(1, 2)))
        if token == "\\pi":
            return ("number", PI)
        if token == "e":
            return ("number", DIGITS.exp(Decimal(1)))
        applied = token in "fghFGHP" and self.tokens[0] == "("
        if re.fullmatch("[a-zA-Z]", token) and token not in "iIdE" and not applied:
            return ("name", token)
        raise Undecided
