"""The recipe as a graph of folders and files: each is a step, made once, from those made before.

    init -> base -> anchor -> branched -> per expert: midtrain -> sft -> rlvr -> merged -> final -> report
A given base or anchor replaces what makes it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePath

from megatron_bar.config import to_json
from megatron_bar.data.sources import Source
from megatron_bar.errors import BarError
from megatron_bar.recipes.recipe import ExpertSpec, Recipe, Training
from megatron_bar.recipes.study import MergeSpec, RouterSpec, ScanSpec, folder_and_active
from megatron_bar.run.collect import divergence_of, evaluation_of
from megatron_bar.run.folder import RunFolder
from megatron_bar.run.steps import (
    choose,
    compare,
    evaluate,
    make_active,
    make_branch,
    make_init,
    make_merge,
    make_report,
    make_router,
    make_world,
    show_lens,
    train,
)
from megatron_bar.weights.hf_config import show_active


@dataclass(frozen=True, kw_only=True)
class Step:
    """A folder or file of the run, what it is made from, and how."""

    name: str
    needs: tuple[str, ...]
    make: Callable[[RunFolder], None]
    """A function of run/steps.py with its inputs; it is called with the run's folder."""
    expert: str | None = None
    stage: str | None = None
    run: Training | None = None
    """The training it does."""
    reads: tuple[Source, ...] = ()
    """The rows it learns or chooses from."""
    experts: int = 0
    """Experts of the model that it makes; 0: dense."""
    choices: dict = field(default_factory=dict)
    """What the recipe says about it, as JSON."""


def steps_of(recipe: Recipe) -> dict[str, Step]:
    """Returns the steps by name, in an order in which each comes after what it needs."""
    return _Graph(recipe).steps


