"""Tool calls: the right functions with the right arguments, in any order.

truth = {"name": ..., "arguments": {...}, "optional": [...]} or a list of them. The answer holds JSON objects
of name and arguments (alone, in a list, or one after another) or Python calls with keyword arguments
(``f(x=1)``, one per line or in a list), inside <function_calls> tags or, without any tag, anywhere in the
text (JSON) or as the whole text (Python). Every call made counts: one too many is wrong. An optional argument
may be missing; given, it must equal the truth's value if the truth has one.

What cannot be read makes the whole answer wrong, for it may be one more call: another object among the calls,
a key given twice, a brace that opens no JSON, something like ``g(`` beside JSON. Quirk: text around
<function_calls> tags is not read.

Values compare as JSON does: 1 = 1.0, true is not 1, lists have an order, objects none. Python calls are read,
never run, and their values are what JSON could hold.
"""

import ast
import json
import re

from megatron_bar.errors import BarError

TAGS = re.compile(r"<function_calls>(.*?)(?:</function_calls>|\Z)", re.DOTALL)
CALL_IN_TEXT = re.compile(r"\w\(")
LONGEST = 20_000
"""Characters of an answer; a longer one is no call, and reading it could take long."""
# What json and ast raise on text that they cannot read.
UNREADABLE = (ValueError, SyntaxError, RecursionError, MemoryError)
Call = tuple[str, dict]


class _Unreadable(ValueError):
    """Text that is no list of calls."""


def verify(response: str, truth) -> float:
    wanted = check(truth)
    made = calls_in(response) if len(response) <= LONGEST else []
    return float(_matches(made, wanted))


def calls_in(response: str) -> list[Call]:
    """Returns every call of the answer, as name and arguments; none where anything in it is unreadable."""
    tagged = TAGS.findall(response)
    try:
        return [call for text in tagged or [response] for call in _calls(text)]
    except UNREADABLE:
        return []


def _calls(text: str) -> list[Call]:
    try:
        return _python_calls(text)
    except UNREADABLE:
        return _json_calls(text)


def _json_calls(text: str) -> list[Call]:
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
    calls = []
    beside = []
    at = 0
    while (start := text.find("{", at)) >= 0:
        beside.append(text[at:start])
        value, at = decoder.raw_decode(text, start)
        fields = value.keys() == {"name", "arguments"}
        if not fields or type(value["name"]) is not str or type(value["arguments"]) is not dict:
            raise _Unreadable("an object that is no call")
        calls.append((value["name"], value["arguments"]))
    if CALL_IN_TEXT.search(" ".join([*beside, text[at:]])):
        raise _Unreadable("a call beside JSON")
    return calls


def _object(pairs: list[tuple[str, object]]) -> dict:
    if len(dict(pairs)) != len(pairs):
        raise _Unreadable("a key given twice")
    return dict(pairs)


def _no_constant(name: str):
    raise _Unreadable(name)


def _python_calls(text: str) -> list[Call]:
    body = ast.parse(text.strip()).body
    if not all(isinstance(statement, ast.Expr) for statement in body):
        raise _Unreadable("no expression")
    expressions = [statement.value for statement in body]
    nodes = [node for e in expressions for node in (e.elts if isinstance(e, ast.List | ast.Tuple) else [e])]
    return [_python_call(node) for node in nodes]


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise _Unreadable("no call by keyword")
    arguments = [(keyword.arg, _value(keyword.value)) for keyword in node.keywords]
    return ast.unparse(node.func), _object(arguments)


def _value(node: ast.expr):
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(
            op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)
        ) if type(value) is not bool:
            return -value if isinstance(sign, ast.USub) else value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if all(
            isinstance(k, ast.Constant) and type(k.value) is str for k in keys
        ):
            return _object([(key.value, _value(value)) for key, value in zip(keys, values, strict=True)])
    raise _Unreadable("no plain value")


def _matches(made: list[Call], wanted: list[tuple[str, dict, frozenset]]) -> bool:
    """Returns whether all calls made can be paired with all calls wanted. By augmenting paths: optional
    arguments let one call fit several."""
    maker = {}

    def place(i: int, tried: set) -> bool:
        for j, want in enumerate(wanted):
            if j not in tried and _fits(made[i], want):
                tried.add(j)
                if j not in maker or place(maker[j], tried):
                    maker[j] = i
                    return True
        return False

    return len(made) == len(wanted) and all(place(i, set()) for i in range(len(made)))


def _fits(call: Call, wanted: tuple[str, dict, frozenset]) -> bool:
    name, arguments = call
    wanted_name, wanted_arguments, optional = wanted
    required = wanted_arguments.keys() - optional
    if name != wanted_name or not required <= arguments.keys() <= wanted_arguments.keys() | optional:
        return False
    judged = arguments.keys() & wanted_arguments.keys()
    return all(_equal(arguments[key], wanted_arguments[key]) for key in judged)


def _equal(a, b) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def check(truth) -> list[tuple[str, dict, frozenset]]:
    wanted = [_parse_call(call) for call in (truth if isinstance(truth, list | tuple) else [truth])]
    if not wanted:
        raise BarError("tool_call truth: expected at least one call, found an empty list")
    return wanted


def _parse_call(call) -> tuple[str, dict, frozenset]:
    fields = call if isinstance(call, dict) else {}
    name = fields.get("name")
    arguments = fields.get("arguments")
    optional = fields.get("optional", [])
    names_optional = isinstance(optional, list | tuple) and all(isinstance(o, str) for o in optional)
    known = fields.keys() <= {"name", "arguments", "optional"}
    if not (known and names_optional and isinstance(name, str) and name and isinstance(arguments, dict)):
        raise BarError(
            "tool_call truth: expected name, arguments (an object) and perhaps optional (names), "
            f"found {call!r:.200}"
        )
    try:
        json.dumps(arguments, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BarError(
            f"tool_call truth: expected arguments that JSON can hold, found {arguments!r:.200} ({error})"
        ) from error
    if not all(isinstance(key, str) for key in arguments):
        raise BarError(f"tool_call truth: expected names of arguments, found {list(arguments)!r:.200}")
    return name, arguments, frozenset(optional)
