"""What the steps of a run do: each is a function of the run's folder and of inputs that graph.py gives it.

It reads what other steps made and leaves a folder, or a file, that appears when it is whole. Collective.
"""

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from blake3 import blake3

from megatron_bar.config import to_json
from megatron_bar.data import untagged, world
from megatron_bar.data.mixture import summary
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation.compare import answered_texts, divergence
from megatron_bar.evaluation.generative import load_beside, load_model, measure_folder, read_tests
from megatron_bar.evaluation.results import mean_scores, read_results, write_results
from megatron_bar.evaluation.routing.lens import expert_names, show
from megatron_bar.evaluation.routing.scan import scan
from megatron_bar.evaluation.routing.shares import expert_shares
from megatron_bar.evaluation.validation import mean_loss
from megatron_bar.experts.artifact import extract
from megatron_bar.experts.branch import branch
from megatron_bar.experts.btx import btx
from megatron_bar.experts.dense_merge import dense_merge
from megatron_bar.experts.merge import merge
from megatron_bar.experts.merge_report import markdown as merge_report
from megatron_bar.experts.merge_report import measure as measure_merge
from megatron_bar.experts.routers import best_scale, rewrite, untrained_rows
from megatron_bar.parallel.state import on_rank_zero
from megatron_bar.recipes.recipe import GENERAL, ExpertSpec, Training
from megatron_bar.recipes.study import ACTIVE, MergeSpec, RouterSpec, ScanSpec, Upgrade, folder_and_active
from megatron_bar.rl import grpo
from megatron_bar.run.collect import collect, divergence_of, evaluation_of
from megatron_bar.run.data import chats_of, held_out_rows, mixture_of, preferences_of, tasks_of, tokens_of
from megatron_bar.run.folder import RunFolder
from megatron_bar.run.report_files import write_report
from megatron_bar.training.fit import Job, fit
from megatron_bar.training.preference import fit_preferences
from megatron_bar.verifiers import verify_many
from megatron_bar.weights.card import renew_card
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import ParamGroup, classify
from megatron_bar.weights.hashes import Units
from megatron_bar.weights.hf_config import read_config, show_active
from megatron_bar.weights.init import random_folder
from megatron_bar.weights.manifest import Cost, Manifest, SourceRecord, TrainingRecord, read_manifest
from megatron_bar.weights.whole import write_whole


def make_world(run: RunFolder) -> None:
    """Writes the data of a recipe that has none of its own."""

    def make() -> None:
        partial_folder = run.out / ".world.partial"
        shutil.rmtree(partial_folder, ignore_errors=True)
        sizes = run.recipe.world
        build = untagged.build if isinstance(sizes, untagged.UntaggedSizes) else world.build
        build(partial_folder, seed=run.recipe.seed, sizes=sizes)
        partial_folder.rename(run.out / "world")

    on_rank_zero(make)


def make_init(run: RunFolder) -> None:
    """Writes a dense model that has learnt nothing."""

    def make() -> None:
        shape = run.recipe.shape
        tokenizer = load_tokenizer(run.data / "tokenizer")
        if tokenizer.vocab_size > shape.vocab_size:
            raise BarError(f"tokenizer has {tokenizer.vocab_size} tokens, the model {shape.vocab_size}")
        random_folder(
            replace(shape, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id),
            run.path("init"),
            tokenizer=run.data / "tokenizer",
            seed=run.recipe.seed,
            embedding_std=run.recipe.embedding_std,
        )

    on_rank_zero(make)


def make_branch(run: RunFolder) -> None:
    """Writes the anchor with a domain expert beside it, from which the experts start."""
    recipe = run.recipe
    trained = [*recipe.experts, *(part for part in recipe.more if isinstance(part, ExpertSpec))]
    longest = max(training.stage.sequence for spec in trained for training in spec.runs)

    def make() -> None:
        branch(
            run.path("anchor"),
            run.path("base"),
            run.path("branched"),
            router_init=recipe.router_init,
            seed=recipe.seed,
            positions=longest,
        )

    on_rank_zero(make)


def make_merge(run: RunFolder, spec: MergeSpec) -> None:
    """Writes the model that ``spec`` makes of others."""
    inputs = {name: run.path(step) for name, step in spec.inputs.items()}
    out = run.path(spec.name)

    def make() -> None:
        if spec.how == "dense":
            dense_merge(inputs, out, shared=spec.shared)
        elif spec.how == "btx":
            btx(inputs, out, shared=spec.shared, shared_from=spec.shared_from, seed=run.recipe.seed)
        elif spec.rank or spec.routers:
            _merge_small(run, spec, inputs)
        else:
            report = merge_report(measure_merge(run.path("branched"), inputs), list(inputs))
            write_whole(out.with_name(f"{spec.name}_report.md"), report)
            merge(anchor=run.path("branched"), experts=inputs, out=out, shared=spec.shared)

    on_rank_zero(make)