class _Graph:
    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.steps: dict[str, Step] = {}
        for step in self._steps():
            self.steps[step.name] = step

    def _steps(self) -> Iterator[Step]:
        recipe = self.recipe
        yield from self._start()
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
                yield self._routed(part)
        if recipe.evaluation is not None:
            yield from self._measurements()

    def _start(self) -> Iterator[Step]:
        """Yields what the experts start from."""
        recipe = self.recipe
        if recipe.data is None:
            choices = {"world": to_json(recipe.world), "seed": recipe.seed}
            yield Step(name="world", needs=(), make=make_world, choices=choices)
        if "base" not in recipe.given:
            needs = ("world",) if recipe.data is None else ()
            yield Step(name="init", needs=needs, make=make_init)
            yield from self._training(recipe.pretrain, "init", "base", stage="pretrain")
        if "anchor" not in recipe.given:
            yield from self._training(recipe.posttrain, "base", "anchor", stage="posttrain")
        yield Step(
            name="branched",
            needs=("anchor", "base"),
            make=make_branch,
            stage="branch",
            choices={"router_init": recipe.router_init, "seed": recipe.seed},
            experts=2,
        )

    def _chain(self, expert: ExpertSpec) -> Iterator[Step]:
        before = expert.start
        for run in expert.runs:
            name = f"{expert.name}-{run.stage.name}"
            experts = self._known(before, expert.name).experts
            stage = run.stage.name
            yield from self._training(run, before, name, stage=stage, expert=expert.name, experts=experts)
            before = name

    def _known(self, name: str, of: str) -> Step:
        """Returns the step of that name; a given base or anchor has none of its own."""
        if name in self.recipe.given:
            return Step(name=name, needs=(), make=lambda run: None)
        if name not in self.steps:
            known = ", ".join(self.steps)
            raise BarError(
                f"{of}: starts from {name}, which no step before it makes; expected one of {known}"
            )
        return self.steps[name]

    def _training(
        self,
        training: Training,
        source: str,
        name: str,
        *,
        stage: str,
        expert: str | None = None,
        experts: int = 0,
    ) -> Iterator[Step]:
        """Yields one step; or one for each rate, and one that chooses."""
        more = {"expert": expert, "stage": stage, "experts": experts}
        candidates = {f"{name}.lr{rate:g}": _at_rate(training, rate) for rate in training.rates}
        for trial, tried in candidates.items() or [(name, training)]:
            make = partial(train, training=tried, source=source, name=trial, expert=expert)
            choices = to_json(tried)
            learns = {"run": tried, "reads": tried.data, "choices": choices}
            yield Step(name=trial, needs=(source,), make=make, **learns, **more)
        if candidates:
            make = partial(choose, training=training, candidates=tuple(candidates), name=name)
            choices = {"rates": list(training.rates)}
            if training.chosen_at:
                choices["chosen_at"] = list(training.chosen_at)
            reads = training.validation
            yield Step(name=name, needs=tuple(candidates), make=make, choices=choices, reads=reads, **more)

    def _merge(self, spec: MergeSpec) -> Step:
        for source in spec.inputs.values():
            self._known(source, spec.name)
        if spec.routers is not None:
            experts = self._known(spec.routers, spec.name).experts
            if experts != spec.experts:
                raise BarError(
                    f"merge {spec.name}: expected routers for its {spec.experts} experts, {spec.routers} has "
                    f"{experts}"
                )
        needs = (*spec.inputs.values(), *([spec.routers] if spec.routers else []))
        choices = to_json(spec)
        return Step(
            name=spec.name,
            needs=("branched", *needs) if spec.how == "bar" else needs,
            make=partial(make_merge, spec=spec),
            stage="merge",
            experts=spec.experts,
            choices={"shared": choices["shared"]} if spec.name == "merged" else choices,
        )

    def _routed(self, spec: RouterSpec | ScanSpec) -> Step:
        """Returns the step that sets how a model routes, without training."""
        router = isinstance(spec, RouterSpec)
        experts = self._known(spec.source, spec.name).experts
        if not router and spec.mean > experts:
            raise BarError(
                f"scan {spec.name}: mean expected up to the {experts} experts of {spec.source}, got "
                f"{spec.mean:g}"
            )
        return Step(
            name=spec.name,
            needs=(spec.source,),
            make=partial(make_router, spec=spec) if router else partial(make_active, spec=spec),
            stage="router",
            experts=experts,
            reads=spec.texts + spec.validation if router else spec.validation,
            choices=to_json(spec),
        )

    def _measurements(self) -> Iterator[Step]:
        study = self.recipe.study
        if study.retrained:
            self._known(study.retrained, "study: retrained")
        files = []
        for model in self._evaluated():
            folder, active = folder_and_active(model)
            experts = self._known(folder, "evaluation").experts
            wanted = (active,) if isinstance(active, int) else active or ()
            if not all(1 <= number <= experts for number in wanted):
                raise BarError(
                    f"evaluation of {model}: expected at most the {experts} experts of {folder}, at least "
                    f"one, got {show_active(active)}"
                )
            files.append(evaluation_of(model))
            make = partial(evaluate, model=model)
            choices = {test.name: to_json(test) for test in self.recipe.evaluation.tests_of(model)}
            yield Step(name=files[-1], needs=(folder,), make=make, stage="evaluate", choices=choices)
        for upgrade in study.upgrades:
            files.append(divergence_of(upgrade))
            models = (upgrade.before, upgrade.after)
            folders = tuple(dict.fromkeys(folder_and_active(model)[0] for model in models))
            needs = folders + tuple(map(evaluation_of, models))
            yield Step(name=files[-1], needs=needs, make=partial(compare, upgrade=upgrade), stage="compare")
        if study.lens:
            files.append("lens.json")
            needs = ("final", evaluation_of("final"))
            yield Step(
                name="lens.json", needs=needs, make=show_lens, stage="lens", choices={"lens": study.lens}
            )
        report = str(PurePath(study.folder) / "report.md")
        yield Step(name=report, needs=tuple(files), make=partial(make_report, name=report), stage="report")

    def _evaluated(self) -> list[str]:
        """Returns all models that are evaluated, in the order of the report."""
        own = ["anchor", *(expert.end for expert in self.recipe.experts), "merged", "final"]
        found = list(dict.fromkeys(own + self.recipe.study.models))
        if unknown := sorted(self.recipe.evaluation.only.keys() - set(found)):
            raise BarError(f"evaluation: expected only of {', '.join(found)}, got {unknown[0]}")
        return found


def _at_rate(training: Training, rate: float) -> Training:
    """Returns the same with that learning rate, and nothing to choose."""
    stage = replace(training.stage, optim=replace(training.stage.optim, lr=rate))
    return replace(training, stage=stage, rates=(), validation=(), chosen_at=())
