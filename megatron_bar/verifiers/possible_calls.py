"""Possible calls: BFCL's check of calls (its AST checker). Each wanted call is made once, in any order, with
the declared types and one of the possible values.

truth = {"functions": [BFCL's descriptions, in Python's types], "calls": [{name: {argument: [possible
values]}}, ...]}, as its items have them. The answer is nothing but calls by keyword, in <function_calls> or
bare.

An argument may be missing where "" is among its possible values and the function does not require it. Types
are exact (True is no integer, 3 is a float), one level into lists. A value of another type counts where the
possible values have that type: names of variables, as texts. Texts compare without case, spaces and
``,./-_*^``. Java's and JavaScript's values are texts that spell them (spelled.py).
"""

import re

from megatron_bar.errors import BarError
from megatron_bar.verifiers import spelled
from megatron_bar.verifiers.tool_call import LONGEST, Call, calls_in

TYPES = {
    "python": {
        "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list,
        "dict": dict, "any": str,
    },
    "java": {
        "byte": int, "short": int, "integer": int, "float": float, "double": float, "long": int,
        "boolean": bool, "char": str, "Array": list, "ArrayList": list, "Set": set, "HashMap": dict,
        "Hashtable": dict, "Queue": list, "Stack": list, "String": str, "any": str,
    },
    "javascript": {
        "String": str, "integer": int, "float": float, "Bigint": int, "Boolean": bool, "dict": dict,
        "array": list, "any": str,
    },
}  # fmt: skip
LISTS = {"python": ("array", "tuple"), "java": ("Array", "ArrayList"), "javascript": ("array",)}
"""Types whose elements have a declared type."""
IGNORED = re.compile(r"[ ,./\-_*^]")
TAG = re.compile(r"</?function_calls>")


def verify(response: str, truth) -> float:
    functions, wanted = check(truth)
    return float(len(response) <= LONGEST and right(read(response), functions, wanted, "python"))


def check(truth) -> tuple[list[dict], list[dict]]:
    try:
        functions, wanted = truth["functions"], truth["calls"]
        known = {function["name"]: function["parameters"]["properties"] for function in functions}
        for declared in (one for properties in known.values() for one in properties.values()):
            if declared["type"] not in TYPES["python"]:
                raise ValueError(f"type {declared['type']!r}")
            if declared["type"] in LISTS["python"]:
                inner = declared["items"]["type"]
                if not isinstance(inner, str):
                    raise ValueError(f"items of type {inner!r}")
        for name, possible in (item for call in wanted for item in call.items()):
            if name not in known or not all(isinstance(v, list) and v for v in possible.values()):
                raise ValueError(f"{name} of {possible!r}")
        if not wanted:
            raise ValueError("no call")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BarError(
            "possible_calls truth: expected functions and calls, each {name of a function: {argument: "
            f"[values]}}}}, found {truth!r:.200} ({error!r:.100})"
        ) from error
    return functions, wanted


def read(answer: str) -> list[Call]:
    """Returns the calls of an answer; none where anything else stands in it, or where one is unreadable."""
    return calls_in(f"<function_calls>{TAG.sub('', answer)}</function_calls>")


def right(calls: list[Call], functions: list[dict], wanted: list[dict], language: str) -> bool:
    """Returns whether ``calls`` are the ``wanted`` ones, each {name: {argument: possible values}}. Each takes
    the first call that fits and that no earlier one took."""
    left = list(calls)
    for name, possible in (item for truth in wanted for item in truth.items()):
        function = next((found for found in functions if found["name"] == name), functions[0])
        taken = next((n for n, call in enumerate(left) if _fits(call, function, possible, language)), None)
        if taken is None:
            return False
        del left[taken]
    return not left


def _fits(call: Call, function: dict, possible: dict[str, list], language: str) -> bool:
    name, arguments = call
    declared = function["parameters"]["properties"]
    required = set(function["parameters"].get("required", ()))
    required |= {key for key, values in possible.items() if "" not in values}
    allowed = declared.keys() & possible.keys()
    return (
        name == function["name"]
        and required <= arguments.keys() <= allowed
        and all(_value_fits(arguments[key], declared[key], possible[key], language) for key in arguments)
    )


def _value_fits(value: object, declared: dict, possible: list, language: str) -> bool:
    kind = declared["type"]
    inner = declared["items"]["type"] if kind in LISTS[language] else None
    if language != "python":
        if not isinstance(value, str):
            return False
        value = spelled.read(value, language, kind, inner)
    elif kind == "tuple" and isinstance(value, tuple):
        value = list(value)
    elif kind == "float" and type(value) is int and abs(value) < 2**1000:
        value = float(value)
    wanted, within = TYPES[language][kind], TYPES[language].get(inner)
    given = next((type(choice) for choice in possible if choice != ""), None)
    if type(value) is not wanted:
        return type(value) is given and value in possible
    if within and not any(_all_within(value, choice, within) for choice in possible):
        return False
    if given not in (None, wanted):
        return value in possible
    return any(_same(value, choice, within) for choice in possible)


def _all_within(elements: list, choice: object, within: type) -> bool:
    """Returns whether all elements have the declared type, or that of a possible value's first element."""
    if not isinstance(choice, list):
        return True
    given = next((type(element) for element in choice if element != ""), None)
    return all(type(element) in (within, given) for element in elements)


def _same(value: object, choice: object, within: type | None) -> bool:
    if isinstance(value, dict):
        return choice != "" and _same_dict(value, choice)
    if isinstance(value, str):
        return isinstance(choice, str) and _bare(value) == _bare(choice)
    if not isinstance(value, list):
        return value == choice
    if within is dict:
        return len(value) == len(choice) and all(map(_same_dict, value, choice))
    return [_bare(element) for element in value] == [_bare(element) for element in choice]


def _same_dict(value: object, choice: object) -> bool:
    """Returns whether ``value`` has the keys of ``choice``, each with one of its possible values."""
    if not isinstance(value, dict) or not isinstance(choice, dict):
        return value == choice
    given = all(
        key in choice and _bare(part) in [_bare(element) for element in choice[key]]
        for key, part in value.items()
    )
    return given and all(key in value or "" in choice[key] for key in choice)


def _bare(value: object) -> object:
    """Returns a text as texts are compared; anything else as it is."""
    return IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
