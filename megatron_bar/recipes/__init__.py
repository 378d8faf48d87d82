"""Recipes are values: what one is made of (recipe, study, stages), and the shipped ones, functions that
return them. published is the table of public data that most of them learn from."""

import importlib
import importlib.util
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.recipes.recipe import Recipe

NO_RECIPES = ("__init__", "recipe", "study", "stages", "published")
"""Files beside the shipped recipes."""


def load_recipe(name: str) -> Recipe:
    """``tiny``, ``package.module:function`` or ``file.py:function`` to the recipe it returns."""
    where, _, function = name.partition(":")
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise BarError(f"recipe {name}: {where} not found")
        spec = importlib.util.spec_from_file_location(Path(where).stem, where)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = _import(where if ":" in name else f"{__name__}.{where}", name)
    made = getattr(module, function or "recipe", None)
    if not callable(made):
        raise BarError(f"recipe {name}: {where} has no function {function or 'recipe'}")
    recipe = made()
    if not isinstance(recipe, Recipe):
        raise BarError(f"recipe {name}: expected a Recipe, got {type(recipe).__name__}")
    return recipe


def _import(module: str, name: str):
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module and not module.startswith(f"{error.name}."):
            raise
        known = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in NO_RECIPES)
        raise BarError(
            f"recipe {name}: not found; expected one of {', '.join(known)}, module:function or "
            f"file.py:function"
        ) from None
