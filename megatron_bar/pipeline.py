"""The whole recipe as a graph of folders: each is made once, from folders made before; finished work is skipped.

    init -> base -> anchor -> branched -> per expert: midtrain -> sft -> rlvr -> merged -> final -> report
A given base or anchor replaces what makes it. A folder that exists is whole (it was renamed into place), so a run that was
interrupted is started again by the same command.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from blake3 import blake3

from megatron_bar.config import diff_json, to_json
from megatron_bar.data import world
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import Tokens, read_indexed
from megatron_bar.data.mixture import Mixture, mix, prepare, summary
from megatron_bar.data.sources import Source, check, read_rows
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import evaluate, load_model
from megatron_bar.evaluation.plot import line_chart
from megatron_bar.evaluation.report import write_report
from megatron_bar.evaluation.routing import expert_shares
from megatron_bar.experts.branch import branch
from megatron_bar.experts.merge import merge
from megatron_bar.experts.merge_report import markdown, measure
from megatron_bar.parallel.state import on_rank_zero, world_size
from megatron_bar.recipe import GENERAL, Recipe, Run
from megatron_bar.rl import grpo
from megatron_bar.rl.verifiers import check_task, verify_many
from megatron_bar.training.fit import Job, fit, remove_leftovers
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hashes import Units
from megatron_bar.weights.hf_config import ModelConfig, read_config
from megatron_bar.weights.init import random_folder
from megatron_bar.weights.manifest import Cost, Manifest, Training, read_manifest
from megatron_bar.weights.manifest import Source as ManifestSource


@dataclass(frozen=True, kw_only=True)
class Step:
    """A folder or file of the run, what it is made from, and how."""

    name: str
    needs: tuple[str, ...]
    make: Callable[[], None]
    expert: str | None = None
    stage: str | None = None
    run: Run | None = None
    """The training it does."""
    experts: int = 0
    """Of the model it trains; 0: dense."""
    choices: dict = field(default_factory=dict)
    """What the recipe says about it, as JSON."""


class Pipeline:
    """The steps of ``recipe``, writing under ``out``."""

    def __init__(self, recipe: Recipe, out: Path, say: Callable[[str], None] = lambda line: None):
        """``say`` shows a line; it is called on every rank."""
        self.recipe, self.out, self.say = recipe, Path(out), say
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

    def run(self, steps: list[Step]) -> None:
        """Makes what is missing of ``steps``, in order. Collective."""
        self.check(steps, world_size())
        on_rank_zero(lambda: self._compare_with_disk(steps))
        for number, step in enumerate(steps, 1):
            if self.finished(step.name):
                on_rank_zero(lambda: remove_leftovers(self.path(step.name)))  # noqa: B023
                self.say(f"[{number}/{len(steps)}] {step.name}: there already")
                continue
            for need in step.needs:
                if not self.finished(need):
                    raise BarError(f"{step.name} needs {self.path(need)}, which is not there; run its step first")
            self.say(f"[{number}/{len(steps)}] {step.name}" + (f" from {', '.join(step.needs)}" if step.needs else ""))
            step.make()
            on_rank_zero(lambda: self._record(step))  # noqa: B023

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
                if step.run is not None and (self.data.exists() or self.recipe.data is not None):
                    for source in step.run.data:
                        check(source, self.data)
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
        """What identifies each need: the hash of its manifest or of the file; None of what has neither."""
        found = {}
        for need in step.needs:
            path = self.path(need)
            path = path / "manifest.json" if path.is_dir() else path
            found[need] = blake3(path.read_bytes()).hexdigest() if path.is_file() else None
        return found

    def _recorded(self) -> dict[str, dict]:
        path = self.out / "steps.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise BarError(f"{path}: not readable as JSON ({error}); remove it: then what is there is not checked") from None

    def _record(self, step: Step) -> None:
        made = {"needs": self._inputs(step), "choices": step.choices}
        _write(self.out / "steps.json", json.dumps(self._recorded() | {step.name: made}, indent=1))

    def _steps(self) -> list[Step]:
        recipe, steps = self.recipe, []
        start = ("world",) if recipe.data is None else ()
        if recipe.data is None:
            choices = {"world": to_json(recipe.world), "seed": recipe.seed}
            steps.append(Step(name="world", needs=(), make=self._world, choices=choices))
        if "base" not in self.given:
            steps.append(Step(name="init", needs=start, make=self._init))
            steps.append(self._training(recipe.pretrain, "init", "base", stage="pretrain"))
        if "anchor" not in self.given:
            steps.append(self._training(recipe.posttrain, "base", "anchor", stage="posttrain"))
        choices = {"router_init": recipe.router_init, "seed": recipe.seed}
        steps.append(Step(name="branched", needs=("anchor", "base"), make=self._branch, stage="branch", choices=choices))
        for expert in recipe.experts:
            before = "branched"
            for run in expert.runs:
                name = f"{expert.name}-{run.stage.name}"
                steps.append(self._training(run, before, name, stage=run.stage.name, expert=expert.name, experts=2))
                before = name
        ends = tuple(f"{expert.name}-{expert.runs[-1].stage.name}" for expert in recipe.experts)
        make, choices = partial(self._merge, ends), {"shared": to_json(recipe.shared)}
        steps.append(Step(name="merged", needs=("branched", *ends), make=make, stage="merge", choices=choices))
        steps.append(self._training(recipe.route, "merged", "final", stage=recipe.route.stage.name, experts=len(ends) + 1))
        if recipe.evaluation is not None:
            models = ("anchor", *ends, "merged", "final")
            for model in models:
                make = partial(self._evaluate, model)
                steps.append(Step(name=f"evaluation/{model}.json", needs=(model,), make=make, stage="evaluate"))
            needs = tuple(f"evaluation/{model}.json" for model in models)
            steps.append(Step(name="report.md", needs=needs, make=partial(self._report, models), stage="report"))
        return steps

    def _training(self, run: Run, source: str, name: str, *, stage: str, expert: str | None = None, experts: int = 0) -> Step:
        return Step(
            name=name,
            needs=(source,),
            make=partial(self._train, run, source, name, expert),
            expert=expert,
            stage=stage,
            run=run,
            experts=experts,
            choices=to_json(run),
        )

    def _train(self, run: Run, source: str, name: str, expert: str | None) -> None:
        chats = self._chats(source)
        if run.rl is None:
            mixture = self._mixture(run, chats)
            data = {", ".join(part.sources): part.fingerprint for part in mixture.parts}
        else:
            tasks = self.tasks(run, chats)
            data = {"tasks": blake3(json.dumps([vars(task) for task in tasks]).encode()).hexdigest()}
        training = Training(stage=run.stage.name, policy=run.stage.policy, recipe=self.recipe.name, data=data)
        job = Job(
            name=name,
            source=self.path(source),
            out=self.path(name),
            manifest=partial(self._manifest, training, source, expert),
            logs=self.out / "logs" / name,
        )
        if run.rl is not None:
            grpo.train(job, run.stage, run.rl, tasks, chats, verify_many)
            return
        if run.stage.name == "sft" and not any(s.name == GENERAL for s in run.data):
            self.say(f"warning: {name}: no source of the domain {GENERAL}; SFT on a domain alone costs general skill")
        self.say(f"{name}: {summary(mixture.parts)}")
        fit(job, run.stage, mixture.parts, weights=mixture.weights)

    def tasks(self, run: Run, chats: ChatFormat) -> list[grpo.Task]:
        """All of them checked before the first is drawn: graders never see a truth that they cannot use."""
        rows = [row for source in run.data for row in read_rows(source, self.data, seed=self.recipe.seed)]
        on_rank_zero(lambda: [check_task(row["verifier"], row["truth"], where) for where, row in rows])
        found, room = [], run.stage.sequence - run.rl.max_new_tokens
        for where, row in rows:
            prompt = chats.prompt(row["messages"], tools=row.get("tools"), where=where)
            if len(prompt) > room:
                raise BarError(f"{where}: a prompt of {len(prompt)} tokens; the stage's rows leave room for {room}")
            found.append(grpo.Task(prompt=prompt, verifier=row["verifier"], truth=row["truth"]))
        return found

    def _mixture(self, run: Run, chats: ChatFormat) -> Mixture:
        """The packed data of a run; where a process has made the token files, all map them."""
        stage = run.stage
        return mix(
            [(source.name, self._tokens(source, chats)) for source in run.data],
            packing=stage.packing,
            length=stage.sequence,
            pad_id=chats.tokenizer.pad_id,
            too_long=stage.too_long,
            weights=run.weights,
        )

    def _tokens(self, source: Source, chats: ChatFormat) -> Tokens:
        make = partial(prepare, source, self.data, chats, self.out / "tokens", seed=self.recipe.seed, say=self.say)
        return read_indexed(on_rank_zero(make))

    def _chats(self, folder: str) -> ChatFormat:
        return ChatFormat(load_tokenizer(self.path(folder)), self.recipe.chat_template)

    def _manifest(
        self, training: Training, source: str, expert: str | None, written: Folder, units: Units, source_hash: str, cost: Cost
    ) -> Manifest:
        read = ManifestSource(role="source", name=self.path(source).name, hash=source_hash)
        return read_manifest(self.path(source)).after(training, sources=(read,), expert=expert, cost=cost)

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
            report = markdown(measure(self.path("branched"), experts), list(experts))
            self.path("merge_report.md").write_text(report, encoding="utf-8")
            merge(anchor=self.path("branched"), experts=experts, out=self.path("merged"), shared=self.recipe.shared)

        on_rank_zero(make)

    def _evaluate(self, name: str) -> None:
        wanted = self.recipe.evaluation
        chats = self._chats(name)
        model = load_model(self.path(name), wanted.parallel)
        found = {"scores": evaluate(model, chats, wanted.tests, self.data, slots=wanted.slots, say=self.say), "routing": {}}
        if model.shape.num_experts and wanted.parallel.pipeline == 1:
            found["experts"] = [expert.name for expert in read_manifest(self.path(name)).experts]
            for source in self.recipe.route.data:
                tokens = self._tokens(replace(source, share=1.0), chats)
                shares = expert_shares(model, tokens, length=self.recipe.route.stage.sequence)
                found["routing"][source.place.name.partition(".")[0]] = shares
        on_rank_zero(lambda: _write(self.out / "evaluation" / f"{name}.json", json.dumps(found, indent=1, ensure_ascii=False)))

    def _reward_curves(self) -> dict[str, list[list[float]]]:
        """The mean reward of every round, of every RLVR stage that left a log."""
        curves = {}
        for step in self.steps.values():
            log = self.out / "logs" / step.name / "metrics.jsonl"
            if step.run is not None and step.run.rl is not None and log.is_file():
                curves[step.name] = [[json.loads(line)["reward"] for line in log.read_text(encoding="utf-8").splitlines()]]
        return curves

    def _report(self, models: tuple[str, ...]) -> None:
        def make():
            found = {name: json.loads((self.out / "evaluation" / f"{name}.json").read_text(encoding="utf-8")) for name in models}
            experts = {spec.name: f"{spec.name}-{spec.runs[-1].stage.name}" for spec in self.recipe.experts}
            text = write_report(self.recipe.name, found, experts=experts, trained=self.recipe.evaluation.trained)
            curves = self._reward_curves()
            if curves:
                chart = line_chart(curves, title="Mean reward of RLVR", x="round", y="reward")
                _write(self.out / "rewards.svg", chart)
            _write(self.out / "report.md", text)

        on_rank_zero(make)


def _write(path: Path, text: str) -> None:
    """A file that appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
