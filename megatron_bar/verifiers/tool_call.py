"""Tool calls: the right functions with the right arguments, in any order.

truth = {"name": ..., "arguments": {...}, "optional": [...]} or a list of them. The answer calls them as a
chat template writes it: objects of name and arguments (or parameters; as an object or its text; alone or as
the ``function`` of an OpenAI-like call, with an ``id``), or calls by keyword, ``f(x=1)``. Names may have dots
and dashes, values are literals of JSON or of Python. Or they are spelled ``<function=f>`` ... ``</function>``
around an object of arguments (Llama) or ``<parameter=x>`` ... ``</parameter>`` for each (Qwen3-Coder), whose
text is a text or a literal as the truth's value is. Calls stand inside <function_calls> or <tool_call> tags
or a fence, up to the closing one outside of a string, or are all of the answer; objects and <function=f> may
stand anywhere. Every call made counts: one too many is wrong. An optional argument may be missing; given,
it must equal the truth's value if the truth has one.

What cannot be read makes the whole answer wrong, for it may be one more call: another object among the calls,
a key given twice, a brace that opens no object, or in the text around what looks like a call in another
spelling (``g(1)``, ``g[y=1]``, ``<invoke name="g">``, ``Action: g``, ``$ g --y 1``, ``to=functions.g``).
Prose may name a function and an argument of a call that is made (``f()``, ``x=1``).

Values compare as JSON does: 1 = 1.0, true is not 1, lists have an order, objects none. Nothing is run.
"""

import html
import json
import re
import sys

from megatron_bar.errors import BarError
from megatron_bar.verifiers.text import seen

LONGEST = 50_000
"""Characters of an answer; a longer one is no call."""
DEEPEST = 100
OPENING = re.compile(r"<(function_calls?|tool_calls?)>|```(?:\w*\n)?|\{|<function=")
TAG = re.compile(r"<function=([^\s<>]+)>\s*")
PARAMETER = re.compile(r"<parameter=([^\s<>]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)
TAG_END = re.compile(r"</function>")
BETWEEN = re.compile(r"(?:[\s,;\[\]]|(?<!`)`(?!`))*")
FUNCTION = re.compile(r"([^\s()\[\]{}=,;'\"`<>]+)[ \t]*\(")
ARGUMENT = re.compile(r"\s*([^\s()\[\]{}=,;'\"`]+)\s*=")
NUMBER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])")
STRING = re.compile(
    r"\"\"\"((?:[^\\]|\\.)*?)\"\"\"|'''((?:[^\\]|\\.)*?)'''"
    r"|\"((?:[^\"\\\n]|\\.)*+)\"|'((?:[^'\\\n]|\\.)*+)'",
    re.DOTALL,
)
ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|.)", re.DOTALL)
ESCAPES = dict(
    zip("abfnrtv\\'\"\n", ["\a", "\b", "\f", "\n", "\r", "\t", "\v", "\\", "'", '"', ""], strict=True)
)
WORD = re.compile(r"\w+")
WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
MENTION = re.compile(r"(?<![\w.-])([\w.-]++)\(\)")
SPELLED = re.compile(
    r"\w[(\[](?!s\))|\(\s*[\w.-]+\s*=|</?[a-z_][^<>\n]*>|<[|\uff5c<]|<\W?(?:function|tool|action|call)\b"
    r"|[a-z_]\w{0,40}[ \t]{0,4}:?=(?!=)\s*\S|\w(?:::|->|=>)|(?:^|[\s`])--?[a-z]|\bfunctions?\.\w"
    r"|\[tool_\w+\]\s*\w"
    r"|[\"']name[\"']\s*:|^[ \t]*action input[ \t]*:[ \t]*\w|^[ \t]*(?:arguments|parameters|args)[ \t]*[:=]"
    r"|^\W*(?:action|tool|tool (?:name|call|use)|function|fn|call|recipient|command|name)\w*[ \t]*:\W*\w"
    r"|^\W*(?:tool|function|call|invoke|exec|execute|run)[ \t]+(?!(?:the|an?|it|this|that|these|my|to|for)\b)"
    r"[\w.-]+(?:[ \t]+\S+){0,2}(?<![.!?:])[ \t]*$|^[\s`]*(?:\$|>>>)[ \t`]*[a-z]|^[\s`]*[@/!%][a-z]"
    r"|^[ \t]*\([a-z_][\w.-]*(?:[ \t]+(?::\w+|\"[^\"\n]*\"|'[^'\n]*'|[-\d.]+))+\)",
    re.MULTILINE | re.IGNORECASE,
)
"""What in the text around may be a call: a name and what is given to it, in the ways of programming
languages, shells and chat templates."""
TOKENS = re.compile(r"<\|(?:python_tag|im_end|eot_id|eom_id|end_of_text|endoftext)\|>|https?://\S+")
"""What may stand around calls."""
GIVEN = re.compile(r"\b([\w.-]{1,60})[ \t]{0,4}=\s*([\"'`]?)([\w.-]+)\2")
LITERAL = r"[\d.]{1,40}|\"[^\"]*\"|'[^']*'"
"""What a line that is a function's name and a value ends with."""
WIDE = str.maketrans("\uff08\uff09\uff1d\uff1c\uff1a\u207d\u207e\u208d\u208e", "()=<:()()")
Call = tuple[str, dict]


