"""Runs the command `bar`: a file per job with an argument parser and one library call, found by its name.

Nothing heavy is imported before the arguments are read, so that help comes at once.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from megatron_bar import __version__
from megatron_bar.cli import Call, aligned, run
from megatron_bar.errors import BarError

TASKS: dict[str, dict[str, str]] = {
    "make a model": {
        "branch": "branch_expert",
        "merge": "merge_experts",
        "merge-dense": "merge_dense",
        "expert": "expert",
        "adopt": "adopt_folder",
        "card": "card",
    },
    "train": {
        "prepare": "prepare_data",
        "run": "run_recipe",
        "preprocess": "preprocess_data",
        "preview": "preview_data",
    },
    "look into a model": {
        "inspect": "inspect_model",
        "generate": "generate",
        "evaluate": "evaluate",
        "route": "route",
        "compare": "compare",
        "verify": "verify_frozen",
        "cost": "cost",
        "report": "report",
    },
    "convert": {"import": "import_hf", "export": "export_hf"},
    "plan and check": {"plan": "plan", "traffic": "traffic", "doctor": "doctor"},
}
"""What one wants to do -> the commands for it -> the file of each, in this folder."""
COMMANDS: dict[str, str] = {name: file for commands in TASKS.values() for name, file in commands.items()}


def main() -> NoReturn:
    """Runs the command that the first argument names; without one, lists them."""
    run(lambda: _dispatch(sys.argv[1:]))


def run_script(command: ModuleType) -> NoReturn:
    """Runs ``command`` for a script of the checkout, which is what the help then speaks of."""
    script = "/".join(Path(sys.argv[0]).absolute().parts[-2:])
    run(lambda: command.main(Call(program=f"python {script}", script=script, arguments=sys.argv[1:])))


def _dispatch(arguments: list[str]) -> None:
    # The other name that this runs under: python -m megatron_bar, in torchrun's processes above all.
    bar = "python -m megatron_bar" if Path(sys.argv[0]).name == "__main__.py" else "bar"
    if not arguments or arguments[0] in ("-h", "--help"):
        print("\n".join(_listing(bar)))
        return
    name, *rest = arguments
    if name == "--version":
        print(f"megatron_bar {__version__}")
        return
    if name not in COMMANDS:
        raise BarError(f"command expected one of {', '.join(COMMANDS)}, got {name!r}")
    module_of(name).main(Call(program=f"{bar} {name}", script=f"-m megatron_bar {name}", arguments=rest))


def _listing(bar: str) -> list[str]:
    """Returns every command with the first sentence of what it says about itself, by task."""
    rows = aligned([[f"  {name}", _first_sentence(module_of(name))] for name in COMMANDS])
    line_of = dict(zip(COMMANDS, rows, strict=True))
    lines = [f"usage: {bar} COMMAND ...", f"       {bar} COMMAND --help    its options, with examples"]
    for task, commands in TASKS.items():
        lines += ["", task, *(line_of[name] for name in commands)]
    return lines


def module_of(name: str) -> ModuleType:
    """Imports the file of a command."""
    return importlib.import_module(f"{__name__}.{COMMANDS[name]}")


def _first_sentence(module: ModuleType) -> str:
    return " ".join(module.__doc__.split()).partition(". ")[0].rstrip(".")
