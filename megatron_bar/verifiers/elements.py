"""What an answer is made of: the name it gives a value, the elements of lists, sets, points and intervals."""

import re

from megatron_bar.verifiers.notation import is_balanced, top_level

NAMED = re.compile(
    r"\s*(\\?[A-Za-z]+(?:_(?:\w|\{\w+\}))?(?:\([a-z]\))?|\([a-z](?:\s*,\s*[a-z])+\))\s*(?:=|\\in(?![a-z]))\s*([^=]+)"
)
INEQUALITY = re.compile(r"[<>]|\\[lg][et](?![a-z])")
CONJUNCTION = re.compile(r"\s*,?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}|\b(?:and|or)\b)\s*")


def named(text: str) -> tuple[str | None, str]:
    """Splits "x = 5" and "x \\in (0, 1)" into the name and what it is; without a name, None and all."""
    match = NAMED.fullmatch(text)
    return (match[1], match[2]) if match else (None, text)


def elements(text: str) -> tuple[str, list[str]]:
    """Returns the brackets around a list, "" for none, and its elements."""
    text = CONJUNCTION.sub(", ", text.replace(r"\{", "{").replace(r"\}", "}")).strip()
    brackets = ""
    if len(text) > 1 and text[0] in "([{" and text[-1] in ")]}" and is_balanced(text[1:-1]):
        brackets, text = text[0] + text[-1], text[1:-1]
    parts = top_level(text, ";")
    if len(parts) == 1:
        spaced = ", " in text
        marked = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "\0", text) if spaced or not brackets else text
        parts = [part.replace("\0", ",") for part in top_level(marked, ",")]
    if len(parts) == 1 and brackets in ("()", "[]"):
        brackets, parts = "", [brackets[0] + parts[0] + brackets[1]]
    if brackets not in ("", "{}"):
        return brackets, parts
    both = [
        part.replace(r"\pm", sign) for part in parts for sign in ("+-" if part.count(r"\pm") == 1 else "+")
    ]
    return brackets, [re.sub(r"^\s*\+\s*", "", part).strip() for part in both]
