"""Possible calls: the calls of a BFCL item in Python, by the rules of BFCL's AST check.

truth = {"functions": [the functions told of], "calls": [{name: {argument: [its possible values]}}, ...]}, as
BFCL keeps them. "" among the values says that the argument may be missing. Texts compare without case, spaces
and ``,./-_*^``; an integer does for a float, otherwise types are exact. The answer is read as tool_call.py
reads it: one call too many or anything unreadable is wrong.
"""

import re

from megatron_bar.errors import BarError
from megatron_bar.verifiers.tool_call import LONGEST, calls_in

TYPES = {"string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list,
         "dict": dict, "any": str}  # fmt: skip
IGNORED = re.compile(r"[ ,./\-_*^]")


def verify(response: str, truth) -> float:
    wanted = check(truth)
    left = calls_in(response) if len(response) <= LONGEST else []
    for function, possible in wanted:
        taken = next((n for n, call in enumerate(left) if _fits(call, function, possible)), None)
        if taken is None:
            return 0.0
        del left[taken]
    return float(not left)


def check(truth) -> list[tuple[dict, dict]]:
    """Returns the function and the possible values of each call."""
    try:
        functions = {function["name"]: function for function in truth["functions"]}
        wanted = [(functions[name], values) for call in truth["calls"] for name, values in call.items()]
        for function, possible in wanted:
            declared = function["parameters"]["properties"]
            if not possible.keys() <= declared.keys() or not all(map(_known, declared.values())):
                raise KeyError("an argument that is not declared")
            if not all(isinstance(values, list) and values for values in possible.values()):
                raise TypeError("no list of values")
    except (KeyError, TypeError, AttributeError) as error:
        raise BarError(
            "possible_calls truth: expected functions and calls, each {name: {argument: [values]}} of one of "
            f"them, found {truth!r:.200} ({error})"
        ) from error
    if not wanted:
        raise BarError("possible_calls truth: expected at least one call, found an empty list")
    return wanted


def _known(declared: dict) -> bool:
    return declared["type"] in TYPES


def _fits(call: tuple[str, dict], function: dict, possible: dict) -> bool:
    name, arguments = call
    declared = function["parameters"]["properties"]
    required = set(function["parameters"].get("required", ()))
    required |= {key for key, values in possible.items() if "" not in values}
    return (
        name == function["name"]
        and required <= arguments.keys() <= possible.keys()
        and all(_value_fits(value, declared[key], possible[key]) for key, value in arguments.items())
    )


def _value_fits(value, declared: dict, possible: list) -> bool:
    if declared["type"] == "float" and type(value) is int:
        value = float(value)
    wanted = TYPES[declared["type"]]
    choices = [choice for choice in possible if choice != "" or wanted is str]
    if isinstance(value, tuple):
        value = list(value)
    # A variable's name may stand where a value of another type is declared: then it must be said exactly.
    if type(value) is not wanted:
        return any(type(value) is type(choice) and value == choice for choice in choices)
    return any(_same(value, choice) for choice in choices)


def _same(value, choice) -> bool:
    if isinstance(value, dict) and isinstance(choice, dict):
        # The values of an object's keys are lists of possible ones again.
        return value.keys() <= choice.keys() and all(
            any(_same(value[key], one) for one in among) if key in value else "" in among
            for key, among in (
                (key, found if isinstance(found, list) else [found]) for key, found in choice.items()
            )
        )
    if isinstance(value, list) and isinstance(choice, list):
        return len(value) == len(choice) and all(map(_same, value, choice))
    if isinstance(value, bool) or isinstance(choice, bool):
        return value is choice
    if isinstance(value, int | float) and isinstance(choice, int | float):
        return value == choice
    return type(value) is type(choice) and _bare(value) == _bare(choice)


def _bare(value):
    return IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
