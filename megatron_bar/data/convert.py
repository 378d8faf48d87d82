"""Rows of public sets to rows of ours: what their columns hold becomes what sources.py asks for.

A function a kind; each takes a row of the set and returns one of ours, or raises `Refused` where nobody can
say what the row means. `check_line` then reads the very line that is written as a stage will read it.
"""

import datetime
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.hub import FromHub
from megatron_bar.data.sources import PUBLISHED, parse
from megatron_bar.data.tokenizer import END, PAD
from megatron_bar.errors import BarError
from megatron_bar.verifiers import check_task

SPEAKERS = ("system", "developer", "environment", "tool")
"""Who may say nothing: a row that says null means an empty text."""
SAID = ("content", "function_calls", "tool_calls")
FIM = ("prefix", "suffix", "middle")
FIM_TOKEN = re.compile(r"<\|fim_(prefix|suffix|middle)\|>")
COLUMNS = {
    "chat": (("messages",),),
    "task": (("messages", "prompt"), ("ground_truth",)),
    "preference": (("chosen",), ("rejected",)),
    "text": (("text",),),
    "fim": (("text", "prefix"),),
    "rows": (),
}
"""Of each kind, columns of which the set must have one each."""


class Refused(BarError):
    """A row that cannot be used."""


def convert(row: dict, wanted: FromHub) -> dict:
    """Returns the row of ours that a row of a public set becomes."""
    return CONVERTERS[wanted.convert](row, wanted)


def _chat(row: dict, wanted: FromHub) -> dict:
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise Refused(f"messages must be a list, got {type(messages).__name__}")
    messages = [_message(message) for message in messages]
    messages = [message for message in messages if not _says_nothing(message)]
    if not any(message.get("role") == "assistant" for message in messages):
        raise Refused("expected an assistant message that says something, got none")
    return _with_tools(row, {"messages": messages})


def _message(message) -> dict:
    """Returns the message without what is null, as templates know it."""
    if not isinstance(message, dict):
        raise Refused(f"message expected with a role and content, got {type(message).__name__}")
    message = {key: value for key, value in message.items() if value is not None}
    if message.get("role") in SPEAKERS:
        message.setdefault("content", "")
    if isinstance(message.get("function_calls"), list):
        message["function_calls"] = "\n".join(_call(call) for call in message["function_calls"])
    if isinstance(message.get("functions"), list | dict) and message["functions"]:
        message["functions"] = json.dumps(message["functions"], ensure_ascii=False)
    return {key: value for key, value in message.items() if key == "content" or value not in ("", [], {})}


