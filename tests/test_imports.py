"""Imports point down only (docs/architecture.md). `models` and `data` share a level and do not know each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "megatron_bar"
LEVELS = (
    {"recipes", "doctor"},
    {"planner"},
    {"pipeline"},
    {"graph"},
    {"work"},
    {"results"},
    {"recipe"},
    {"study"},
    {"experts"},
    {"evaluation"},
    {"rl"},
    {"training"},
    {"models", "data"},
    {"parallel"},
    {"conversion"},
    {"weights"},
    {"config", "cli"},
    {"errors"},
)
LEVEL = {part: height for height, parts in enumerate(reversed(LEVELS)) for part in parts}


def imported_parts(source: str, module: list[str]) -> Iterator[tuple[int, str]]:
    """(line, part of the package) of every import, wherever it stands; ``module`` is the importing file's dotted name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*(module[: -node.level] if node.level else []), *(node.module.split(".") if node.module else [])]
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name[1]) for name in names if name[0] == PACKAGE and name[1:] not in ([], ["__version__"]))


def upward(source: str, module: list[str]) -> list[str]:
    """Imports of the file that do not point down; a part may import itself."""
    part = module[1]
    return [
        f"{'/'.join(module)}.py:{line} imports {other}"
        for line, other in imported_parts(source, module)
        if other != part and LEVEL[other] >= LEVEL[part]
    ]


def modules() -> list[list[str]]:
    return [list(path.relative_to(ROOT).with_suffix("").parts) for path in sorted((ROOT / PACKAGE).rglob("*.py"))]


@pytest.mark.parametrize("module", [m for m in modules() if m != [PACKAGE, "__init__"]], ids="/".join)
def test_imports_point_down(module):
    assert upward((ROOT / "/".join(module)).with_suffix(".py").read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(
    "source",
    [
        "from megatron_bar.data import chat",
        "import megatron_bar.training.trainer",
        "from megatron_bar import recipes",
        "def f():\n    from ..rl.grpo import loss",
        "from megatron_bar.weights.io import x\nimport torch, megatron_bar.pipeline as p",
    ],
)
def test_an_upward_import_is_seen_in_every_form(source):
    assert len(upward(source, [PACKAGE, "models", "layers"])) == 1