class _Raw(str):
    """An argument's text, of a type that only the truth tells."""


class _Unreadable(ValueError):
    """Text that is no list of calls."""


def verify(response: str, truth) -> float:
    wanted = check(truth)
    made = calls_in(response) if len(response) <= LONGEST else []
    return float(_matches(made, wanted))


def calls_in(response: str) -> list[Call]:
    """Returns every call of the answer, as name and arguments; none where anything in it is unreadable."""
    for read in (_whole, _anywhere):
        try:
            return read(response)
        except ValueError:
            continue
    return []


def _whole(text: str) -> list[Call]:
    return _calls(text, 0, "")[0]


def _anywhere(text: str) -> list[Call]:
    calls = []
    beside = []
    at = 0
    while opening := OPENING.search(text, at):
        beside.append(text[at : opening.start()])
        if opening[0] == "{":
            value, at = _value(text, opening.start())
            calls.append(_object_call(value))
        elif opening[0] == "<function=":
            call, at = _tagged_call(text, opening.start())
            calls.append(call)
        else:
            found, at = _calls(text, opening.end(), f"</{opening[1]}>" if opening[1] else "```")
            calls += found
    _refuse_others(" ".join([*beside, text[at:]]), calls)
    return calls


def _refuse_others(beside: str, calls: list[Call]) -> None:
    """Raises if the text around the calls has what may be another one."""
    called = {name for name, _ in calls}
    named = "|".join(map(re.escape, called)) or r"(?!)"
    bare = re.compile(rf"\W*(?:{named})(?:\W{{1,4}}[\w.-]{{1,40}})?\W{{1,4}}(?:{LITERAL})\W{{0,9}}")
    given = {(key, str(value).lower()) for _, arguments in calls for key, value in arguments.items()}

    def unmade(match: re.Match) -> str:
        return "" if (match[1], match[3].rstrip(".").lower()) in given else match[0]

    for line in TOKENS.sub("", html.unescape(seen(beside))).translate(WIDE).split("\n"):
        left = GIVEN.sub(unmade, MENTION.sub(lambda match: "" if match[1] in called else match[0], line))
        # A function's name with nothing around is no mention but a call.
        if SPELLED.search(left if re.search(r"[^\W\d_]{2}", left) else line) or bare.fullmatch(line):
            raise _Unreadable("what may be a call beside the calls")


def _calls(text: str, at: int, end: str) -> tuple[list[Call], int]:
    """Returns the calls up to ``end`` or the text's end, and the place behind."""
    calls = []
    while (at := BETWEEN.match(text, at).end()) < len(text):
        if end and text.startswith(end, at):
            return calls, at + len(end)
        if text.startswith("```", at):
            at = OPENING.match(text, at).end()
        elif text[at] == "{":
            value, at = _value(text, at)
            calls.append(_object_call(value))
        else:
            call, at = (_tagged_call if TAG.match(text, at) else _keyword_call)(text, at)
            calls.append(call)
    return calls, at


def _keyword_call(text: str, at: int) -> tuple[Call, int]:
    function = _match(FUNCTION, text, at)
    arguments, at = _until(text, function.end(), ")", _argument)
    return (function[1], _dict(arguments)), at


def _tagged_call(text: str, at: int) -> tuple[Call, int]:
    function = _match(TAG, text, at)
    at = function.end()
    if text[at : at + 1] == "{":
        arguments, at = _value(text, at)
        at = _space(text, at)
    else:
        pairs = []
        while parameter := PARAMETER.match(text, at):
            pairs.append((parameter[1], _Raw(parameter[2])))
            at = parameter.end()
        arguments = _dict(pairs)
    return (function[1], arguments), _match(TAG_END, text, at).end()


