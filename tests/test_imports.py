"""Imports point down only, and in no circle (docs/architecture.md). `models` and `data` do not know each
other."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "megatron_bar"
LEVELS = (
    {"tools"},
    {"planner"},
    {"run"},
    {"recipes"},
    {"experts", "rl"},
    {"evaluation", "training"},
    {"models"},
    {"data", "parallel", "conversion"},
    {"weights", "verifiers", "report", "config", "cli"},
    {"errors"},
)
"""From the top down; above them are what starts things and nobody imports: __main__, tools/, examples/."""
STARTS = ("__init__", "__main__")
LEVEL = {part: height for height, parts in enumerate(reversed(LEVELS)) for part in parts}
STRANGERS = {("models", "data")}
"""Pairs of which the first may not import the second, though it lies higher."""


def imported(source: str, module: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(line, dotted name) of every import from the package, wherever it stands; ``module`` is the importing
    file's."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [
                *(module[: -node.level] if node.level else []),
                *(node.module.split(".") if node.module else []),
            ]
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        yield from (
            (node.lineno, name)
            for name in names
            if name[0] == PACKAGE and name[1:] not in ([], ["__version__"])
        )


def forbidden(source: str, module: list[str]) -> list[str]:
    """Imports of the file that do not point down, or to a stranger; a part may import itself."""
    part = module[1]
    return [
        f"{'/'.join(module)}.py:{line} imports {name[1]}"
        for line, name in imported(source, module)
        if name[1] != part and (LEVEL[name[1]] >= LEVEL[part] or (part, name[1]) in STRANGERS)
    ]


def modules() -> list[list[str]]:
    return [
        list(path.relative_to(ROOT).with_suffix("").parts) for path in sorted((ROOT / PACKAGE).rglob("*.py"))
    ]


def source_of(module: list[str]) -> str:
    return (ROOT / "/".join(module)).with_suffix(".py").read_text(encoding="utf-8")


def test_ten_floors_or_fewer_and_all_of_the_package_on_them():
    assert len(LEVELS) <= 10
    assert set(LEVEL) == {module[1] for module in modules()} - set(STARTS)
    assert len(LEVEL) == sum(map(len, LEVELS))


@pytest.mark.parametrize("module", [m for m in modules() if m[1] not in STARTS], ids="/".join)
def test_imports_point_down(module):
    assert forbidden(source_of(module), module) == []


def test_no_module_imports_itself_by_way_of_others():
    known = {tuple(module[:-1] if module[-1] == "__init__" else module): module for module in modules()}
    graph = {
        name: {
            tuple(found) if tuple(found) in known else tuple(found[:-1])
            for _, found in imported(source_of(module), module)
        }
        for name, module in known.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them


def test_no_public_class_has_the_name_of_another():
    found: dict[str, str] = {}
    for module in modules():
        for node in ast.walk(ast.parse(source_of(module))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert node.name not in found, f"{node.name}: in {'/'.join(module)}.py and {found[node.name]}"
                found[node.name] = f"{'/'.join(module)}.py"


@pytest.mark.parametrize(
    "source",
    [
        "from megatron_bar.data import chat",
        "import megatron_bar.training.trainer",
        "from megatron_bar import recipes",
        "def f():\n    from ..rl.grpo import loss",
        "from megatron_bar.weights.io import x\nimport torch, megatron_bar.run.pipeline as p",
    ],
)
def test_a_forbidden_import_is_seen_in_every_form(source):
    assert len(forbidden(source, [PACKAGE, "models", "layers"])) == 1
