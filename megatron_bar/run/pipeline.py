"""Makes the steps of a recipe's graph that are not there yet.

A folder that exists is whole (it was renamed into place), so a run that was interrupted is started again by the same command;
and the same command started twice shares the steps out: each is made by the one that holds its lock.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from blake3 import blake3

from megatron_bar.config import diff_json
from megatron_bar.data.sources import check
from megatron_bar.errors import BarError
from megatron_bar.parallel.state import is_rank_zero, on_rank_zero, world_size
from megatron_bar.recipes.recipe import Recipe
from megatron_bar.run.graph import Step, steps_of
from megatron_bar.run.steps import Work
from megatron_bar.training.fit import remove_leftovers
from megatron_bar.weights.hf_config import ModelConfig, read_config
from megatron_bar.weights.manifest import has_manifest, identity
from megatron_bar.weights.whole import write_whole

WAIT = 1.0
"""Seconds between looks at steps that another process makes."""


def run_all(work: dict["Pipeline", list[Step]]) -> None:
    """The steps of several pipelines; where those of one wait for another process, the next one's are made. Collective."""
    missing = {pipeline: pipeline.begin(steps) for pipeline, steps in work.items()}
    while any(missing.values()):
        if not any(pipeline.advance(steps) for pipeline, steps in missing.items()):
            time.sleep(WAIT)


class Pipeline:
    """The steps of ``recipe``, writing under ``out``."""

    def __init__(self, recipe: Recipe, out: Path, say: Callable[[str], None] = lambda line: None):
        """``say`` shows a line; it is called on every rank."""
        self.recipe, self.out, self.say = recipe, Path(out), say
        self.work = Work(recipe, self.out, say)
        self.given, self.path, self.locks = self.work.given, self.work.path, self.work.locks
        self.steps = steps_of(self.work)

    def finished(self, name: str) -> bool:
        return on_rank_zero(lambda: self.path(name).exists())

    def select(self, *, expert: str | None = None, stage: str | None = None) -> list[Step]:
        """The steps of one expert, one stage, or all; unknown names are errors that list the known ones."""
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
        """What is missing of ``steps``, all of which can be made. Collective."""
        self.check(steps, world_size())
        on_rank_zero(lambda: self._compare_with_disk(steps))
        self._numbers = {step.name: f"[{number}/{len(steps)}] {step.name}" for number, step in enumerate(steps, 1)}
        missing = {}
        for step in steps:
            if self.finished(step.name):
                on_rank_zero(partial(self._tidy, step))
                self.say(f"{self._numbers[step.name]}: there already")
            else:
                missing[step.name] = step
        for step in missing.values():
            for need in step.needs:
                if need not in missing and not self.finished(need):
                    raise BarError(f"{step.name} needs {self.path(need)}, which is not there; run its step first")
        if missing:
            on_rank_zero(self._make_out)
        return missing

    def advance(self, missing: dict[str, Step]) -> bool:
        """Makes the first of ``missing`` that can be made now and that no other process makes; whether there was one. Collective.

        Takes out of ``missing`` what is there, whoever made it.
        """
        with self._first_free(missing) as name:
            if name is not None:
                step = missing[name]
                self.say(self._numbers[name] + (f" from {', '.join(step.needs)}" if step.needs else ""))
                on_rank_zero(partial(self._record, step))  # before: a kill may come right behind the folder's appearance
                step.make()
        for made in on_rank_zero(lambda: [wanted for wanted in missing if self.path(wanted).exists()]):
            del missing[made]
        return name is not None

    @contextmanager
    def _first_free(self, missing: dict[str, Step]) -> Iterator[str | None]:
        """The first of ``missing`` whose needs are there and that no other process makes; nobody else's until the block ends."""
        lock = None

        def find() -> str | None:
            nonlocal lock
            for name, step in missing.items():
                if all(self.path(need).exists() for need in step.needs):
                    lock = self.locks.try_step(name)
                    if lock is not None and not self.path(name).exists():
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
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BarError(f"{self.out}: expected a folder to write to, got {error.strerror}") from None

    def _tidy(self, step: Step) -> None:
        """After a kill right behind the appearance of a folder; one whose maker is at it is left alone."""
        lock = self.locks.try_step(step.name)
        if lock is not None:
            remove_leftovers(self.path(step.name))
            lock.close()

    def check(self, steps: list[Step], processes: int | None = None) -> None:
        """That each of ``steps`` still to be made can be: before anything is. ``processes`` None: as many as its layout needs."""
        for step in steps:
            if step.run is None or self.path(step.name).exists():
                continue
            stage = step.run.stage
            shape = self.shape.with_experts(step.experts) if step.experts else self.shape
            layout = stage.parallel
            needed = layout.tensor * layout.pipeline * layout.expert
            stage.check(shape, processes or needed, batches=step.run.rl is None)  # RLVR makes batches of what it has

    @property
    def shape(self) -> ModelConfig:
        """Of the dense model: of the given anchor or base, or as the recipe says."""
        folders = [path for path in (self.given.get("anchor"), self.given.get("base")) if path is not None and path.is_dir()]
        if not folders and self.recipe.shape is None:
            raise BarError(f"recipe {self.recipe.name}: {', '.join(map(str, self.given.values()))} not found")
        return read_config(folders[0]) if folders else self.recipe.shape

    def _compare_with_disk(self, steps: list[Step]) -> None:
        """That what is given is there, and what is there is what the recipe asks for."""
        for name, path in self.given.items():
            if not path.is_dir():
                raise BarError(f"{name}: {path} not found; expected a folder (--set {name}=PATH)")
        record = self._recorded()
        for step in steps:
            if not self.path(step.name).exists():
                if step.run is not None and (self.work.data.exists() or self.recipe.data is not None):
                    for source in step.run.data:
                        check(source, self.work.data)
            elif step.name in record:
                self._compare(step, record[step.name])

    def _compare(self, step: Step, then: dict) -> None:
        """Of a finished step: another origin stops the run, other choices are told."""
        now = self._inputs(step)
        if then["needs"] != now:
            other = [name for name in {**then["needs"], **now} if then["needs"].get(name, "") != now.get(name, "")]
            stale = [name for name in self._made_from(step.name) if self.path(name).exists()]
            raise BarError(
                f"{self.path(step.name)} was made from other folders than there are now ({', '.join(other)} differs); "
                f"to make it again remove {', '.join(stale)} from {self.out}"
            )
        changes = diff_json(then["choices"], step.choices)
        if changes:
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            self.say(f"note: {step.name} stays as it was made, with other choices: {'; '.join(changes[:3])}{more}")

    def _made_from(self, name: str) -> list[str]:
        """``name`` and every step that needs it, directly or not."""
        found = [name]
        for step in self.steps.values():
            if set(step.needs) & set(found):
                found.append(step.name)
        return found

    def _inputs(self, step: Step) -> dict[str, str | None]:
        """What identifies each need: a folder's receipt, a file's bytes; None of what has neither."""
        found = {}
        for need in step.needs:
            path = self.path(need)
            if path.is_file():
                found[need] = blake3(path.read_bytes()).hexdigest()
            else:
                found[need] = identity(path) if has_manifest(path) else None
        return found

    def _recorded(self) -> dict[str, dict]:
        path = self.out / "steps.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise BarError(f"{path}: not readable as JSON ({error}); remove it: then what is there is not checked") from None

    def _record(self, step: Step) -> None:
        made = {"needs": self._inputs(step), "choices": step.choices}
        with self.locks.waiting("steps.json"):
            write_whole(self.out / "steps.json", json.dumps(self._recorded() | {step.name: made}, indent=1))
