"""The folder of a run of a recipe: where each of its steps reads and writes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.recipes.recipe import Recipe
from megatron_bar.weights.locks import StepLocks


@dataclass(frozen=True)
class RunFolder:
    """``out``, with all of ``recipe`` that is made under it."""

    recipe: Recipe
    out: Path
    say: Callable[[str], None]
    """Shows a line; called on every rank."""

    def path(self, step: str) -> Path:
        """Returns the folder or file that the step makes; of a given base or anchor, that one."""
        return self.recipe.given.get(step, self.out / step)

    def artifacts(self, merge: str) -> Path:
        """Returns the folder of the experts that a merge takes in low rank."""
        return self.out / f"{merge}-experts"

    @property
    def data(self) -> Path:
        """What the sources' paths start from."""
        return self.recipe.data or self.out / "world"

    @property
    def locks(self) -> StepLocks:
        return StepLocks(self.out)
