"""The calls of an answer, as BFCL asks for them: nothing but calls by keyword, in <function_calls> or bare.

They are read by the parser of the verifier of tool calls; nothing is run. Ai2's handler reads an answer line
by line and gives the arguments to Python's eval; here a call may go over several lines and a line may have
several, and an expression ("3 * 4") is no value.
"""

import re

from megatron_bar.verifiers.possible_calls import TAG, read

CALL = re.compile(r"[\[\s]*[A-Za-z_][\w.-]*\s*\(.*\)[\s\],;]*", re.DOTALL)
"""A line that is meant as a call, whatever stands in the brackets."""


def is_attempt(answer: str) -> bool:
    """Returns whether an answer is meant as calls, readable or not."""
    lines = [line for line in TAG.sub("", answer).splitlines() if line.strip()]
    return bool(read(answer)) or (bool(lines) and all(map(CALL.fullmatch, lines)))
