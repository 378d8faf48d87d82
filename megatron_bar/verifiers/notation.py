r"""One spelling for what mathematics is written in: LaTeX, Unicode or plain text; nothing is calculated."""

import re

SPELLED = {
    "\u2212": "-", "\u2013": "-", "\u2019": "'", "\u00d7": r"\times ", "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ", "\u00f7": r"\div ", "\u00b1": r"\pm ", "\u03c0": r"\pi ", "\u03b8": r"\theta ",
    "\u221e": r"\infty ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ",
    "\u2205": r"\emptyset ", "\u211d": r"\mathbb{R}", "\u2264": r"\le ", "\u2265": r"\ge ",
    "\u2260": r"\ne ", "\u00b0": r"^\circ ", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "~": " ",
    "\u00bd": r"\frac{1}{2}", "\u00bc": r"\frac{1}{4}", "\u00be": r"\frac{3}{4}",
    "\u2153": r"\frac{1}{3}", "\u2154": r"\frac{2}{3}",
}  # fmt: skip
TABLE = str.maketrans(SPELLED)
SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b"
RAISED = re.compile(f"[{SUPERSCRIPTS}]+")
LOWERED = str.maketrans(SUPERSCRIPTS, "0123456789-")
_ROMAN = "text|textbf|textit|textrm|textup|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox"
_ARGUMENT = r"\s*(?:\{([^{}]*)\}|([0-9A-Za-z])|(\\[A-Za-z]+))"
RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"(?<=[\w)}])\*\*(?=[\w({-])", "^"),
        (r"\{,\}|\\!,\\!", ","),
        (r"\*\*|__|[$`\u20ac\u00a3\u00a5]|\\[$%!()\[\]]|(?<=[0-9])%", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|mathstrut|strut)(?![A-Za-z])", ""),
        (r"\\[,;: ]|\\q?quad(?![A-Za-z])", " "),
        (r"\\(?:[dtc]frac|nicefrac|sfrac)(?![A-Za-z])", r"\\frac"),
        (r"\^\s*(-?[0-9]{2,}|-[0-9])", r"^{\1}"),
        (r"\^\s*\{\s*([0-9A-Za-z])\s*\}(?![0-9])", r"^\1"),
        (r"\{\\(?:rm|bf|it)\s+([^{}]*)\}", r"\\text{\1}"),
        (rf"\\(?:{_ROMAN})\s*\{{([^{{}}]*)\}}", r"\\text{\1}"),
        (rf"\\(?:{_ROMAN})\s*\{{\s*\\text\{{([^{{}}]*)\}}\s*\}}", r"\\text{\1}"),
        (rf"\\frac{_ARGUMENT}{_ARGUMENT}", r"\\frac{\1\2\3}{\4\5\6}"),
        (r"\{(-?[0-9.]+)\}\s*/\s*\{([0-9.]+)\}", r"\1/\2"),
        (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"(?:\u221a|(?<![\\A-Za-z])sqrt)\s*(?:\(([^()]*)\)|([0-9]+|[A-Za-z]))", r"\\sqrt{\1\2}"),
        (r"(?<![\\A-Za-z{])(pi|theta|sin|cos|tan|ln|log|exp|infty)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![\\A-Za-z{])(?:infinity|oo)(?![A-Za-z])", r"\\infty "),
        (r"\^\s*\(([^(){}]*)\)", r"^{\1}"),
        (r"\\(?:leq|leqslant)(?![a-z])|<=", r"\\le "),
        (r"\\(?:geq|geqslant)(?![a-z])|>=", r"\\ge "),
        (r"\\varnothing|\\\{\s*\\\}", r"\\emptyset"),
        (r"\s+", " "),
    ]
]
WRAPPED = re.compile(r"\\text\{([^{}]*)\}")


def plain(text: str) -> str:
    r"""Returns ``text`` without ornaments (Markdown, money, spacing, sizes), with \frac{a}{b} for every kind
    of fraction, \text{...} for every kind of roman type, and LaTeX for Unicode and for sqrt(x), pi."""
    text = re.sub(r"\A[\s$(*]*~(?=\s*[\w$])", r"\\approx ", text)
    text = RAISED.sub(lambda found: "^{" + found[0].translate(LOWERED) + "}", text).translate(TABLE)
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    wrapped = WRAPPED.fullmatch(text.strip())
    text = (wrapped[1] if wrapped else text).strip().removesuffix(".").removesuffix("%").strip()
    return without_brackets(text)


def unwrapped(text: str) -> str:
    r"""Returns ``text`` with what \text{...} holds as ordinary words."""
    return " ".join(WRAPPED.sub(r" \1 ", text).split())


def without_brackets(text: str) -> str:
    """Takes off {} around all of a text, and () around all of what is no list."""
    while len(text) > 1 and text[0] + text[-1] in ("{}", "()"):
        inside = text[1:-1]
        if not is_balanced(inside) or (text[0] == "(" and re.search("[,;]", inside)):
            break
        text = inside.strip()
    return text


def is_balanced(text: str) -> bool:
    """Returns whether every bracket is closed that is opened, and none before; ) may close [."""
    depth = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        if depth < 0:
            return False
    return depth == 0


def top_level(text: str, separators: str) -> list[str]:
    """Splits ``text`` at ``separators`` (characters) outside all brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "({[") - (character in ")}]")
        if depth == 0 and character in separators:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, text[start:]]]