def _merge_small(run: RunFolder, spec: MergeSpec, inputs: dict[str, Path]) -> None:
    """Merges experts in low rank, which stay beside the model, or whole ones, with another step's routers."""
    branched = run.path("branched")
    if spec.rank:
        place = run.artifacts(spec.name)
        for name, path in inputs.items():
            if not (place / name).exists():
                extract(path, branched, place / name, rank=spec.rank)
        inputs = {name: place / name for name in inputs}
    out = run.path(spec.name)
    if spec.routers is None:
        merge(branched, inputs, out, shared=spec.shared)
        return
    trained = Folder.open(run.path(spec.routers))
    rows = torch.stack(
        [trained.read(name) for name in trained.tensors if classify(name) is ParamGroup.ROUTER]
    )
    with TemporaryDirectory(dir=run.out, prefix=f".{spec.name}.") as untrained:
        merged = merge(branched, inputs, Path(untrained, spec.name), shared=spec.shared)
        rewrite(merged.path, out, rows=rows, note=f"routers of {spec.routers}, trained for the whole experts")


def train(run: RunFolder, training: Training, source: str, name: str, expert: str | None) -> None:
    """Trains a stage from the folder of the step ``source``; it becomes the folder of the step ``name``."""
    stage = training.stage
    chats = chats_of(run, source)
    job = partial(_job, run, training, source, name, expert)
    if training.rl is not None:
        tasks = tasks_of(run, training, chats)
        learnt = {"tasks": blake3(json.dumps([vars(task) for task in tasks]).encode()).hexdigest()}
        grpo.train(
            job(learnt), stage, training.rl, tasks, chats, partial(verify_many, judge=training.rl.judge)
        )
    elif training.dpo is not None:
        pairs = preferences_of(run, training, chats, name)
        learnt = {", ".join(pairs.sources): pairs.fingerprint}
        fit_preferences(job(learnt), stage, training.dpo, pairs)
    else:
        mixture = mixture_of(run, training, chats)
        learnt = {", ".join(part.sources): part.fingerprint for part in mixture.parts}
        if stage.name == "sft" and not any(rows.name == GENERAL for rows in training.data):
            lack = f"no source of the domain {GENERAL}; SFT on a domain alone costs general skill"
            run.say(f"warning: {name}: {lack}")
        run.say(f"{name}: {summary(mixture.parts)}")
        fit(job(learnt), stage, mixture.parts, weights=mixture.weights)


def _job(
    run: RunFolder, training: Training, source: str, name: str, expert: str | None, learnt: dict[str, str]
) -> Job:
    """Returns where a stage reads and writes, and what its manifest will say.

    ``learnt``: the sources of what it learns from, with a fingerprint of that.
    """
    stage = training.stage
    record = TrainingRecord(stage=stage.name, policy=stage.policy, recipe=run.recipe.name, data=learnt)
    return Job(
        name=name,
        source=run.path(source),
        out=run.path(name),
        manifest=partial(_manifest, record, run.path(source), expert),
        logs=run.out / "logs" / name,
    )


def _manifest(
    record: TrainingRecord,
    source: Path,
    expert: str | None,
    written: Folder,
    units: Units,
    source_hash: str,
    cost: Cost,
) -> Manifest:
    read = SourceRecord(role="source", name=source.name, hash=source_hash)
    return read_manifest(source).after(record, sources=(read,), expert=expert, cost=cost)


