"""The symbolic half of the math verifier: asks math-verify, in forks that the kernel ends (fork_server.py).

math-verify bounds its time with SIGALRM handlers; here its timeouts are off. Run by math.py, outside the
package.
"""

import functools

import sympy
from fork_server import serve
from math_verify import LatexExtractionConfig, parse, verify

READING = [LatexExtractionConfig()]
"""LaTeX alone: its grammar only builds trees, where reading plain expressions would evaluate text."""
UNEVALUATED = (sympy.Integral, sympy.Derivative, sympy.Limit, sympy.Sum, sympy.Product, sympy.Max, sympy.Min)


def equal(truth: str, answer: str) -> bool:
    gold, given = (parse(f"${text}$", READING, parsing_timeout=None) for text in (truth, answer))
    if any(isinstance(tree, sympy.Basic) and tree.has(*UNEVALUATED) for tree in given):
        return False
    return verify(gold, given, timeout_seconds=None)


def main():
    equal("x^2-1", r"(x-1)(x+\frac{2}{2})")  # fills the parser's tables before the first fork
    serve(lambda truth, answer: functools.partial(equal, truth, answer))
