r"""The final answer of a worked solution, as people and models write it.

It is what the last mark of the text introduces: a box (several boxes with nothing but commas, "and" or names
of variables between them are one list), <answer>, "####", or a label: "Answer: 42", "**Answer:** 42",
"**Final Answer**" on a line of its own, "The final answer is $42$. I hope it is correct." A mark that only
introduces prose, as a heading does ("#### Verification", "The answer is correct"), gives way to the marks
before it. Without a mark, the last number before such a heading is left (`unmarked`).
"""

import re

from megatron_bar.verifiers.literal import WORD
from megatron_bar.verifiers.words import CHANGED_AFTER, CHANGED_BEFORE

TAIL = 20_000
"""Characters of a response that are searched: a final answer stands at the end."""
LONGEST = 300
"""Characters of a final answer; no honest one is longer, and parsing takes more than linear time."""
MARKS_TRIED = 20

BOX = r"\\(?:boxed|fbox)\s*(?:\{|(?=[0-9A-Za-z]))"
LABEL = (
    r"\b(?:answers?|correct\s+(?:option|choice))\b(?:\s+(?:to|for)\s[^.:\n]{1,60}?)?(?:\s*\([^()\n]{1,40}\))?"
    r"[*_\s]{0,6}(?:</\w{1,6}>\s*)?(?::|=|\u2014|\b(?:is|are|was)\b[*_\s]{0,4}:?)"
)
HEADING = r"^(?!\s{0,9}</)[^A-Za-z\n]{0,20}(?:the\s+)?(?:final\s+)?answer[^\w\n]{0,20}$"
MARK = re.compile(
    rf"(?P<box>{BOX})|(?P<tag><answer>)|(?P<heading>{HEADING})|(?P<hash>\#\#\#\#)|(?P<label>{LABEL})",
    re.IGNORECASE | re.MULTILINE,
)
BESIDE = re.compile(
    r"(?:[\s$,;&~]|\\[,;:!\s()\[\]]|\\q?quad|\b(?:and|or)\b|\\text\s*\{\s*,?\s*(?:and|or)\s*,?\s*\}|[a-zA-Z]\s*=)*",
    re.IGNORECASE,
)
"""What stands between the boxes of one list."""
ORNAMENT = re.compile(r"""(?:[\s*_>`"'})\]]|</?(?:b|strong|em|i|u|br|p)\s*/?>|\\q?quad)*""", re.IGNORECASE)
REASON = re.compile(r",?\s+(?:because|since)\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<!\bsq)(?<!\bcu)\.\s", re.IGNORECASE)
AFTERWORD = re.compile(
    r"^[^\w\n#*]{0,9}(?:#{1,6}|\*\*)[^\w\n]{0,9}(?:(?:sanity|double)[ -]?)?"
    r"(?:check|verif|explanation|note\b|remark|proof|confirm|justification|reason)",
    re.IGNORECASE | re.MULTILINE,
)
"""A heading of what follows an answer."""


def marked(response: str) -> str | None:
    """Returns the text that the last mark introduces; None without a mark, "" where it introduces nothing
    or more than ``LONGEST`` characters."""
    response = response[-TAIL:]
    weak = None
    marks = list(MARK.finditer(response))[-MARKS_TRIED:]
    for i in reversed(range(len(marks))):
        if marks[i]["box"]:
            return _boxes(response, [mark for mark in marks[: i + 1] if mark["box"]])
        text = _introduced(response[marks[i].end() : marks[i].end() + 2 * LONGEST])
        if marks[i]["hash"] and not _says_something(text) and _is_heading(response, marks[i]):
            continue
        is_word = len(text.split()) == 1 and not marks[i]["hash"] and not _is_verb(marks[i])
        if is_word or _says_something(text):
            return text if len(text) <= LONGEST else ""
        weak = text if weak is None else weak
    return weak if weak is None or len(weak) <= LONGEST else ""