def _call(call) -> str:
    """Returns a call as templates write it, of a text or of an object of name and arguments."""
    if isinstance(call, str):
        return call
    function = call.get("function", call) if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    arguments = _json(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(arguments, dict) or not isinstance(function.get("name"), str):
        raise Refused(f"function_calls expected as texts or objects of name and arguments, got {call!r:.80}")
    given = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return f"{function['name']}({', '.join(given)})"


def _says_nothing(message: dict) -> bool:
    return message.get("role") == "assistant" and not any(message.get(key) for key in SAID)


def _with_tools(row: dict, made: dict) -> dict:
    tools = row.get("tools")
    return made | {"tools": tools} if tools else made


def _task(row: dict, wanted: FromHub) -> dict:
    name = row.get("dataset") or wanted.verifier
    if isinstance(name, list) and len(name) == 1:
        name = name[0]
    if not isinstance(name, str) or not name:
        raise Refused(f"dataset expected as the name of one, got {name!r:.100}")
    name = name.lower()
    if name not in PUBLISHED:
        raise Refused(f"expected a data set out of {', '.join(PUBLISHED)}, got {name!r:.100}")
    truth = _truth(name, row.get("ground_truth"))
    return _with_tools(row, {"messages": _asked(row), "verifier": PUBLISHED[name], "truth": truth})


def _asked(row: dict) -> list[dict]:
    """Returns what is asked: without a final answer, and without the name that flattened prompts start
    with."""
    messages = row.get("messages")
    if messages is None:
        prompt = row.get("prompt")
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": re.sub(r"\Auser: ", "", prompt)}]
        messages = prompt
    if not isinstance(messages, list):
        raise Refused(f"messages or prompt expected as a list or a text, got {type(messages).__name__}")
    messages = [_message(message) for message in messages]
    while messages and messages[-1].get("role") == "assistant":
        messages.pop()
    if not messages:
        raise Refused("expected a message before the answer, got none")
    return messages


def _truth(name: str, truth):
    """Returns the truth in the form of our verifier of that data set."""
    while isinstance(truth, list) and len(truth) == 1 and not _is_assert(truth[0]):
        truth = truth[0]
    if PUBLISHED[name] == "code" and isinstance(truth, str):
        truth = _json(truth)
    if name == "code_stdio" and isinstance(truth, list):
        truth = {"stdin_tests": [_stdin_test(test) for test in truth]}
    if PUBLISHED[name] == "instruction":
        truth = {"constraints": truth, "reward": "fraction"}  # as open-instruct rewards
    return truth


def _is_assert(value) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("assert")


def _json(text: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _stdin_test(test):
    """Returns a test of open-instruct's as [input, output]."""
    if isinstance(test, dict) and {"input", "output"} <= test.keys():
        return [test["input"], test["output"]]
    return test


def _preference(row: dict, wanted: FromHub) -> dict:
    made = {}
    for key in ("messages", "chosen", "rejected"):
        value = row.get(key)
        if isinstance(value, list):
            value = [_message(message) for message in value]
        if value is not None:
            made[key] = value
    return _with_tools(row, made)


def _text(row: dict, wanted: FromHub) -> dict:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        got = "an empty one" if isinstance(text, str) else type(text).__name__
        raise Refused(f"text expected, got {got}")
    return {"text": text}


def _fim(row: dict, wanted: FromHub) -> dict:
    """Returns a document to fill in as its three parts: what stands around a gap, and the gap."""
    if all(isinstance(row.get(part), str) for part in FIM):
        return {part: row[part] for part in FIM}
    text = _text(row, wanted)["text"]
    pieces = FIM_TOKEN.split(text)
    if len(pieces) == 1:
        return {"text": text}
    if pieces[0] or tuple(pieces[1::2]) != FIM:
        raise Refused(
            f"text to fill in expected as one prefix, suffix and middle, got {', '.join(pieces[1::2]):.60}"
            f"{' behind other text' if pieces[0] else ''}"
        )
    return dict(zip(FIM, pieces[2::2], strict=True))


def _row(row: dict, wanted: FromHub) -> dict:
    """Returns the row with values that JSON has."""
    for name in wanted.columns:
        if name not in row:
            raise Refused(f"expected a column {name}, got {', '.join(map(str, row)) or 'none'}")
    return _plain(row)


def _plain(value):
    match value:
        case dict():
            return {key: _plain(entry) for key, entry in value.items()}
        case list():
            return [_plain(entry) for entry in value]
        case float() if not math.isfinite(value):
            return None  # what tables write where there is nothing
        case datetime.date():
            return value.isoformat()
    return value


CONVERTERS: dict[str, Callable[[dict, FromHub], dict]] = {
    "chat": _chat,
    "task": _task,
    "preference": _preference,
    "text": _text,
    "fim": _fim,
    "rows": _row,
}


@dataclass(frozen=True)
class NoTokenizer:
    """Stands for a tokenizer that is not there: enough of one to lay chats out, and no length is of any
    meaning."""

    path: Path = Path("no tokenizer")
    special: dict[str, int] = field(
        default_factory=lambda: {END: 0, PAD: 1, "<|im_start|>": 2, "<|im_end|>": 3}
    )
    bos: str = END
    eos: str = END
    eos_id: int = 0
    template: None = None
    hash: None = None

    def encode_text(self, text: str) -> list[int]:
        return [4]


def check_line(line: bytes, wanted: FromHub, chats: ChatFormat, where: str) -> int:
    """Reads a line as a stage does, which lays its chats out by ``chats``; returns the tokens of a task's
    prompt, else 0."""
    if wanted.convert == "rows":
        return 0
    row = parse(line, "text" if wanted.convert == "fim" else wanted.convert, where)
    options = {"tools": row.get("tools"), "where": where}
    if wanted.convert == "chat":
        chats.check(row["messages"], **options)
    elif wanted.convert == "task":
        check_task(row["verifier"], row["truth"], where)
        return len(chats.prompt(row["messages"], **options))
    elif wanted.convert == "preference":
        for answer in ("chosen", "rejected"):
            chats.check([*row["messages"], row[answer]], **options)
    return 0


def reason(error: BarError, where: str) -> str:
    """Returns what a row was refused for, without what is that row's own: what was got, and numbers."""
    text = str(error).removeprefix(f"{where}: ")
    text = re.split(r"[,;:]? (?:got|found) ", text)[0]
    return re.sub(r"\b\d+\b", "N", text)
