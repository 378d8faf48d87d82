"""Fenced blocks of code in an answer, as models write them, and which of them are the program.

A fence is three or more backticks or tildes, indented as it may be (the indentation is taken off the
block's lines), or one with a language behind other words; its block ends at the same fence or a longer one
alone on a line, but not within a string in three quotes (a docstring with an example), or with the text: a
cut-off answer. Text without fences is one block, without the lines that are prose (a capitalised word and
another). Thoughts that it begins with are none of it.

Blocks named Python count, and those without a name. For tests of names (functions, classes) the program is
every block up to the last that defines one of them, run one after another: what is defined twice is what
was defined last, and helpers may have a block of their own; uses, tests and output come after. For tests of
a whole run it is the last block that reads its input, or else the last one (named, if any is), after those
before it that only define.

open-instruct's CodeVerifier takes the text between the last pair of three backticks, wherever they stand,
in any language: the output or the shell command below a right program is graded in its place. The last
definition counts in both.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate

from megatron_bar.verifiers.text import spoken

FENCE = re.compile(r"^([ \t]*+)(`{3,}+|~{3,}+)([^`\n]*)$")
BEHIND_WORDS = re.compile(r"^.*?(?<![`~])(`{3,}+|~{3,}+)[ \t]*+((?:python|py)[0-9.]*)[ \t]*$", re.IGNORECASE)
LONGEST = 100_000
"""Characters that are read, from the end."""
LINES = 200
"""Of a docstring behind a fence in it, within which it must end."""
PYTHON = re.compile(r"\{?\.?(?:python|py)(?:[0-9.]+)?\b", re.IGNORECASE)
PROSE = re.compile(
    r"[A-Z][\w'\u2019-]*+(?:[!:.]|[,.!:;]? +(?!(?:if|and|or|else|for)\b)[\w'\u2019`*\"\u201c][^=]*)"
)
"""A line at the margin that is a sentence, and not Python."""
READS = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*(?:0|['\"]/dev/stdin)")
DEFINES = re.compile(r"(?:(?:def|async|class|import|from)\b|[@#)\]}]|['\"]{3}|[A-Za-z_][\w, ]*(?::[^=]*)?=)")
"""How a line at the margin starts in a block that only defines."""


def blocks(answer: str) -> list[tuple[str, str]]:
    """Returns (language, text) of the blocks of ``answer`` that may be Python, in their order; the whole of
    it if it has no block at all."""
    answer = spoken(answer)[-LONGEST:].replace("\r\n", "\n")
    found = list(_fenced(answer.split("\n"))) or [("", _without_prose(answer))]
    return [(language, text) for language, text in found if not language or PYTHON.match(language)]


def defining(answer: str, names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Returns the blocks up to the last that defines one of ``names``, each with those of them that it
    defines; all blocks if none does."""
    each = [(text, [name for name in names if _definition(name).search(text)]) for _, text in blocks(answer)]
    last = max((place for place, (_, defined) in enumerate(each) if defined), default=len(each) - 1)
    return each[: last + 1]


def running(answer: str) -> str:
    """Returns the program of ``answer`` that is to be run with an input."""
    found = blocks(answer)
    for is_program in (
        lambda language, text: READS.search(text),
        lambda language, text: language,
        lambda *_: True,
    ):
        places = [place for place, block in enumerate(found) if is_program(*block)]
        if places:
            break
    texts = [text for _, text in found]
    return "\n".join([*filter(_only_defines, texts[: max(places)]), texts[max(places)]]) if found else ""


def _without_prose(text: str) -> str:
    kept = []
    quotes = 0
    for line in text.split("\n"):
        if quotes % 2 or not PROSE.fullmatch(line.rstrip()):
            kept.append(line)
            quotes += line.count('"""') + line.count("'''")
    return "\n".join(kept)


def _definition(name: str) -> re.Pattern:
    name = re.escape(name)
    return re.compile(
        rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*(?::[^=\n]+)?=(?!=)", re.MULTILINE
    )


def _only_defines(text: str) -> bool:
    margin = [line for line in text.split("\n") if line[:1].strip()]
    return not READS.search(text) and all(DEFINES.match(line) for line in margin)


def _fenced(lines: list[str]) -> Iterable[tuple[str, str]]:
    """Yields (language, text) of each block."""
    quotes = [0, *accumulate(line.count('"""') + line.count("'''") for line in lines)]
    found = ((place, FENCE.match(line)) for place, line in enumerate(lines))
    closing = [(place, match[2]) for place, match in found if match and not match[3].strip()]
    place = 0
    while place < len(lines):
        opening = FENCE.match(lines[place])
        behind = None if opening else BEHIND_WORDS.match(lines[place])
        place += 1
        if not opening and not behind:
            continue
        indent, fence, language = opening.groups() if opening else ("", *behind.groups())
        end = _end(closing, quotes, place, fence)
        taken = [_without(line, len(indent)) for line in lines[place:end]]
        yield language.strip(), "\n".join([*taken, ""])
        place = end + 1


def _end(closing: list[tuple[int, str]], quotes: list[int], start: int, fence: str) -> int:
    """Returns the line of the fence that closes, or the number of lines; ``closing``: lines with fences
    alone, ``quotes``: how many stand before each line."""
    first = len(quotes) - 1
    for number in range(bisect_left(closing, (start, "")), len(closing)):
        place, mark = closing[number]
        if place > first + LINES:
            break
        if mark.startswith(fence):
            if (quotes[place] - quotes[start]) % 2 == 0:
                return place
            first = min(first, place)
    return first


def _without(line: str, indent: int) -> str:
    margin = len(line) - len(line.lstrip(" \t"))
    return line[min(indent, margin) :]
