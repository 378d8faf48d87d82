"""What BFCL asks a model: its system text in the words of Ai2's handler (AllenAICodeHandler of olmes' BFCL
v3), and the functions for the chat template's section of tools, as BFCL describes them in each language.
"""

import json

from megatron_bar.evaluation.benchmarks.bar19.bfcl.categories import of
from megatron_bar.evaluation.benchmarks.benchmark import Messages

SYSTEM = (
    "You are an expert in composing functions. You are given a question and a set of possible functions. "
    "Based on the question, you will need to make one or more function/tool calls to achieve the purpose.\n"
    "If none of the functions can be used, point it out. If the given question lacks the parameters required "
    "by the function, also point it out.\nYou should only return the function calls in your response.\n\n"
    "If you decide to invoke any of the function(s), you MUST put it in the format of \n<function_calls>\n"
    "func_name1(params_name1=params_value1, params_name2=params_value2, ...)\n"
    "module_name.func_name2(params_name3=params_value3, ...)\n</function_calls>\n\n"
    "You SHOULD NOT include any other text in the response.\n\n"
    "At each turn, you should try your best to complete the tasks requested by the user within the current "
    "turn. Continue to output functions to call until you have fulfilled the user's request to the best of "
    "your ability. Once you have no more functions to call, the system will consider the current turn "
    "complete and proceed to the next turn or task.\n"
)
FUNCTIONS = "\nHere is a list of functions in JSON format that you can invoke."
NEW_FUNCTIONS = "{functions}\nI have updated some more functions you can choose from. What about now?"
HINTS = {
    "python": " Note that the provided function is in Python 3 syntax.",
    "java": " Note that the provided function is in Java 8 SDK syntax.",
    "javascript": " Note that the provided function is in JavaScript syntax.",
}
NAMES = {"java": "Java", "javascript": "JavaScript"}
LISTS = ("ArrayList", "Array", "array")


def beginning(row: dict) -> Messages:
    """Returns the system message and the first turn; a system text of the row's own stands before the
    functions."""
    first, *rest = row["question"][0]
    own = first["content"] if first["role"] == "system" else ""
    system = SYSTEM + (f"\n{own}\n" if own else "") + FUNCTIONS
    return [{"role": "system", "content": system}, *([] if own else [first]), *rest]


def turn(row: dict, number: int) -> Messages:
    """Returns what the user says in a later turn: words, or functions that were missing so far."""
    functions = row["missed_function"].get(str(number))
    if functions:
        return [{"role": "user", "content": NEW_FUNCTIONS.format(functions=functions)}]
    return row["question"][number]


def tools(row: dict) -> list[dict]:
    """Returns the functions in OpenAI's form; arguments in Java and JavaScript are texts of theirs."""
    language = of(row).language
    return [{"type": "function", "function": _told(function, language)} for function in row["function"]]


def _told(function: dict, language: str) -> dict:
    parameters = function["parameters"]
    if language != "python":
        properties = {
            name: _as_text(declared, language) for name, declared in parameters["properties"].items()
        }
        parameters = parameters | {"properties": properties}
    return function | {"description": function["description"] + HINTS[language], "parameters": parameters}


def _as_text(declared: dict, language: str) -> dict:
    name, kind = NAMES[language], declared["type"]
    said = f" This is {name} {kind} type parameter in string representation."
    if kind == "any":
        said = f" This parameter can be of any type of {name} object in string representation."
    left = {key: value for key, value in declared.items() if key != "items" or kind not in LISTS}
    if kind in LISTS:
        inner = declared["items"]["type"]
        said += f" The list elements are of type {inner}; they are not in string representation."
    if kind == "dict" and "properties" in left:
        said += (
            " The dictionary entries have the following schema; they are not in string representation. "
            f"{json.dumps(left.pop('properties'))}"
        )
    return left | {"description": declared["description"] + said, "type": "string"}
