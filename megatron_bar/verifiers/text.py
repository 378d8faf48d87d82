"""What a reader sees of a text: the verifiers judge that, so that invisible characters earn nothing."""

import re

UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200c\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufeff]"
)
"""Characters that take no room on the page. Not the joiner of emoji (U+200D): their look depends on it."""


def visible(text: str) -> str:
    """Removes the characters that nobody sees and the white space around."""
    return UNSEEN.sub("", text).strip()


def says_something(text: str) -> bool:
    return any(character.isalnum() for character in text)
