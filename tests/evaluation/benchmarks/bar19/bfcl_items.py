"""BFCL's items of the package bfcl-eval, with answers made from what they want."""

import ast
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

from packages import package

from megatron_bar.evaluation.benchmarks.bar19.bfcl import categories, rows

PACKAGE = "bfcl-eval==2026.3.23"


@functools.cache
def items() -> list[dict]:
    return [row | {"index": n} for n, row in enumerate(rows.rows(package(PACKAGE) / "bfcl_eval"))]


def of_kind(*kinds: str) -> list[dict]:
    return [row for row in items() if categories.of(row).kind in kinds]


def chosen(value: object, declared: dict) -> object:
    """A value out of possible ones: dictionaries have possible values of their own."""
    if isinstance(value, dict):
        parts = {
            key: [part for part in choices if part != ""]
            for key, choices in value.items()
            if "" not in choices
        }
        return {key: parts[key][0] for key in parts}
    if isinstance(value, list) and declared.get("items", {}).get("type") == "dict":
        return [chosen(part, {}) for part in value]
    return value


def wanted_calls(row: dict) -> list[tuple[str, dict]]:
    """The calls that a row wants, with the first possible value of each argument, as Python's values; in Java and
    JavaScript as the texts that spell them."""
    language = categories.of(row).language
    calls = []
    for truth in row["ground_truth"]:
        ((name, possible),) = truth.items()
        function = next((found for found in row["function"] if found["name"] == name), row["function"][0])
        declared = function["parameters"]["properties"]
        arguments = {}
        for key, choices in possible.items():
            given = [choice for choice in choices if choice != ""]
            required = key in function["parameters"].get("required", ())
            if (given and (key in declared or "" not in choices)) or required:
                value = chosen([*given, ""][0], declared.get(key, {}))
                arguments[key] = value if language == "python" else spelled(value, declared[key], language)
        calls.append((function["name"], arguments))
    return calls


def spelled(value: object, declared: dict, language: str) -> str:
    kind, inner = declared["type"], {"type": declared.get("items", {}).get("type", "")}
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        ends = {"long": "L", "float": "f"} if language == "java" else {"Bigint": "n"}
        return f"{value}{ends.get(kind, '')}"
    if isinstance(value, list):
        parts = [element(part, inner, language) for part in value]
        if language == "javascript":
            return f"[{', '.join(parts)}]"
        if kind == "ArrayList":
            parts = [f'"{part}"' if inner["type"] in ("String", "char") else part for part in parts]
            return f"new ArrayList<>(Arrays.asList({', '.join(parts)}))" if parts else "new ArrayList<>()"
        return f"new {inner['type'] or 'Object'}[]{{{', '.join(parts)}}}"
    if isinstance(value, dict):
        if language == "java":
            puts = " ".join(
                f'put("{key}", {element(part, {"type": ""}, language)});' for key, part in value.items()
            )
            return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
        pairs = ", ".join(f'"{key}": {element(part, {"type": ""}, language)}' for key, part in value.items())
        return f"{{{pairs}}}"
    return value


def element(value: object, declared: dict, language: str) -> str:
    # BFCL leaves the quotes of texts in Java's arrays where they are, so that only bare ones are right.
    quoted = isinstance(value, str) and not (language == "java" and declared["type"])
    return f'"{value}"' if quoted else spelled(value, declared, language)


def written(calls: list[tuple[str, dict]]) -> str:
    lines = [
        f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in calls
    ]
    return "\n".join(["<function_calls>", *lines, "</function_calls>"])


def wanted_turns(row: dict) -> list[list[tuple[str, dict]]]:
    """The truth's calls of each turn, every argument by its name."""
    functions = [*row["function"], *(found for new in row["missed_function"].values() for found in new)]
    names = {function["name"]: list(function["parameters"]["properties"]) for function in functions}
    turns = []
    for texts in row["ground_truth"]:
        trees = [ast.parse(text, mode="eval").body for text in texts]
        turns.append(
            [
                (
                    tree.func.id,
                    dict(zip(names[tree.func.id], map(ast.literal_eval, tree.args), strict=False))
                    | {keyword.arg: ast.literal_eval(keyword.value) for keyword in tree.keywords},
                )
                for tree in trees
            ]
        )
    return turns


def answers_of(turns: list[list[tuple[str, dict]]]) -> list[str]:
    """What a model says that makes all calls of a turn at once, and then ends the turn."""
    return [text for calls in turns for text in ([written(calls)] if calls else []) + ["Done."]]


def reference(cases: list[dict]) -> list[bool | str]:
    """The verdicts of BFCL's own checkers."""
    script = Path(__file__).with_name("bfcl_reference.py")
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(cases), capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(package(PACKAGE))},
    )  # fmt: skip
    return json.loads(done.stdout)
