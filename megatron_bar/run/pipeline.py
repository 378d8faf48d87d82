"""Makes the steps of a recipe's graph that are not there yet.

A folder that exists is whole (it was renamed into place), so a run that was interrupted is started again by
the same command; and the same command started twice shares the steps out: each is made by who holds its lock.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import is_rank_zero, on_rank_zero, world_size
from megatron_bar.recipes.recipe import Recipe
from megatron_bar.run.folder import RunFolder
from megatron_bar.run.graph import Step, steps_of
from megatron_bar.run.preflight import check_rows
from megatron_bar.run.record import compare_with_record, read_record, write_record
from megatron_bar.training.fit import remove_leftovers
from megatron_bar.weights.hf_config import ModelConfig, read_config
from megatron_bar.weights.locks import remove_published

WAIT = 1.0
"""Seconds between looks at steps that another process makes."""


def run_all(wanted: dict["Pipeline", list[Step]]) -> None:
    """Makes the steps of several pipelines; where one waits for a process, the next goes on. Collective."""
    missing = {pipeline: pipeline.begin(steps) for pipeline, steps in wanted.items()}
    while any(missing.values()):
        if not any(pipeline.advance(steps) for pipeline, steps in missing.items()):
            time.sleep(WAIT)


class Pipeline:
    """The steps of ``recipe``, writing under ``out``."""

    def __init__(self, recipe: Recipe, out: Path, say: Callable[[str], None] = lambda line: None):
        """``say`` shows a line; it is called on every rank."""
        self.recipe = recipe
        self.folder = RunFolder(recipe, Path(out), say)
        self.steps = steps_of(recipe)

    def finished(self, name: str) -> bool:
        return on_rank_zero(lambda: self.folder.path(name).exists())

    def select(self, *, expert: str | None = None, stage: str | None = None) -> list[Step]:
        """Returns the steps of an expert, a stage, or all; raises on an unknown name and lists all."""
        for what, wanted, known in (
            ("expert", expert, {step.expert for step in self.steps.values() if step.expert}),
            ("stage", stage, {step.stage for step in self.steps.values() if step.stage}),
        ):
            if wanted is not None and wanted not in known:
                raise BarError(f"--{what} {wanted}: expected one of {', '.join(sorted(known))}")
        chosen = [s for s in self.steps.values() if expert in (None, s.expert) and stage in (None, s.stage)]
        if not chosen:
            raise BarError(f"expert {expert} has no stage {stage}")
        return chosen

    def run(self, steps: list[Step]) -> None:
        """Makes what is missing of ``steps``, each as soon as what it needs is there. Collective."""
        run_all({self: steps})

    def begin(self, steps: list[Step]) -> dict[str, Step]:
        """Returns what is missing of ``steps``; raises if something cannot be made. Collective."""
        self.check(steps, world_size())
        on_rank_zero(lambda: self._compare_with_disk(steps))
        numbered = enumerate(steps, 1)
        self._numbers = {step.name: f"[{number}/{len(steps)}] {step.name}" for number, step in numbered}
        missing = {}
        for step in steps:
            if self.finished(step.name):
                on_rank_zero(partial(self._tidy, step))
                self.folder.say(f"{self._numbers[step.name]}: there already")
            else:
                missing[step.name] = step
        for step in missing.values():
            for need in step.needs:
                if need not in missing and not self.finished(need):
                    path = self.folder.path(need)
                    raise BarError(f"{step.name} needs {path}, which is not there; run its step first")
        if missing:
            on_rank_zero(self._make_out)
        return missing

    def advance(self, missing: dict[str, Step]) -> bool:
        """Makes the first of ``missing`` that can be made now and that no other process makes. Collective.

        Returns whether there was one; takes out of ``missing`` what is there, whoever made it.
        """
        with self._first_free(missing) as name:
            if name is not None:
                step = missing[name]
                self.folder.say(
                    self._numbers[name] + (f" from {', '.join(step.needs)}" if step.needs else "")
                )
                # Before it is made: a kill may come right behind the folder's appearance.
                on_rank_zero(partial(write_record, self.folder, step))
                step.make(self.folder)
                cpu.return_memory()
                if name == "world":
                    on_rank_zero(lambda: self.check_rows(list(missing.values())))
        for made in on_rank_zero(lambda: [wanted for wanted in missing if self.folder.path(wanted).exists()]):
            del missing[made]
        return name is not None

    @contextmanager
    def _first_free(self, missing: dict[str, Step]) -> Iterator[str | None]:
        """Yields the first of ``missing`` that can be made now; others keep off it until the block ends."""
        lock = None

        def find() -> str | None:
            nonlocal lock
            for name, step in missing.items():
                if all(self.folder.path(need).exists() for need in step.needs):
                    lock = self.folder.locks.try_step(name)
                    if lock is not None and not self.folder.path(name).exists():
                        return name
                    if lock is not None:  # made since we looked
                        lock.close()
            return None

        name = on_rank_zero(find)
        try:
            yield name
        finally:
            if is_rank_zero() and name is not None:
                lock.close()

    def _make_out(self) -> None:
        out = self.folder.out
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BarError(f"{out}: expected a folder to write to, got {error.strerror}") from None

    def _tidy(self, step: Step) -> None:
        """Removes what a kill right behind the appearance of a folder left, unless its maker is at it."""
        lock = self.folder.locks.try_step(step.name)
        if lock is not None:
            remove_leftovers(self.folder.path(step.name))
            remove_published(self.folder.path(step.name))
            lock.close()

    def check(self, steps: list[Step], processes: int | None = None) -> None:
        """Raises unless each of ``steps`` that is missing can be made by so many processes.

        ``processes`` None: by as many as its layout needs.
        """
        for step in steps:
            if step.run is None or self.folder.path(step.name).exists():
                continue
            stage = step.run.stage
            shape = self.shape.with_experts(step.experts) if step.experts else self.shape
            layout = stage.parallel
            needed = layout.tensor * layout.pipeline * layout.expert
            batches = step.run.rl is None  # RLVR makes batches of what it has
            stage.check(shape, processes or needed, batches=batches)

    @property
    def shape(self) -> ModelConfig:
        """The dense model's: of the given anchor or base, or as the recipe says."""
        given = self.recipe.given
        folders = [given[name] for name in ("anchor", "base") if name in given and given[name].is_dir()]
        if not folders and self.recipe.shape is None:
            raise BarError(f"recipe {self.recipe.name}: {', '.join(map(str, given.values()))} not found")
        return read_config(folders[0]) if folders else self.recipe.shape

    def _compare_with_disk(self, steps: list[Step]) -> None:
        """Raises unless what is given is there, and what is there is what the recipe asks for."""
        for name, path in self.recipe.given.items():
            if not path.is_dir():
                raise BarError(f"{name}: {path} not found; expected a folder (--set {name}=PATH)")
        record = read_record(self.folder)
        missing = []
        for step in steps:
            if not self.folder.path(step.name).exists():
                missing.append(step)
            elif step.name in record:
                compare_with_record(self.folder, step, record[step.name], self.steps)
        self.check_rows(missing)

    def check_rows(self, steps: list[Step], *, keep: bool = True) -> None:
        """Raises unless ``steps`` can use the rows that they will read and that are there (preflight.py)."""
        if not self.folder.data.exists() and (self.recipe.data is None or not keep):
            return
        missing = [str(path) for path in self.recipe.given.values() if not path.is_dir()]
        if missing:
            self.folder.say(f"rows: not looked at without a tokenizer, {', '.join(missing)} not found")
            return
        check_rows(self.folder, steps, self.shape, keep=keep)
