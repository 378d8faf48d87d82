"""What the steps of a run do: each reads folders under the run's own and leaves one, or a file, that appears when it is whole."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from blake3 import blake3

from megatron_bar.config import to_json
from megatron_bar.data import untagged, world
from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import Tokens, read_indexed
from megatron_bar.data.mixture import Mixture, mix, prepare, summary
from megatron_bar.data.packing import PackedRows
from megatron_bar.data.sources import Source, read_rows
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation.compare import answered_texts, divergence
from megatron_bar.evaluation.generative import load_beside, load_model, measure_folder, read_tests
from megatron_bar.evaluation.results import read_results, write_results
from megatron_bar.evaluation.routing.lens import expert_names, show
from megatron_bar.evaluation.routing.shares import expert_shares
from megatron_bar.evaluation.validation import mean_loss
from megatron_bar.experts.branch import branch
from megatron_bar.experts.btx import btx
from megatron_bar.experts.dense_merge import dense_merge
from megatron_bar.experts.merge import merge
from megatron_bar.experts.merge_report import markdown as merge_report
from megatron_bar.experts.merge_report import measure as measure_merge
from megatron_bar.experts.routers import best_scale, rewrite, untrained_rows
from megatron_bar.parallel.state import on_rank_zero
from megatron_bar.recipes.recipe import GENERAL, ExpertSpec, Recipe, Training
from megatron_bar.recipes.study import ACTIVE, MergeSpec, RouterSpec, Upgrade, folder_and_active
from megatron_bar.rl import grpo
from megatron_bar.run.collect import collect, divergence_of, evaluation_of
from megatron_bar.run.report_files import write_report
from megatron_bar.training.fit import Job, fit
from megatron_bar.training.preference import fit_preferences, preference_rows
from megatron_bar.verifiers import check_task, verify_many
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hashes import Units
from megatron_bar.weights.init import random_folder
from megatron_bar.weights.locks import StepLocks
from megatron_bar.weights.manifest import Cost, Manifest, SourceRecord, TrainingRecord, read_manifest
from megatron_bar.weights.whole import write_whole


class Work:
    """What can be done for ``recipe`` under ``out``. All methods that make something are collective."""

    def __init__(self, recipe: Recipe, out: Path, say: Callable[[str], None]):
        self.recipe, self.out, self.say = recipe, out, say
        self.locks = StepLocks(out)
        self.given = {name: path for name, path in (("base", recipe.base), ("anchor", recipe.anchor)) if path is not None}

    def path(self, name: str) -> Path:
        return Path(self.given.get(name, self.out / name))

    @property
    def data(self) -> Path:
        return self.recipe.data or self.out / "world"

    @property
    def models(self) -> list[str]:
        """All that are evaluated, in the order of the report."""
        own = ["anchor", *(expert.end for expert in self.recipe.experts), "merged", "final"]
        return list(dict.fromkeys(own + self.recipe.study.models))

    def world(self) -> None:
        def make():
            partial_folder = self.out / ".world.partial"
            shutil.rmtree(partial_folder, ignore_errors=True)
            build = untagged.build if isinstance(self.recipe.world, untagged.UntaggedSizes) else world.build
            build(partial_folder, seed=self.recipe.seed, sizes=self.recipe.world)
            partial_folder.rename(self.out / "world")

        on_rank_zero(make)

    def init(self) -> None:
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

    def branch(self) -> None:
        trained = [*self.recipe.experts, *(part for part in self.recipe.more if isinstance(part, ExpertSpec))]
        longest = max(run.stage.sequence for spec in trained for run in spec.runs)

        def make():
            branch(
                self.path("anchor"),
                self.path("base"),
                self.path("branched"),
                router_init=self.recipe.router_init,
                seed=self.recipe.seed,
                positions=longest,
            )

        on_rank_zero(make)

    def merge(self, spec: MergeSpec) -> None:
        inputs, out = {name: self.path(step) for name, step in spec.inputs.items()}, self.path(spec.name)

        def make():
            if spec.how == "dense":
                dense_merge(inputs, out, shared=spec.shared)
            elif spec.how == "btx":
                btx(inputs, out, shared=spec.shared, shared_from=spec.shared_from, seed=self.recipe.seed)
            else:
                report = merge_report(measure_merge(self.path("branched"), inputs), list(inputs))
                write_whole(out.with_name(f"{spec.name}_report.md"), report)
                merge(anchor=self.path("branched"), experts=inputs, out=out, shared=spec.shared)

        on_rank_zero(make)

    def train(self, run: Training, source: str, name: str, expert: str | None) -> None:
        chats, stage = self._chats(source), run.stage
        if run.rl is not None:
            tasks = self.tasks(run, chats)
            data = {"tasks": blake3(json.dumps([vars(task) for task in tasks]).encode()).hexdigest()}
        elif run.dpo is not None:
            say = lambda line: self.say(f"{name}: {line}")  # noqa: E731
            options = {"too_long": stage.too_long, "seed": self.recipe.seed, "say": say}
            pairs = preference_rows(run.data, self.data, chats, stage.sequence, **options)
            data = {", ".join(pairs.sources): pairs.fingerprint}
        else:
            mixture = self._mixture(run, chats)
            data = {", ".join(part.sources): part.fingerprint for part in mixture.parts}
        record = TrainingRecord(stage=stage.name, policy=stage.policy, recipe=self.recipe.name, data=data)
        job = Job(
            name=name,
            source=self.path(source),
            out=self.path(name),
            manifest=partial(self._manifest, record, source, expert),
            logs=self.out / "logs" / name,
        )
        if run.rl is not None:
            grpo.train(job, stage, run.rl, tasks, chats, verify_many)
        elif run.dpo is not None:
            fit_preferences(job, stage, run.dpo, pairs)
        else:
            if stage.name == "sft" and not any(s.name == GENERAL for s in run.data):
                self.say(f"warning: {name}: no source of the domain {GENERAL}; SFT on a domain alone costs general skill")
            self.say(f"{name}: {summary(mixture.parts)}")
            fit(job, stage, mixture.parts, weights=mixture.weights)

    def choose(self, run: Training, candidates: tuple[str, ...], name: str) -> None:
        """The candidate with the lowest loss on the validation chats, the mean over their domains, becomes the step's folder."""
        unseen = self._held_out(run.validation, self._chats(candidates[0]), run.stage.sequence)
        losses = {}
        for candidate in candidates:
            losses[candidate] = {}
            for active in run.chosen_at or (None,):
                model = load_model(self.path(candidate), self.recipe.evaluation.parallel, active_experts=active)
                at = "" if active is None else f"{ACTIVE}{active}"
                losses[candidate] |= {f"{domain}{at}": mean_loss(model, rows) for domain, rows in unseen.items()}
            self.say(f"  {candidate}: " + ", ".join(f"{domain} {loss:.4f}" for domain, loss in losses[candidate].items()))
        best = min(candidates, key=lambda candidate: sum(losses[candidate].values()))
        self.say(f"  {name}: {best}")

        def take() -> None:
            write_whole(self.out / "choices" / f"{name}.json", json.dumps({"chosen": best, "losses": losses}, indent=1))
            beside = self.path(name).with_name(f".{name}.partial")
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(self.path(best), beside, copy_function=os.link)
            beside.rename(self.path(name))

        on_rank_zero(take)

    def _held_out(self, sources: tuple[Source, ...], chats: ChatFormat, length: int) -> dict[str, PackedRows]:
        tokens = {source.name: self._tokens(source, chats) for source in sources}
        return {name: PackedRows([(name, found)], length, pad_id=chats.tokenizer.pad_id) for name, found in tokens.items()}

    def router(self, spec: RouterSpec) -> None:
        """The source's folder with routers that nobody trained."""
        chats, length = self._chats(spec.source), self.recipe.route.stage.sequence
        model = load_model(self.path(spec.source), self.recipe.evaluation.parallel)
        texts = [self._tokens(source, chats) for source in spec.texts]
        rows = untrained_rows(model, spec.kind, texts, length=length)
        held_out = self._held_out(spec.validation, chats, length)
        scale, losses = best_scale(model, rows, held_out.values(), spec.scales)
        self.say(f"  {spec.name}: " + ", ".join(f"scale {s:g} {loss:.4f}" for s, loss in losses.items()))
        note = f"routers {spec.kind}, scale {scale:g}, not trained"
        on_rank_zero(lambda: rewrite(self.path(spec.source), self.path(spec.name), rows=scale * rows.cpu(), note=note))

    def tasks(self, run: Training, chats: ChatFormat) -> list[grpo.Task]:
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

    def _mixture(self, run: Training, chats: ChatFormat) -> Mixture:
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
        def make() -> Path:
            with self.locks.waiting("tokens"):
                return prepare(source, self.data, chats, self.out / "tokens", seed=self.recipe.seed, say=self.say)

        return read_indexed(on_rank_zero(make))

    def _chats(self, folder: str) -> ChatFormat:
        return ChatFormat(load_tokenizer(self.path(folder)), self.recipe.chat_template)

    def _manifest(
        self, record: TrainingRecord, source: str, expert: str | None, written: Folder, units: Units, source_hash: str, cost: Cost
    ) -> Manifest:
        read = SourceRecord(role="source", name=self.path(source).name, hash=source_hash)
        return read_manifest(self.path(source)).after(record, sources=(read,), expert=expert, cost=cost)

    def evaluate(self, model: str) -> None:
        wanted = self.recipe.evaluation
        folder, active = folder_and_active(model)
        path, chats = self.path(folder), self._chats(folder)
        options = {"active_experts": active, "slots": wanted.slots, "say": self.say}
        loaded, found = measure_folder(path, wanted.parallel, chats, wanted.tests, self.data, **options)
        if loaded.shape.num_experts and wanted.parallel.pipeline == 1:
            found["experts"] = [expert.name for expert in read_manifest(path).experts]
            found["routing"] = {}
            for source in self.recipe.route.data:
                tokens = self._tokens(replace(source, share=1.0), chats)
                shares = expert_shares(loaded, tokens, length=self.recipe.route.stage.sequence)
                found["routing"][source.name] = shares
        on_rank_zero(lambda: write_results(self.out / evaluation_of(model), found))

    def compare(self, upgrade: Upgrade) -> None:
        """How far the answers moved on the prompts of skills that an upgrade was not for: nats per token of every item."""
        wanted = self.recipe.evaluation
        (old, few), (new, fewer) = map(folder_and_active, (upgrade.before, upgrade.after))
        chats = self._chats(old)
        before = load_model(self.path(old), wanted.parallel, active_experts=few)
        after = load_beside(self.path(new), wanted.parallel, active_experts=fewer)
        answered = read_results(self.out / evaluation_of(upgrade.before))["scores"]
        found = {}
        for name, rows in read_tests(wanted.tests, self.data).items():
            if name not in upgrade.changed:
                texts = answered_texts(chats, rows, answered[name], before.shape.max_positions)
                found[name] = divergence(before, after, texts)
        on_rank_zero(lambda: write_whole(self.out / divergence_of(upgrade), json.dumps({"kl": found})))

    def lens(self) -> None:
        """Where the final model sends the tokens of a few test items with its answers."""
        wanted, folder = self.recipe.evaluation, self.path("final")
        chats = self._chats("final")
        model = load_model(folder, wanted.parallel)
        answered = read_results(self.out / evaluation_of("final"))["scores"]
        texts = []
        for name, rows in read_tests(wanted.tests, self.data).items():
            items = answered_texts(chats, rows, answered[name], model.shape.max_positions)
            texts += [(name, ids) for ids in items[: self.recipe.study.lens.get(name, 0)]]
        found = show(model, texts, chats.tokenizer, expert_names(folder, model.shape.num_experts))
        on_rank_zero(lambda: write_whole(self.out / "lens.json", json.dumps(to_json(found))))

    def report(self) -> None:
        on_rank_zero(lambda: self.write_report([self.out], self.out))

    def write_report(self, runs: list[Path], folder: Path) -> None:
        """Of this recipe's runs, a seed each, all finished: report.json, report.html, report.md."""
        write_report(collect(self.recipe, runs), folder)
