"""The symbolic half of the math verifier: asks math-verify, in forks that the kernel ends (fork_server.py).

math-verify parses, and compares relations, sets and matrices part by part; the parts are compared here. Its
own comparison rounds floats to six digits and takes what is below 1e-15 for zero: 1/2^98 is 1/2^99 to it.
math-verify bounds its time with SIGALRM handlers; here its timeouts are off. Run by math.py, outside the
package.
"""

import functools
import itertools
import random

import sympy
from fork_server import serve
from math_verify import LatexExtractionConfig, grader, parse, verify

READING = [LatexExtractionConfig()]
"""LaTeX alone: its grammar only builds trees, where reading plain expressions would evaluate text."""
UNEVALUATED = (sympy.Integral, sympy.Derivative, sympy.Limit, sympy.Sum, sympy.Product, sympy.Max, sympy.Min)
DIGITS = 60
SIGNS = (1, 1, 1, -1, -1)
"""Of the points at which two expressions must agree."""
TERMS = ["3", "x", "2x", "x^2", "3x^2", r"2\sqrt{5}", r"\frac{1}{2}", r"\sin x", "e^{-x}"]
SAMPLES = [
    r"\frac{a+\sqrt{5}}{2}", r"\frac{3}{7}\pi", r"\frac{x+1}{(x-2)^2}", r"-x \cdot 3", "2^{10}-1", "5!",
    "x_1 = 4y", r"\cos^2(4x)", r"\log_{2} 8", "|x-1|", "3+4i", "f(x)", r"\sqrt[3]{2}", "x>2", r"-1 \le x<5",
    r"(3,\pi/2)", "[2,3)", r"(-\infty,4)\cup(7,\infty)", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
    r"90^\circ",
]  # fmt: skip
SAMPLES += [f"{a}-{b}+{a}" for a, b in itertools.product(TERMS, TERMS)]
"""What the server parses before its first fork, for a fork loses what the parser learns in it."""


def compare(truths: list[str], answers: list[str], ordered: bool) -> bool:
    """Returns whether the lists are equal, element by element or as they can be paired."""
    truths, answers = [read(text) for text in truths], [read(text) for text in answers]
    if ordered:
        return all(map(equal, truths, answers))
    for truth in truths:
        match = next((i for i, answer in enumerate(answers) if equal(truth, answer)), None)
        if match is None:
            return False
        del answers[match]
    return not answers


def read(text: str) -> list:
    return parse(f"${text}$", READING, parsing_timeout=None)


def equal(truth: list, answer: list) -> bool:
    if any(isinstance(tree, sympy.Basic) and tree.has(*UNEVALUATED) for tree in answer):
        return False
    return verify(truth, answer, timeout_seconds=None)


def same(a, b, *_) -> bool:
    """Returns whether two expressions or matrices are equal: of rationals by their values, of the rest by 60
    digits at points of both signs."""
    if isinstance(a, sympy.MatrixBase) or isinstance(b, sympy.MatrixBase):
        both = isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase) and a.shape == b.shape
        return both and all(map(same, a.flat(), b.flat()))
    a, b = a.doit(), b.doit()
    if a.is_Rational and b.is_Rational:
        return a == b
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    draw = random.Random(f"{a}={b}").randint  # no answer can be made to agree at points that depend on it
    agreed = 0
    for sign in SIGNS if symbols else SIGNS[:1]:
        at = {symbol: sympy.Rational(sign * draw(20, 999), draw(101, 199)) for symbol in symbols}
        one, other = (tree.subs(at).evalf(DIGITS) for tree in (a, b))
        if not one.is_number or not other.is_number:
            return sympy.simplify(a - b) == 0
        if not one.is_finite or not other.is_finite:
            continue
        size = max(abs(one), abs(other))
        if size > 0 and abs(one - other) > size * sympy.Float(10) ** (20 - DIGITS):
            return 0 in (one, other) and size < sympy.Float(10) ** -20 and sympy.simplify(a - b) == 0
        agreed += 1
    return agreed > len(SIGNS) // 2 or (agreed == 1 and not symbols)


def main():
    grader.sympy_numeric_eq = same
    grader.sympy_symbolic_eq = lambda a, b: False
    for text in SAMPLES:
        compare([text], [text], True)
    serve(lambda *question: functools.partial(compare, *question))
