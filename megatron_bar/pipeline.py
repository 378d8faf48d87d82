"""The whole recipe as a graph of folders: each is made once, from folders made before; finished work is skipped.

    init -> base -> anchor -> branched -> per expert: midtrain -> sft -> rlvr -> merged -> final -> report
A given base or anchor replaces what makes it. A folder that exists is whole (it was renamed into place), so a run that was
interrupted is started again by the same command.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from megatron_bar.config import diff, from_json, to_json
from megatron_bar.data import world
from megatron_bar.data.batch import concatenate_and_cut, pack_documents
from megatron_bar.data.chat import generation_prompt
from megatron_bar.data.sources import Source, documents, read_rows
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.data.world import Sizes
from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import TestSet, evaluate, load_model
from megatron_bar.evaluation.report import write_report
from megatron_bar.evaluation.routing import expert_shares
from megatron_bar.experts.branch import branch
from megatron_bar.experts.merge import merge
from megatron_bar.parallel.state import ParallelConfig, on_rank_zero
from megatron_bar.rl import grpo
from megatron_bar.rl.verifiers import verify_many
from megatron_bar.training.fit import Job, fit
from megatron_bar.training.stage import Stage
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hashes import folder_hash, hash_units
from megatron_bar.weights.hf_config import ModelConfig
from megatron_bar.weights.init import random_folder
from megatron_bar.weights.manifest import Manifest, read_manifest
from megatron_bar.weights.manifest import Source as ManifestSource


@dataclass(frozen=True, kw_only=True)
class Run:
    """A stage and what it learns from."""

    stage: Stage
    data: tuple[Source, ...]
    rl: grpo.GRPOConfig | None = None
    """Set for RLVR, whose data are tasks."""


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    name: str
    runs: tuple[Run, ...]
    """In order; each starts from the folder that the one before wrote, the first from the branched folder."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    tests: tuple[TestSet, ...]
    trained: tuple[str, ...]
    """The skills that experts were trained for."""
    slots: int = 64
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    data: Path | None = None
    """Folder that the sources' paths start from; None: the tiny world, made in the output folder."""
    world: Sizes = field(default_factory=Sizes)
    """How large the tiny world is."""
    shape: ModelConfig | None = None
    """Of the dense model: one made from nothing takes it; with a given anchor it is what a dry run shows."""
    embedding_std: float = 0.02
    """Of a model made from nothing: the initial embeddings' standard deviation."""
    base: Path | None = None
    """A pretrained dense folder, or None to make one by ``pretrain``."""
    anchor: Path | None = None
    """A post-trained dense folder, or None to make one from the base by ``posttrain``."""
    pretrain: Run | None = None
    posttrain: Run | None = None
    router_init: Literal["normal", "domain", "zero"] = "normal"
    experts: tuple[ExpertSpec, ...]
    shared: str = "mean"
    """How the merge combines what the experts share."""
    route: Run
    evaluation: Evaluation | None = None
    seed: int = 0

    def __post_init__(self):
        if self.base is None and (self.pretrain is None or self.shape is None):
            raise BarError(f"recipe {self.name}: base expected a folder, or pretrain and shape to make one, got neither")
        if self.anchor is None and self.posttrain is None:
            raise BarError(f"recipe {self.name}: anchor expected a folder, or posttrain to make one from the base, got neither")
        names = [expert.name for expert in self.experts]
        if not names or len(set(names)) < len(names) or not all(expert.runs for expert in self.experts):
            got = ", ".join(names) or "none"
            raise BarError(f"recipe {self.name}: experts expected of different names, each with a run, got {got}")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A folder or file of the run, what it is made from, and how."""

    name: str
    needs: tuple[str, ...]
    make: Callable[[], None]
    expert: str | None = None
    stage: str | None = None


class Pipeline:
    """The steps of ``recipe``, writing under ``out``."""

    def __init__(self, recipe: Recipe, out: Path):
        self.recipe, self.out = recipe, Path(out)
        self.given = {name: path for name, path in (("base", recipe.base), ("anchor", recipe.anchor)) if path is not None}
        self.steps = {step.name: step for step in self._steps()}

    def path(self, name: str) -> Path:
        return Path(self.given.get(name, self.out / name))

    @property
    def data(self) -> Path:
        return self.recipe.data or self.out / "world"

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

    def _note_changes(self, say: Callable[[str], None]) -> None:
        """Records the recipe beside its folders, and says where it is not the one that the folders were begun with."""
        path = self.out / "recipe.json"

        def changes() -> list[str]:
            found = diff(from_json(Recipe, json.loads(path.read_text(encoding="utf-8"))), self.recipe) if path.exists() else []
            _write(path, json.dumps(to_json(self.recipe), indent=1))
            return found

        for line in on_rank_zero(changes):
            say(f"note: the recipe changed since {path} was written; finished folders stay as they are: {line}")

    def run(self, steps: list[Step], say: Callable[[str], None]) -> None:
        """Makes what is missing of ``steps``, in order. Collective."""
        self._note_changes(say)
        for number, step in enumerate(steps, 1):
            if self.finished(step.name):
                say(f"[{number}/{len(steps)}] {step.name}: there already")
                continue
            for need in step.needs:
                if not self.finished(need):
                    raise BarError(f"{step.name} needs {self.path(need)}, which is not there; run its step first")
            say(f"[{number}/{len(steps)}] {step.name}" + (f" from {', '.join(step.needs)}" if step.needs else ""))
            step.make()

    def _steps(self) -> list[Step]:
        recipe, steps = self.recipe, []
        start = ("world",) if recipe.data is None else ()
        if recipe.data is None:
            steps.append(Step(name="world", needs=(), make=self._world))
        if "base" not in self.given:
            steps.append(Step(name="init", needs=start, make=self._init))
            steps.append(self._training(recipe.pretrain, "init", "base", stage="pretrain"))
        if "anchor" not in self.given:
            steps.append(self._training(recipe.posttrain, "base", "anchor", stage="posttrain"))
        steps.append(Step(name="branched", needs=("anchor", "base"), make=self._branch, stage="branch"))
        for expert in recipe.experts:
            before = "branched"
            for run in expert.runs:
                name = f"{expert.name}-{run.stage.name}"
                steps.append(self._training(run, before, name, stage=run.stage.name, expert=expert.name))
                before = name
        ends = tuple(f"{expert.name}-{expert.runs[-1].stage.name}" for expert in recipe.experts)
        steps.append(Step(name="merged", needs=("branched", *ends), make=partial(self._merge, ends), stage="merge"))
        steps.append(self._training(recipe.route, "merged", "final", stage=recipe.route.stage.name))
        if recipe.evaluation is not None:
            models = ("anchor", *ends, "merged", "final")
            for model in models:
                make = partial(self._evaluate, model)
                steps.append(Step(name=f"evaluation/{model}.json", needs=(model,), make=make, stage="evaluate"))
            needs = tuple(f"evaluation/{model}.json" for model in models)
            steps.append(Step(name="report.md", needs=needs, make=partial(self._report, models), stage="report"))
        return steps

    def _training(self, run: Run, source: str, name: str, *, stage: str, expert: str | None = None) -> Step:
        return Step(name=name, needs=(source,), make=partial(self._train, run, source, name, expert), expert=expert, stage=stage)

    def _train(self, run: Run, source: str, name: str, expert: str | None) -> None:
        tokenizer = load_tokenizer(self.path(source))
        job = Job(
            name=name,
            source=self.path(source),
            out=self.path(name),
            manifest=partial(self._manifest, source, run.stage.name, expert),
            logs=self.out / "logs" / name,
        )
        if run.rl is not None:
            tasks = [
                grpo.Task(
                    prompt=generation_prompt(row["messages"], tokenizer, where=where),
                    verifier=row["verifier"],
                    truth=row["truth"],
                )
                for part in run.data
                for where, row in read_rows(part, self.data, seed=self.recipe.seed)
            ]
            grpo.train(job, run.stage, run.rl, tasks, tokenizer, verify_many)
            return
        docs = documents(run.data, self.data, tokenizer, seed=self.recipe.seed)
        if run.stage.packing == "cut":
            rows = concatenate_and_cut(docs, run.stage.sequence)
        else:
            rows, _ = pack_documents(docs, run.stage.sequence, pad_id=tokenizer.pad_id)
        fit(job, run.stage, rows)

    def _manifest(self, source: str, stage: str, expert: str | None, written: Folder) -> Manifest:
        folder = self.path(source)
        read = ManifestSource(role="source", name=folder.name, hash=folder_hash(hash_units(Folder.open(folder))))
        return read_manifest(folder).after(stage, recipe=self.recipe.name, sources=(read,), expert=expert)

    def _world(self) -> None:
        def make():
            partial_folder = self.out / ".world.partial"
            shutil.rmtree(partial_folder, ignore_errors=True)
            world.build(partial_folder, seed=self.recipe.seed, sizes=self.recipe.world)
            partial_folder.rename(self.out / "world")

        on_rank_zero(make)

    def _init(self) -> None:
        def make():
            tokenizer = load_tokenizer(self.data / "tokenizer")
            if tokenizer.vocab_size > self.recipe.shape.vocab_size:
                raise BarError(f"tokenizer has {tokenizer.vocab_size} tokens, the model {self.recipe.shape.vocab_size}")
            random_folder(
                replace(self.recipe.shape, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id),
                self.path("init"),
                tokenizer=self.data / "tokenizer",
                seed=self.recipe.seed,
                embedding_std=self.recipe.embedding_std,
            )

        on_rank_zero(make)

    def _branch(self) -> None:
        def make():
            branch(
                self.path("anchor"),
                self.path("base"),
                self.path("branched"),
                router_init=self.recipe.router_init,
                seed=self.recipe.seed,
            )

        on_rank_zero(make)

    def _merge(self, ends: tuple[str, ...]) -> None:
        def make():
            experts = {spec.name: self.path(end) for spec, end in zip(self.recipe.experts, ends, strict=True)}
            merge(anchor=self.path("branched"), experts=experts, out=self.path("merged"), shared=self.recipe.shared)

        on_rank_zero(make)

    def _evaluate(self, name: str) -> None:
        wanted = self.recipe.evaluation
        tokenizer = load_tokenizer(self.path(name))
        model = load_model(self.path(name), wanted.parallel)
        found = {"scores": evaluate(model, tokenizer, wanted.tests, self.data, slots=wanted.slots), "routing": {}}
        if model.shape.num_experts and wanted.parallel.pipeline == 1:
            found["experts"] = [expert.name for expert in read_manifest(self.path(name)).experts]
            for source in self.recipe.route.data:
                docs = documents((replace(source, share=1.0),), self.data, tokenizer)
                found["routing"][source.path.stem] = expert_shares(model, docs, length=self.recipe.route.stage.sequence)
        on_rank_zero(lambda: _write(self.out / "evaluation" / f"{name}.json", json.dumps(found, indent=1, ensure_ascii=False)))

    def _report(self, models: tuple[str, ...]) -> None:
        def make():
            found = {name: json.loads((self.out / "evaluation" / f"{name}.json").read_text(encoding="utf-8")) for name in models}
            experts = {spec.name: f"{spec.name}-{spec.runs[-1].stage.name}" for spec in self.recipe.experts}
            text = write_report(self.recipe.name, found, experts=experts, trained=self.recipe.evaluation.trained)
            _write(self.out / "report.md", text)

        on_rank_zero(make)


def _write(path: Path, text: str) -> None:
    """A file that appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.rename(path)
