"""Tool calls: the right functions with the right arguments, in any order.

truth = {"name": ..., "arguments": {...}, "optional": [...]} or a list of them. The answer holds JSON objects of name and
arguments (alone, in a list, or one after another) or Python calls with keyword arguments (``f(x=1)``, one per line or in a
list), inside <function_calls> tags or, without any tag, anywhere in the text (JSON) or as the whole text (Python). Every call
made counts: one too many is wrong. An optional argument may be missing; given, it must equal the truth's value if the truth
has one.

Values compare as JSON does: 1 = 1.0, true is not 1, lists have an order, objects none. Python calls are read, never run.
"""

import ast
import json
import re

from megatron_bar.errors import BarError

TAGS = re.compile(r"<function_calls>(.*?)(?:</function_calls>|\Z)", re.DOTALL)
LONGEST = 20_000
"""Characters; a longer answer is no call, and reading it could take long."""


def verify(response: str, truth) -> float:
    wanted = [_parse_truth(call) for call in (truth if isinstance(truth, list | tuple) else [truth])]
    if not wanted:
        raise BarError("tool_call truth: expected at least one call, found an empty list")
    made = calls_in(response) if len(response) <= LONGEST else []
    return float(_matches(made, wanted))


def calls_in(response: str) -> list[tuple[str, dict]]:
    """Every call of the answer, as name and arguments; what cannot be read is no call."""
    tagged = TAGS.findall(response)
    if not tagged:
        return _json_calls(response) or _python_calls(response)
    return [call for block in tagged for call in _json_calls(block) or _python_calls(block)]


def _json_calls(text: str) -> list[tuple[str, dict]]:
    decoder, calls, at = json.JSONDecoder(), [], 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        if value.keys() == {"name", "arguments"} and isinstance(value["name"], str) and isinstance(value["arguments"], dict):
            calls.append((value["name"], value["arguments"]))
    return calls


def _python_calls(text: str) -> list[tuple[str, dict]]:
    try:
        body = ast.parse(text.strip()).body
        expressions = [statement.value for statement in body if isinstance(statement, ast.Expr)]
        nodes = [node for e in expressions for node in (e.elts if isinstance(e, ast.List | ast.Tuple) else [e])]
        return [_python_call(node) for node in nodes] if len(expressions) == len(body) else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # what ast raises on text that is no Python or too deep
        return []


def _python_call(node: ast.expr) -> tuple[str, dict]:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("no call by keyword")
    return ast.unparse(node.func), {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}


def _matches(made: list[tuple[str, dict]], wanted: list[tuple[str, dict, frozenset]]) -> bool:
    """Can all calls made be paired with all calls wanted? By augmenting paths: optional arguments let one call fit several."""
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


def _fits(call: tuple[str, dict], wanted: tuple[str, dict, frozenset]) -> bool:
    (name, arguments), (wanted_name, wanted_arguments, optional) = call, wanted
    required = wanted_arguments.keys() - optional
    if name != wanted_name or not required <= arguments.keys() <= wanted_arguments.keys() | optional:
        return False
    return all(_equal(value, wanted_arguments[key]) for key, value in arguments.items() if key in wanted_arguments)


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


def _parse_truth(call) -> tuple[str, dict, frozenset]:
    fields = call if isinstance(call, dict) else {}
    name, arguments, optional = fields.get("name"), fields.get("arguments"), fields.get("optional", [])
    names_optional = isinstance(optional, list | tuple) and all(isinstance(o, str) for o in optional)
    known = fields.keys() <= {"name", "arguments", "optional"}
    if not (known and names_optional and isinstance(name, str) and name and isinstance(arguments, dict)):
        raise BarError(f"tool_call truth: expected name, arguments (an object) and perhaps optional (names), found {call!r:.200}")
    return name, arguments, frozenset(optional)
