"""The recipe as a graph of folders and files: each is a step, made once, from those made before.

    init -> base -> anchor -> branched -> per expert: midtrain -> sft -> rlvr -> merged -> final -> report
A given base or anchor replaces what makes it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from megatron_bar.config import to_json
from megatron_bar.errors import BarError
from megatron_bar.recipes.recipe import ExpertSpec, Training
from megatron_bar.recipes.study import MergeSpec, RouterSpec, folder_and_active
from megatron_bar.run.collect import divergence_of, evaluation_of
from megatron_bar.run.steps import Work


@dataclass(frozen=True, kw_only=True)
class Step:
    """A folder or file of the run, what it is made from, and how."""

    name: str
    needs: tuple[str, ...]
    make: Callable[[], None]
    expert: str | None = None
    stage: str | None = None
    run: Training | None = None
    """The training it does."""
    experts: int = 0
    """Of the model that it makes; 0: dense."""
    choices: dict = field(default_factory=dict)
    """What the recipe says about it, as JSON."""


def steps_of(work: Work) -> dict[str, Step]:
    """By name, in an order in which each comes after what it needs."""
    return _Graph(work).steps


class _Graph:
    def __init__(self, work: Work):
        self.work, self.recipe = work, work.recipe
        self.steps: dict[str, Step] = {}
        for step in self._steps():
            self.steps[step.name] = step

    def _steps(self) -> Iterator[Step]:
        recipe, work = self.recipe, self.work
        start = ("world",) if recipe.data is None else ()
        if recipe.data is None:
            choices = {"world": to_json(recipe.world), "seed": recipe.seed}
            yield Step(name="world", needs=(), make=work.world, choices=choices)
        if "base" not in self.work.given:
            yield Step(name="init", needs=start, make=work.init)
            yield from self._training(recipe.pretrain, "init", "base", stage="pretrain")
        if "anchor" not in self.work.given:
            yield from self._training(recipe.posttrain, "base", "anchor", stage="posttrain")
        choices = {"router_init": recipe.router_init, "seed": recipe.seed}
        yield Step(name="branched", needs=("anchor", "base"), make=work.branch, stage="branch", choices=choices, experts=2)
        for expert in recipe.experts:
            yield from self._chain(expert)
        ends = {expert.name: expert.end for expert in recipe.experts}
        yield self._merge(MergeSpec(name="merged", inputs=ends, how="bar", shared=recipe.shared))
        stage = recipe.route.stage.name
        yield from self._training(recipe.route, "merged", "final", stage=stage, experts=len(ends) + 1)
        for part in recipe.more:
            if isinstance(part, ExpertSpec):
                yield from self._chain(part)
            elif isinstance(part, MergeSpec):
                yield self._merge(part)
            else:
                yield self._router(part)
        if recipe.evaluation is not None:
            yield from self._measurements()

    def _chain(self, expert: ExpertSpec) -> Iterator[Step]:
        before = expert.start
        for run in expert.runs:
            name = f"{expert.name}-{run.stage.name}"
            experts = self._known(before, expert.name).experts
            yield from self._training(run, before, name, stage=run.stage.name, expert=expert.name, experts=experts)
            before = name

    def _known(self, name: str, of: str) -> Step:
        """The step of that name; a given base or anchor has none of its own."""
        if name in self.work.given:
            return Step(name=name, needs=(), make=lambda: None)
        if name not in self.steps:
            raise BarError(f"{of}: starts from {name}, which no step before it makes; expected one of {', '.join(self.steps)}")
        return self.steps[name]

    def _merge(self, spec: MergeSpec) -> Step:
        for source in spec.inputs.values():
            self._known(source, spec.name)
        needs = ("branched", *spec.inputs.values()) if spec.how == "bar" else tuple(spec.inputs.values())
        choices = to_json(spec)
        if spec.name == "merged":
            choices = {"shared": choices["shared"]}
        make = partial(self.work.merge, spec)
        return Step(name=spec.name, needs=needs, make=make, stage="merge", experts=spec.experts, choices=choices)

    def _router(self, spec: RouterSpec) -> Step:
        experts, make = self._known(spec.source, spec.name).experts, partial(self.work.router, spec)
        return Step(name=spec.name, needs=(spec.source,), make=make, stage="router", experts=experts, choices=to_json(spec))

    def _training(
        self, run: Training, source: str, name: str, *, stage: str, expert: str | None = None, experts: int = 0
    ) -> Iterator[Step]:
        """One step; or one for each rate, and one that chooses."""
        more = {"expert": expert, "stage": stage, "experts": experts}
        candidates = {}
        for rate in run.rates:
            optim = replace(run.stage.optim, lr=rate)
            tried = replace(run, stage=replace(run.stage, optim=optim), rates=(), validation=(), chosen_at=())
            candidates[f"{name}.lr{rate:g}"] = tried
        for trial, tried in candidates.items() or [(name, run)]:
            make = partial(self.work.train, tried, source, trial, expert)
            yield Step(name=trial, needs=(source,), make=make, run=tried, choices=to_json(tried), **more)
        if candidates:
            make = partial(self.work.choose, run, tuple(candidates), name)
            choices = {"rates": list(run.rates)} | ({"chosen_at": list(run.chosen_at)} if run.chosen_at else {})
            yield Step(name=name, needs=tuple(candidates), make=make, choices=choices, **more)

    def _measurements(self) -> Iterator[Step]:
        work, study = self.work, self.recipe.study
        files = []
        for model in work.models:
            folder, _ = folder_and_active(model)
            self._known(folder, "evaluation")
            files.append(evaluation_of(model))
            make = partial(work.evaluate, model)
            yield Step(name=files[-1], needs=(folder,), make=make, stage="evaluate")
        for upgrade in study.upgrades:
            files.append(divergence_of(upgrade))
            needs = tuple(dict.fromkeys(folder_and_active(model)[0] for model in (upgrade.before, upgrade.after)))
            measured = tuple(map(evaluation_of, (upgrade.before, upgrade.after)))
            yield Step(name=files[-1], needs=needs + measured, make=partial(work.compare, upgrade), stage="compare")
        if study.lens:
            files.append("lens.json")
            needs = ("final", evaluation_of("final"))
            yield Step(name="lens.json", needs=needs, make=work.lens, stage="lens", choices={"lens": study.lens})
        yield Step(name="report.md", needs=tuple(files), make=work.report, stage="report")