def _argument(text: str, at: int, depth: int) -> tuple[tuple[str, object], int]:
    name = _match(ARGUMENT, text, at)
    value, at = _value(text, name.end(), depth)
    return (name[1], value), at


def _object_call(value: dict) -> Call:
    fields = dict(value)
    if fields.pop("type", "function") != "function" or not isinstance(fields.pop("id", ""), str):
        raise _Unreadable("an object that is no call")
    if fields.keys() == {"function"} and isinstance(fields["function"], dict):
        return _object_call(fields["function"])
    name = fields.pop("name", None)
    if not isinstance(name, str) or fields.keys() not in ({"arguments"}, {"parameters"}):
        raise _Unreadable("an object that is no call")
    (arguments,) = fields.values()
    if isinstance(arguments, str):
        spelled = arguments.strip()
        arguments, end = _value(spelled, 0)
        if end != len(spelled):
            raise _Unreadable("arguments and something more")
    if not isinstance(arguments, dict):
        raise _Unreadable("no arguments by name")
    return name, arguments


def _value(text: str, at: int, depth: int = 0):
    """Returns the literal, of JSON or Python, at that place, and the place behind it."""
    at = _space(text, at)
    opening = text[at : at + 1]
    if depth == DEEPEST:
        raise _Unreadable("too deep")
    if opening == "{":
        pairs, at = _until(text, at + 1, "}", _pair, depth + 1)
        return _dict(pairs), at
    if opening == "[":
        return _until(text, at + 1, "]", _value, depth + 1)
    if opening == "(":
        items, end = _until(text, at + 1, ")", _value, depth + 1)
        in_brackets = len(items) == 1 and not text[: end - 1].rstrip().endswith(",")
        return (items[0] if in_brackets else tuple(items)), end
    if opening and opening in "\"'":
        string = _match(STRING, text, at)
        return _string(string), string.end()
    if number := NUMBER.match(text, at):
        return _number(number[0]), number.end()
    word = _match(WORD, text, at)
    if word[0] not in WORDS:
        raise _Unreadable("no plain value")
    return WORDS[word[0]], word.end()


def _pair(text: str, at: int, depth: int) -> tuple[tuple[str, object], int]:
    key, at = _value(text, at, depth)
    at = _space(text, at)
    if not isinstance(key, str) or text[at : at + 1] != ":":
        raise _Unreadable("no key")
    value, at = _value(text, at + 1, depth)
    return (key, value), at


def _until(text: str, at: int, closing: str, read, depth: int = 0) -> tuple[list, int]:
    """Returns what ``read`` finds between commas up to the closing bracket, and the place behind it."""
    items = []
    while (at := _space(text, at)) < len(text):
        if text[at] == closing:
            return items, at + 1
        item, at = read(text, at, depth)
        items.append(item)
        at = _space(text, at)
        if text[at : at + 1] == ",":
            at += 1
        elif text[at : at + 1] != closing:
            break
    raise _Unreadable("not closed")


def _space(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _match(pattern: re.Pattern, text: str, at: int) -> re.Match:
    match = pattern.match(text, at)
    if match is None:
        raise _Unreadable(f"no {pattern.pattern:.20} at {at}")
    return match


def _string(match: re.Match) -> str:
    try:
        return json.loads(match[0])
    except ValueError:
        body = next(group for group in match.groups() if group is not None)
        return ESCAPE.sub(_escaped, body)


def _escaped(match: re.Match) -> str:
    code = match[1]
    if code[0] in "xuU" and len(code) > 1:
        number = int(code[1:], 16)
        if number > sys.maxunicode:
            raise _Unreadable("a character that there is not")
        return chr(number)
    return chr(int(code, 8)) if code[0] in "01234567" else ESCAPES.get(code, match[0])


def _number(text: str) -> int | float:
    try:
        return int(text, 0)
    except ValueError:
        return float(text)


def _dict(pairs: list[tuple[str, object]]) -> dict:
    if len(dict(pairs)) != len(pairs):
        raise _Unreadable("a name given twice")
    return dict(pairs)


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
    """Compares what was given with what is wanted."""
    if isinstance(a, _Raw) and not isinstance(b, str):
        text = a.strip()
        try:
            value, end = _value(text, 0)
        except ValueError:
            return False
        return end == len(text) and _equal(value, b)
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return a == b and (isinstance(a, str) or type(a) is type(b))


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