def unmarked(response: str) -> str:
    """Returns the end of the text without what only comments on the answer: "### Check" and what follows."""
    response = response[-TAIL:]
    afterword = AFTERWORD.search(response)
    if afterword and re.search(r"[0-9]", response[: afterword.start()]):
        return response[: afterword.start()]
    return response


def formula(text: str) -> str:
    """Returns the one formula between $ signs of a sentence that ends with it; all of ``text`` without."""
    parts = re.split(r"\$+|\\[()]", text)
    if len(parts) != 3 or not re.fullmatch(r"[^\w(]*(?:\([a-z ,]*\)\W*)?", parts[2]):
        return text
    words = set(WORD.findall((parts[0] + parts[2]).lower()))
    if words & (CHANGED_BEFORE | CHANGED_AFTER) - {"point"}:
        return text
    return text if "n't" in parts[0] or re.search(r"[0-9\\=<>]", parts[0]) else parts[1]


def last_formula(text: str) -> str:
    """Returns the formula of the last line, or that line where it is the whole text; "" without."""
    line = text.strip().rsplit("\n", 1)[-1]
    if len(line) > 4 * LONGEST:
        return ""
    sentence = SENTENCE_END.split(line)[-1]
    found = formula(sentence.rstrip("."))
    return found if found != sentence.rstrip(".") or line == text.strip() else ""


def until_brace(text: str) -> str:
    """Returns ``text`` up to the brace that closes what was opened before it; "" if there is none."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i]
    return ""


def _boxes(response: str, boxes: list[re.Match]) -> str:
    """Returns the content of the last box, or of all that form a list with it."""
    contents: list[str] = []
    after = None
    for box in reversed(boxes):
        start = box.end()
        if box[0].endswith("{"):
            content = until_brace(response[start : start + 2 * LONGEST])
            end = start + len(content) + 1
        else:
            content = re.match(r"\w{1,20}", response[start:])[0]
            end = start + len(content)
        if after is not None and (end > after or not BESIDE.fullmatch(response[end:after][:LONGEST])):
            break
        if content.strip() not in contents:
            contents.insert(0, content.strip())
        after = box.start()
    text = ", ".join(contents)
    return text if len(text) <= LONGEST else ""


def _introduced(text: str) -> str:
    ornament = ORNAMENT.match(text)
    text = text[ornament.end() :]
    display = re.match(r"(\$\$|\\\[)(.*?)(?:\$\$|\\\])", text, re.DOTALL)
    if display:
        return display[2].strip().removesuffix(".")
    line = text.split("</answer>", 1)[0].strip().split("\n", 1)[0]
    line = REASON.split(SENTENCE_END.split(line, maxsplit=1)[0], maxsplit=1)[0]
    inside = until_brace(line + "}")  # a label inside a box ends where the box does
    if inside.count(")") > inside.count("("):
        inside = inside.rstrip(").* ")
    is_quoted = "'" in ornament[0] or (inside.count("'") % 2 == 0 and "''" not in inside)
    quote = "'" if is_quoted else ""  # else a prime
    return re.sub(rf"(?:</?\w{{1,6}}\s*/?>|[*_`\"{quote}\s])+\Z", "", inside)


def _says_something(text: str) -> bool:
    r"""Returns whether ``text`` may be mathematics: it has a digit, a command, an operator or a single
    letter; "a number of apples" has not."""
    return bool(re.search(r"[0-9\\=^$<>\u00b1\u221a\u03c0\u221e]|^\W*[A-Za-z]\b(?![a-z' ]+[a-z])", text))


def _is_heading(response: str, mark: re.Match) -> bool:
    rest = response[mark.end() :].strip().split("\n", 1)
    return len(rest) == 2 or bool(AFTERWORD.match(response[mark.start() :]))


def _is_verb(mark: re.Match) -> bool:
    """Returns whether the label is "answer is" without a colon: a word may follow it that is no answer."""
    return mark[0].rstrip("*_ ").lower().endswith(("is", "are", "was"))
