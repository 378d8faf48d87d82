"""From the command line to the optimizer step no door is blind: each file names what it calls in the next."""

import ast
import inspect
from functools import partial
from pathlib import Path

import pytest
from scripts import ROOT

from megatron_bar.recipes import load_recipe
from megatron_bar.run import steps as made_by
from megatron_bar.run.folder import RunFolder
from megatron_bar.run.graph import steps_of

DOORS = [
    # The file, what it calls, where that is defined.
    ("megatron_bar/tools/run_recipe.py", "Pipeline", "megatron_bar/run/pipeline.py"),
    ("megatron_bar/run/pipeline.py", "steps_of", "megatron_bar/run/graph.py"),
    ("megatron_bar/run/graph.py", "train", "megatron_bar/run/steps.py"),
    ("megatron_bar/run/steps.py", "fit", "megatron_bar/training/fit.py"),
    ("megatron_bar/training/fit.py", "Trainer", "megatron_bar/training/trainer.py"),
    ("megatron_bar/training/trainer.py", "update", "megatron_bar/training/optim.py"),
]


@pytest.mark.parametrize(
    "file, name, target", DOORS, ids=[f"{Path(file).name}: {name}" for file, name, _ in DOORS]
)
def test_each_file_names_the_next(file, name, target):
    nodes = list(ast.walk(ast.parse((ROOT / file).read_text())))
    module = target.removesuffix(".py").replace("/", ".")
    imported = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == module]
    assert name in [alias.name for node in imported for alias in node.names]
    assert name in [node.id for node in nodes if isinstance(node, ast.Name)]
    defined = ast.parse((ROOT / target).read_text()).body
    assert name in [node.name for node in defined if isinstance(node, ast.FunctionDef | ast.ClassDef)]


@pytest.mark.parametrize("recipe", ["tiny", "tiny_study", "sparse", "smoke", "olmo2_7b"])
def test_a_step_names_the_function_that_makes_it_and_its_inputs(recipe):
    made = load_recipe(recipe)
    for step in steps_of(made).values():
        make = step.make if isinstance(step.make, partial) else partial(step.make)
        assert vars(made_by)[make.func.__name__] is make.func and not make.args, step.name
        inspect.signature(make.func).bind(RunFolder(made, Path("out"), print), **make.keywords)
        if make.func is made_by.train:
            assert make.keywords["training"] is step.run and step.needs == (make.keywords["source"],)
