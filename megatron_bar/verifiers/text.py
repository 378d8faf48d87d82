"""What a reader sees of a text: the verifiers judge that, so that invisible characters earn nothing."""

import re
import unicodedata

UNSEEN = re.compile(
    # controls but white space, soft hyphen, joiners and fillers, directions, selectors of variants, tags
    "[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff\U00016fe4\U0001bca0-\U0001bca3"
    "\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters that nobody sees. Among them the joiner (U+200D) and the selectors of emoji: judge what a truth
says of an emoji without them too."""


def seen(text: str) -> str:
    """Removes the characters that nobody sees."""
    return UNSEEN.sub("", text)


def visible(text: str) -> str:
    """Removes the characters that nobody sees and the white space around; lines end with a line feed."""
    return seen(text).replace("\r\n", "\n").replace("\r", "\n").strip()


def spoken(text: str) -> str:
    """Returns what stands behind the thoughts that a response begins with, in it or, as some templates have
    it, in the prompt; nothing where they were cut off."""
    opens = text.lstrip().startswith("<think>")
    thoughts, closed, rest = text.partition("</think>")
    if closed and (opens or "<think>" not in thoughts):
        return rest
    return "" if opens else text


def says_something(text: str) -> bool:
    """Returns whether a text has a letter or digit; signs that change a letter are none."""
    return any(sign.isalnum() and unicodedata.category(sign) != "Lm" for sign in text)
