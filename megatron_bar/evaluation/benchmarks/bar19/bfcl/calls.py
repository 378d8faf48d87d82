"""The calls of an answer, as BFCL asks for them: nothing but calls by keyword, in <function_calls> or bare.

They are read by the parser of the verifier of tool calls; nothing is run. Ai2's handler reads an answer line
by line and gives the arguments to Python's eval; here a call may go over several lines and a line may have
several, and an expression ("3 * 4") is no value.
"""

import re

from megatron_bar.verifiers.tool_call import Call, calls_in

TAG = re.compile(r"</?function_calls>")
CALL = re.compile(r"[\[\s]*[A-Za-z_][\w.-]*\s*\(.*\)[\s\],;]*", re.DOTALL)
"""A line that is meant as a call, whatever stands in the brackets."""


def read(answer: str) -> list[Call]:
    """Returns the calls of an answer; none where anything else stands in it, or where one is unreadable."""
    return calls_in(f"<function_calls>{TAG.sub('', answer)}</function_calls>")


def is_attempt(answer: str) -> bool:
    """Returns whether an answer is meant as calls, readable or not."""
    lines = [line for line in TAG.sub("", answer).splitlines() if line.strip()]
    return bool(read(answer)) or (bool(lines) and all(map(CALL.fullmatch, lines)))
