"""Tool use: calls in BFCL's form, over functions of functions.txt.

A request names a function's arguments in a sentence; the model is told of that function, alone or among
others, in BFCL's description (Python types, ``dict`` for the whole), and answers with the call and nothing
else. A function is on one side of the split with all of its names, so that a held-out request is for a
function that no training row has.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from random import Random

from megatron_bar.data.smol.values import KINDS
from megatron_bar.data.world.lexicon import Example, Side

SYSTEMS = (
    "You can call functions. Answer with nothing but the call that the request needs, by keyword: "
    "name(argument=value).",
    "Decide which of the functions serves the request, and call it with the values that the request gives. "
    "Write the call alone, as func(param=value).",
    "Here are functions that you may call. Reply only with a function call in Python syntax.",
    "You are good at calling functions. You get a question and descriptions of functions that may help with "
    "it. Return function calls only, no other text, in this form:\n<function_calls>\n"
    "function_name(first_parameter=value, second_parameter=value)\n</function_calls>\nLeave out parameters "
    "that the question says nothing about and that are not required.",
)
OPENINGS = ("", "", "", "", "Hi. ", "Could you help me? ", "Quick question: ", "I have a request. ")
HELD_OUT = {"test": 0.2, "validation": 0.08}
SINGLE = 0.6
"""Share of the requests for which one function is offered."""
STATED = " Note that the provided function is in Python 3 syntax."
"""What BFCL adds to a description."""


@dataclass(frozen=True)
class FunctionParameter:
    name: str
    kind: str
    text: str
    said: str | None
    """How a request mentions one that may be left out."""


@dataclass(frozen=True)
class ToolFunction:
    names: tuple[str, ...]
    text: str
    requests: tuple[str, ...]
    parameters: tuple[FunctionParameter, ...]


@cache
def functions() -> tuple[ToolFunction, ...]:
    text = resources.files(__package__).joinpath("functions.txt").read_text(encoding="utf-8")
    blocks = [block.splitlines() for block in text.strip().split("\n\n")[1:]]
    return tuple(
        ToolFunction(_parts(names), text, _parts(requests), tuple(map(_parameter, parameters)))
        for names, text, requests, *parameters in blocks
    )


def _parts(line: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in line.split("|"))


def _parameter(line: str) -> FunctionParameter:
    name, kind, text, *said = (part.strip() for part in line.split(": "))
    return FunctionParameter(name.removesuffix("?"), kind, text, said[0] if name.endswith("?") else None)


def of_side(seed: int, side: Side) -> list[ToolFunction]:
    """Returns the functions of one side of the split."""
    ordered = list(functions())
    Random(f"{seed}/functions").shuffle(ordered)
    tests = round(HELD_OUT["test"] * len(ordered))
    unseen = tests + round(HELD_OUT["validation"] * len(ordered))
    return {"test": ordered[:tests], "validation": ordered[tests:unseen], "training": ordered[unseen:]}[side]


def sample(rng: Random, offered: list[ToolFunction]) -> Example:
    """Returns a request for one of ``offered`` and its call."""
    more = 1 if rng.random() < SINGLE else rng.randrange(2, 4)
    chosen = rng.sample(offered, more)
    wanted = chosen[0]
    name = rng.choice(wanted.names)
    asked, arguments, given = _request(rng, wanted)
    told = [_described(rng, function, name if function is wanted else rng.choice(function.names), given)
            for function in chosen]  # fmt: skip
    rng.shuffle(told)
    spelled = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return Example(
        key=("tool_use", name, asked),
        prompt=(
            {"role": "system", "content": rng.choice(SYSTEMS)},
            {"role": "user", "content": rng.choice(OPENINGS) + asked},
        ),
        answer=f"<function_calls>{name}({spelled})</function_calls>",
        verifier="tool_call",
        truth={"name": name, "arguments": arguments},
        tools=[{"type": "function", "function": function} for function in told],
    )


def _request(rng: Random, function: ToolFunction) -> tuple[str, dict, set[str]]:
    """Returns a request, its arguments and the names of those that could have been left out."""
    arguments = {}
    said = {}
    clauses = []
    for parameter in function.parameters:
        if parameter.said is not None and rng.random() < 0.6:
            continue
        value, spelled = KINDS[parameter.kind].draw(rng)
        while spelled and spelled in said.values():  # from Oslo to Oslo
            value, spelled = KINDS[parameter.kind].draw(rng)
        arguments[parameter.name] = value
        said[parameter.name] = spelled
        if parameter.said is not None:
            clauses.append(parameter.said)
    asked = rng.choice(function.requests)
    mark = "?" if asked.endswith("?") else rng.choice((".", "."))
    text = " ".join([asked.removesuffix("?"), *clauses]).format(**said) + mark
    return text, arguments, {p.name for p in function.parameters if p.said is not None} & arguments.keys()


def _described(rng: Random, function: ToolFunction, name: str, given: set[str]) -> dict:
    """Returns BFCL's description; a parameter that may be left out, and is, is not always told of."""
    told = [p for p in function.parameters if p.said is None or p.name in given or rng.random() < 0.7]
    properties = {p.name: KINDS[p.kind].schema | {"description": p.text} for p in told}
    return {
        "name": name,
        "description": function.text + STATED,
        "parameters": {
            "type": "dict",
            "properties": properties,
            "required": [p.name for p in told if p.said is None],
        },
    }
