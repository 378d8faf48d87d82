"""Math: the final answer of a worked solution, compared as a number, else as an expression.

truth = a number or a text (LaTeX or plain). The answer is what follows the last of "answer:", "####" or \\boxed{, up to the
end of its sentence or brace; without any, the last number of the text. Quirks: "42.0" = "42" = "$42." = "42%" = "42 apples" =
"x = 42" (units are not judged), thousands take commas, fractions are exact ("0.333" is not 1/3). What is no plain number goes
to math-verify, with its leniences (x = 5 is 5, sets have no order), in a process that ends within a second; what it cannot
decide by then is wrong.
"""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

from megatron_bar.errors import BarError

MARK = re.compile(r"answer(?:\s+is)?\s*:|####|\\boxed\s*\{", re.IGNORECASE)
_UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,2}(?!\d))?"
NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:\\[dt]?frac\{{(?P<top>{_UNSIGNED})\}}\{{(?P<under>{_UNSIGNED})\}}"
    rf"|(?P<over>{_UNSIGNED})(?:\s*/\s*(?P<by>{_UNSIGNED}))?)"
)
_FRACTION = rf"\\[dt]?frac\{{{_UNSIGNED}\}}\{{{_UNSIGNED}\}}"
LAST_NUMBER = re.compile(rf"(?:(?<![\w).])[-+])?(?:(?<![\w.]){_UNSIGNED}(?:/{_UNSIGNED})?|{_FRACTION})")
"""In running text: the minus of "10-3" is no sign, the 2 of "H2" no number."""
BEFORE = re.compile(r"(?:[a-zA-Z]\w*\s*=|(?:[a-zA-Z]{2,}\s+)+)?\s*")
AFTER = re.compile(r"(?:\s+[a-zA-Z]{2,}[,.]?)*")
MATH_WORDS = re.compile(
    r"\b(?:pi|sqrt|root|log|ln|sin|cos|tan|exp|minus|negative|plus|times|over|divided|by|or|and|not|half|third|quarter|squared|cubed"
    r"|dozen|hundred|thousand|million|billion|trillion)\b",
    re.IGNORECASE,
)
"""Words that change a number, so that a number among them is not the answer by itself."""
TAIL = 20_000
"""Characters of a response that are searched: a final answer stands at the end."""
LONGEST = 300
"""Characters of a final answer; no honest one is longer, and parsing takes more than linear time."""


def verify(response: str, truth) -> float:
    wanted = _parse_truth(truth)
    answer = final_answer(response[-TAIL:])
    if not answer or len(answer) > LONGEST:
        return 0.0
    wanted_number, number = plain_number(wanted), plain_number(answer)
    if wanted_number is not None and number is not None:
        return float(number == wanted_number)
    return float(_server(os.getpid()).equal(_clean(wanted), _clean(answer)))


def final_answer(response: str) -> str:
    """The text of the final answer, "" if there is none."""
    marks = list(MARK.finditer(response))
    if not marks:
        numbers = LAST_NUMBER.findall(response)
        return numbers[-1] if numbers else ""
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
    """Without the ornaments of Markdown, money and LaTeX."""
    text = re.sub(r"(?<=[\w)}])\*\*(?=[\w({-])", "^", text.replace("\u2212", "-").replace("{,}", ","))
    text = re.sub(r"\\(?:text|mathrm)\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\\[$%!,()\[\]]|\*\*|__|[$`]|\\(?:left|right)(?![a-zA-Z])", "", text)
    return text.strip().removesuffix(".").removesuffix("%").strip()


def plain_number(text: str) -> Fraction | None:
    """The one number of ``text``, exactly; None where there is more to it than words around."""
    text = _clean(text)
    before = BEFORE.match(text).end()
    match = NUMBER.match(text, before)
    if not match or not AFTER.fullmatch(text, match.end()) or MATH_WORDS.search(text):
        return None
    top = Fraction((match["top"] or match["over"]).replace(",", ""))
    under = Fraction((match["under"] or match["by"] or "1").replace(",", ""))
    if under == 0:
        return None
    return -top / under if match["sign"] == "-" else top / under


def _parse_truth(truth) -> str:
    if isinstance(truth, bool) or not isinstance(truth, str | int | float) or truth != truth or not str(truth).strip():
        raise BarError(f"math truth: expected a number or a text, found {truth!r:.200}")
    return str(truth) if isinstance(truth, str | int) else str(Fraction(str(truth)))


class _Server:
    """math_child.py and the one conversation with it."""

    def __init__(self):
        if importlib.util.find_spec("math_verify") is None:
            raise BarError("math verifier: package math-verify expected for symbolic answers, not found; pip install math-verify")
        # -P: this folder holds files named like modules of the standard library
        command = [sys.executable, "-P", str(Path(__file__).with_name("math_child.py"))]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        self.lock = threading.Lock()
        self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, bufsize=0, start_new_session=True)

    def equal(self, truth: str, answer: str) -> bool:
        with self.lock:
            self.child.stdin.write(json.dumps([truth, answer]).encode() + b"\n")
            reply = self.child.stdout.read(1)
        assert reply in (b"y", b"n", b"t"), f"the symbolic server ended with status {self.child.poll()}"
        return reply == b"y"


_starting = threading.Lock()


def _server(pid: int) -> _Server:
    with _starting:
        return _server_of(pid)


@functools.cache
def _server_of(pid: int) -> _Server:
    """One per process: a forked process must not talk into its parent's pipes."""
    return _Server()
