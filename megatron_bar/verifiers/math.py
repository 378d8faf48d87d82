r"""Math: the final answer of a worked solution, compared as a number, else as an expression.

truth = a number or a text (LaTeX or plain). The answer is what follows the last of "answer:", "####" or
\boxed{, up to the end of its sentence or brace; without any, the last number of the text, if the words beside
it do not change it.

Where the truth is a number, the answer must be one, written out (literal.py): nothing is calculated for it,
so a question copied back earns nothing. Quirks: "42.0" = "42" = "$42." = "42%" = "42 apples" = "x = 42"
(units are not judged), thousands take commas, fractions are exact ("0.333" is not 1/3), of "12 - 5 = 7" the
last side counts.

Any other truth goes to math-verify, with its leniences (x = 5 is 5, sets have no order), in a process that
ends within a second; what it cannot decide by then is wrong. Unevaluated sums, integrals, derivatives, limits
and the like never count, nor do commands that are neither plain notation nor in the truth; a constant truth
("2\sqrt{2}") allows no more sums, products and powers of numbers than it has itself. Quirk: between truths
with variables and a question that only asks to rewrite ("expand (x+1)^2") the verifier cannot tell, for any
equal expression is right.
"""

import importlib.util
import re
from fractions import Fraction

from megatron_bar.errors import BarError
from megatron_bar.verifiers import literal
from megatron_bar.verifiers.sandbox import fork_server

MARK = re.compile(r"answer(?:\s+is)?\s*:|####|\\boxed\s*\{", re.IGNORECASE)
TAIL = 20_000
"""Characters of a response that are searched: a final answer stands at the end."""
LONGEST = 300
"""Characters of a final answer; no honest one is longer, and parsing takes more than linear time."""
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
CALCULATION = re.compile(r"(?<=[\w)}!])\s*[-+](?!\s*\Z)|[0-9]\s*(?:\*|\\cdot|\\times|\\div|\^)|!|\\pm")
"""Work left undone in a constant: a sum, a product, quotient or power of numbers, a factorial."""
TOWER = re.compile(r"\^\s*\{?\s*[0-9.]+\s*\^|\^\s*\{?\s*[-+]?[0-9]{5}|!\s*!|[0-9]{5}\s*!|[0-9]{60}")
"""Numbers that nobody could write down."""


def verify(response: str, truth) -> float:
    wanted = check(truth)
    answer = final_answer(response[-TAIL:])
    if not answer or len(answer) > LONGEST:
        return 0.0
    wanted = _clean(wanted)
    answer = _clean(answer)
    value = literal.number(wanted)
    if value is not None:
        return float(literal.number(answer) == value)
    return float(_may_be_asked(wanted, answer) and _server().ask(wanted, answer) is True)


def check(truth) -> str:
    """Returns the truth as text."""
    number = isinstance(truth, int | float) and not isinstance(truth, bool) and truth - truth == 0
    if not number and not isinstance(truth, str):
        raise BarError(f"math truth: expected a number or a text, found {truth!r:.200}")
    text = str(Fraction(str(truth))) if isinstance(truth, float) else str(truth)
    cleaned = _clean(text) if len(text) <= LONGEST else ""
    nothing = re.fullmatch(r"[-+]?(?:inf|infinity|nan|none|null)", cleaned, re.IGNORECASE)
    if nothing or not re.search(r"[\w\\]", cleaned):
        raise BarError(
            f"math truth: expected a number or a text of up to {LONGEST} characters, found {truth!r:.200}"
        )
    if literal.number(cleaned) is None and (_is_bomb(cleaned) or UNEVALUATED.search(cleaned)):
        raise BarError(f"math truth: expected a number or an evaluated expression, found {truth!r:.200}")
    return text


def final_answer(response: str) -> str:
    """Returns the text of the final answer, "" if there is none."""
    marks = list(MARK.finditer(response))
    if not marks:
        return literal.last_number(response.replace("\u2212", "-"))
    rest = response[marks[-1].end() :]
    if marks[-1][0].endswith("{"):
        return _until_brace(rest).strip()
    line = rest.strip().split("\n", 1)[0]
    return re.split(r"\.\s", line, maxsplit=1)[0].strip()


def _until_brace(text: str) -> str:
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i]
    return ""


def _clean(text: str) -> str:
    """Removes the ornaments of Markdown, money and LaTeX."""
    text = re.sub(r"(?<=[\w)}])\*\*(?=[\w({-])", "^", text.replace("\u2212", "-").replace("{,}", ","))
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\\[$%!,;:()\[\]]|\*\*|__|[$`\u20ac\u00a3\u00a5]|\\(?:left|right)(?![a-zA-Z])", "", text)
    return text.strip().removesuffix(".").removesuffix("%").strip()


def _may_be_asked(truth: str, answer: str) -> bool:
    """Returns whether ``answer`` is a result, small enough to be parsed. Decided on its text, for the parser
    evaluates some of what it reads."""
    if _is_bomb(answer) or UNEVALUATED.search(answer):
        return False
    constant = not re.search(r"[A-Za-df-hj-z]", COMMAND.sub("", truth))  # e and i are numbers
    allowed = NOTATION | set(COMMAND.findall(truth)) | (frozenset() if constant else FUNCTIONS)
    if not allowed.issuperset(COMMAND.findall(answer)):
        return False
    return not constant or len(CALCULATION.findall(answer)) <= len(CALCULATION.findall(truth))


def _is_bomb(text: str) -> bool:
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest > DEEPEST or bool(TOWER.search(text))


def _server() -> fork_server.ForkServer:
    if importlib.util.find_spec("math_verify") is None:
        raise BarError(
            "math verifier: package math-verify expected for symbolic answers, not found; "
            "pip install math-verify"
        )
    return fork_server.server("math_child")
