"""Says what a recipe will do, stage by stage, before anything is done: hyperparameters, what trains, how many
parameters."""

from collections.abc import Iterator
from dataclasses import replace

from megatron_bar.planner.rehearsal import Rehearsal, rehearse
from megatron_bar.planner.traffic import PARTS, exchanges, micro_batches
from megatron_bar.recipes.recipe import Recipe, Training
from megatron_bar.recipes.study import MergeSpec, RouterSpec, ScanSpec
from megatron_bar.run.graph import Step
from megatron_bar.run.pipeline import Pipeline
from megatron_bar.training.freeze import table
from megatron_bar.training.stage import Stage
from megatron_bar.weights.groups import POLICIES, FreezePolicy
from megatron_bar.weights.hf_config import ModelConfig, num_parameters


def describe(recipe: Recipe, dense: ModelConfig) -> Iterator[str]:
    """Yields lines about every stage; ``dense`` is the shape of the base and the anchor."""
    yield f"recipe {recipe.name}: dense {num_parameters(dense):,} parameters, {len(recipe.experts)} experts"
    if recipe.base is None:
        yield from _run("base", recipe.pretrain, dense)
    if recipe.anchor is None:
        yield from _run("anchor", recipe.posttrain, dense)
    two = dense.with_experts(2)
    yield f"branched: {{anchor, domain}}, router {recipe.router_init}: {num_parameters(two):,} parameters"
    for expert in recipe.experts:
        for run in expert.runs:
            yield from _run(f"{expert.name}-{run.stage.name}", run, two)
    merged = dense.with_experts(len(recipe.experts) + 1)
    names = ", ".join(expert.name for expert in recipe.experts)
    yield f"merged: anchor, {names}; shared {recipe.shared.describe()}: {num_parameters(merged):,} parameters"
    yield from _run("final", recipe.route, merged)
    shapes = {"base": dense, "anchor": dense, "branched": two, "merged": merged, "final": merged}
    shapes |= {f"{expert.name}-{run.stage.name}": two for expert in recipe.experts for run in expert.runs}
    for part in recipe.more:
        if isinstance(part, MergeSpec):
            shapes[part.name] = dense if part.how == "dense" else dense.with_experts(part.experts)
            yield f"{part.name}: {part.describe()}"
            continue
        if isinstance(part, RouterSpec | ScanSpec):
            shapes[part.name] = shapes[part.source]
            yield f"{part.name}: {part.describe()}"
            continue
        for run in part.runs:
            name = f"{part.name}-{run.stage.name}"
            shapes[name] = shapes[part.start]
            yield from _run(name, run, shapes[name])


def rehearsed(pipeline: Pipeline, steps: list[Step], world_size: int) -> Iterator[str]:
    """Yields a line for each of ``steps`` that trains, once its ranks were built and found to fit together
    (planner/rehearsal.py)."""
    done: dict[tuple, Rehearsal] = {}
    for step in steps:
        if step.run is None:
            continue
        stage = step.run.stage
        shape = pipeline.shape.with_experts(step.experts) if step.experts else pipeline.shape
        alike = (shape, stage.policy, stage.parallel, stage.recompute, stage.attention)
        if alike not in done:
            done[alike] = rehearse(step.name, shape, stage, world_size, batches=step.run.rl is None)
        yield f"{step.name}: {done[alike]}"


def traffic(pipeline: Pipeline, steps: list[Step], world_sizes: tuple[int, ...]) -> Iterator[str]:
    """Yields a table in Markdown: GB that a GPU sends in a step, for every different stage among ``steps``
    (planner/traffic.py)."""
    yield f"| stage | GPUs | data ranks | micro-batches | {' | '.join(PARTS)} | sum | nothing frozen |"
    yield "|---|" + "---:|" * 10
    seen = set()
    for step in steps:
        if step.run is None or step.run.stage in seen:
            continue
        stage = step.run.stage
        shape = pipeline.shape.with_experts(step.experts) if step.experts else pipeline.shape
        seen.add(stage)
        unfrozen = replace(
            stage,
            policy="rlvr_open" if step.experts else "dense_all",
            optim=replace(stage.optim, weight_decay=0.0),
        )
        for world_size in world_sizes:
            stage.check(shape, world_size, batches=step.run.rl is None)
            sent = _sent(shape, stage, world_size)
            data_parallel = world_size // (stage.parallel.tensor * stage.parallel.pipeline)
            numbers = [*sent.values(), sum(sent.values()), sum(_sent(shape, unfrozen, world_size).values())]
            gigabytes = [f"{n / 1e9:,.1f}" for n in numbers]
            columns = [step.name, world_size, data_parallel, micro_batches(stage, world_size), *gigabytes]
            yield f"| {' | '.join(map(str, columns))} |"


def _sent(shape: ModelConfig, stage: Stage, world_size: int) -> dict[str, float]:
    """Returns the bytes by part that the pipeline rank sends that sends most."""
    ranks = []
    for rank in range(stage.parallel.pipeline):
        parts = dict.fromkeys(PARTS, 0.0)
        for exchange in exchanges(shape, stage, world_size, pipeline_rank=rank):
            parts[exchange.part] += exchange.sent
        ranks.append(parts)
    return max(ranks, key=lambda parts: sum(parts.values()))


def _run(name: str, run: Training, shape: ModelConfig) -> Iterator[str]:
    stage = run.stage
    optim = run.stage.optim
    amount = f"{stage.steps:,} steps" if stage.steps else f"{stage.epochs:g} epochs"
    if run.rl is not None:
        rl = run.rl
        amount = f"{rl.rounds} rounds of {rl.prompts} prompts x {rl.group}, {rl.mini_batches} mini-batches"
    tokens = f"{stage.batch * stage.sequence:,} tokens a step in rows of {stage.sequence}"
    yield f"{name}: policy {stage.policy}, {amount}, {tokens}"
    if run.rates:
        rates = ", ".join(f"{rate:g}" for rate in run.rates)
        chats = ", ".join(str(source.path) for source in run.validation)
        yield f"    the best of lr {rates} by the loss on {chats}"
    warmup = f"{optim.warmup:g} steps" if optim.warmup >= 1 else f"{optim.warmup:.0%}"
    yield (
        f"    lr {optim.lr:g} {optim.schedule} to {optim.final_lr_ratio:.0%}, warmup {warmup}, "
        f"AdamW {optim.betas}, weight decay {optim.weight_decay:g}, clip {optim.clip:g}, "
        f"z-loss router {stage.router_z_loss:g} head {stage.head_z_loss:g}"
    )
    parallel = stage.parallel
    layout = f"tensor {parallel.tensor} pipeline {parallel.pipeline} expert {parallel.expert}"
    yield f"    {layout}, recompute {'yes' if stage.recompute else 'no'}"
    data = (f"{s.path} ({s.share:.0%})" if s.share < 1 else f"{s.path}" for s in run.data)
    yield f"    data {', '.join(data)}"
    yield from _trains(shape, POLICIES[stage.policy])


def _trains(shape: ModelConfig, policy: FreezePolicy) -> Iterator[str]:
    rows = table(shape, policy)
    total = sum(count for _, count, trains in rows if trains)
    masked = policy.anchor_row_frozen and shape.num_experts
    suffix = ", the anchor's router row masked" if masked else ""
    yield f"    trains {total:,} of {num_parameters(shape):,} parameters{suffix}"
    for group, count, trains in rows:
        yield f"        {'train ' if trains else 'frozen'}  {group:<14} {count:>15,}"