def choose(run: RunFolder, training: Training, candidates: tuple[str, ...], name: str) -> None:
    """Takes the candidate with the lowest loss on the validation chats, the domains' mean, as the folder."""
    unseen = held_out_rows(run, training.validation, chats_of(run, candidates[0]), training.stage.sequence)
    losses: dict[str, dict[str, float]] = {}
    for candidate in candidates:
        losses[candidate] = {}
        for active in training.chosen_at or (None,):
            model = load_model(run.path(candidate), run.recipe.evaluation.parallel, active_experts=active)
            at = "" if active is None else f"{ACTIVE}{active}"
            losses[candidate] |= {f"{domain}{at}": mean_loss(model, rows) for domain, rows in unseen.items()}
        shown = ", ".join(f"{domain} {loss:.4f}" for domain, loss in losses[candidate].items())
        run.say(f"  {candidate}: {shown}")
    best = min(candidates, key=lambda candidate: sum(losses[candidate].values()))
    run.say(f"  {name}: {best}")

    def take() -> None:
        chosen = json.dumps({"chosen": best, "losses": losses}, indent=1)
        write_whole(run.out / "choices" / f"{name}.json", chosen)
        beside = run.path(name).with_name(f".{name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(run.path(best), beside, copy_function=os.link)
        beside.rename(run.path(name))

    on_rank_zero(take)


def make_router(run: RunFolder, spec: RouterSpec) -> None:
    """Writes the source's folder with routers that nobody trained."""
    chats = chats_of(run, spec.source)
    length = run.recipe.route.stage.sequence
    model = load_model(run.path(spec.source), run.recipe.evaluation.parallel)
    texts = [tokens_of(run, source, chats) for source in spec.texts]
    rows = untrained_rows(model, spec.kind, texts, length=length)
    held_out = held_out_rows(run, spec.validation, chats, length)
    scale, losses = best_scale(model, rows, held_out.values(), spec.scales)
    run.say(f"  {spec.name}: " + ", ".join(f"scale {s:g} {loss:.4f}" for s, loss in losses.items()))
    note = f"routers {spec.kind}, scale {scale:g}, not trained"
    source = run.path(spec.source)
    on_rank_zero(lambda: rewrite(source, run.path(spec.name), rows=scale * rows.cpu(), note=note))


def make_active(run: RunFolder, spec: ScanSpec) -> None:
    """Writes the source's folder with as many active experts in each layer as a scan chooses."""
    source = run.path(spec.source)
    everyone = read_config(source).num_experts
    chats = chats_of(run, spec.source)
    held_out = held_out_rows(run, spec.validation, chats, run.recipe.route.stage.sequence)
    model = load_model(source, run.recipe.evaluation.parallel, active_experts=everyone)
    found = scan(
        model, list(held_out.values()), mean=spec.mean, say=lambda line: run.say(f"  {spec.name}: {line}")
    )
    note = f"active experts {show_active(found.chosen)}, chosen by a scan"
    on_rank_zero(lambda: rewrite(source, run.path(spec.name), active=found.chosen, note=note))


def evaluate(run: RunFolder, model: str) -> None:
    """Writes a model's answers to the tests with their scores; of the final one also how it routes the texts
    of its router."""
    wanted = run.recipe.evaluation
    folder, active = folder_and_active(model)
    chats = chats_of(run, folder)
    loaded, results = measure_folder(
        run.path(folder),
        wanted.parallel,
        chats,
        wanted.tests_of(model),
        run.data,
        active_experts=active,
        slots=wanted.slots,
        judge=wanted.judge,
        say=run.say,
    )
    if model == "final" and wanted.parallel.pipeline == 1:
        results["experts"] = [expert.name for expert in read_manifest(run.path(folder)).experts]
        results["routing"] = {}
        for source in run.recipe.route.data:
            tokens = tokens_of(run, replace(source, share=1.0), chats)
            shares = expert_shares(loaded, tokens, length=run.recipe.route.stage.sequence)
            results["routing"][source.name] = shares

    def keep() -> None:
        write_results(run.out / evaluation_of(model), results)
        if active is None and folder not in run.recipe.given:
            found = run.path(folder)
            renew_card(found, read_config(found), read_manifest(found), mean_scores(results))

    on_rank_zero(keep)


def compare(run: RunFolder, upgrade: Upgrade) -> None:
    """Writes how far answers moved on skills that an upgrade was not for: nats per token of every item."""
    wanted = run.recipe.evaluation
    old, few = folder_and_active(upgrade.before)
    new, fewer = folder_and_active(upgrade.after)
    chats = chats_of(run, old)
    before = load_model(run.path(old), wanted.parallel, active_experts=few)
    after = load_beside(run.path(new), wanted.parallel, active_experts=fewer)
    answered = read_results(run.out / evaluation_of(upgrade.before))["scores"]
    moved = {}
    for name, rows in read_tests(wanted.tests_of(upgrade.before), run.data).items():
        if name not in upgrade.changed:
            texts = answered_texts(chats, rows, answered[name], before.shape.max_positions)
            moved[name] = divergence(before, after, texts)
    on_rank_zero(lambda: write_whole(run.out / divergence_of(upgrade), json.dumps({"kl": moved})))


def show_lens(run: RunFolder) -> None:
    """Writes where the final model sends the tokens of a few test items with its answers."""
    wanted = run.recipe.evaluation
    chats = chats_of(run, "final")
    model = load_model(run.path("final"), wanted.parallel)
    answered = read_results(run.out / evaluation_of("final"))["scores"]
    texts = []
    for name, rows in read_tests(wanted.tests, run.data).items():
        items = answered_texts(chats, rows, answered[name], model.shape.max_positions)
        texts += [(name, ids) for ids in items[: run.recipe.study.lens.get(name, 0)]]
    lens = show(model, texts, chats.tokenizer, expert_names(run.path("final"), model.shape.num_experts))
    on_rank_zero(lambda: write_whole(run.out / "lens.json", json.dumps(to_json(lens))))


def make_report(run: RunFolder, name: str) -> None:
    """Writes the report of this run alone, ``name`` and the other files of it."""
    on_rank_zero(lambda: write_report(collect(run.recipe, [run.out]), run.path(name).parent))
