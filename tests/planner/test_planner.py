"""What is proposed fits and nothing clearly cheaper does; the rank that holds most is the one; RLVR's extras
by hand."""

from dataclasses import replace

import pytest

from megatron_bar.config import override
from megatron_bar.errors import BarError
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.planner.memory import Spread, states
from megatron_bar.planner.search import CLOSE, layouts, propose, smallest
from megatron_bar.planner.seconds import ranked_seconds
from megatron_bar.planner.usage import Machine, PlannedStage, _of_rank, parse_bytes, usage
from megatron_bar.recipes import load_recipe
from megatron_bar.run.pipeline import Pipeline

STEPS = ("math-midtrain", "math-sft", "math-rlvr", "final")


def planned(name: str, *changes: str) -> PlannedStage:
    recipe = override(load_recipe("olmo2_7b"), changes)
    pipeline = Pipeline(recipe, "runs/x")
    step = pipeline.steps[name]
    return PlannedStage(name=name, run=step.run, shape=pipeline.shape.with_experts(step.experts))


def machine(gpus: int, memory: str = "80GB", **more) -> Machine:
    return Machine(gpus=gpus, memory=parse_bytes(memory), **more)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("gpus, memory", [(8, "80GB"), (8, "40GB"), (16, "24GB"), (64, "80GB")])
def test_nothing_clearly_cheaper_than_the_proposal_fits(name, gpus, memory):
    one, there = planned(name), machine(gpus, memory)
    found = propose(one, there)
    fitting = [stage for stage in layouts(one, there) if there.holds(usage(one, stage, there))]
    if found is None:
        assert not fitting
        return
    assert found.stage in fitting and found.usage == usage(one, found.stage, there)
    layout = found.stage.parallel
    found.stage.check(one.shape, gpus, batches=one.run.rl is None)
    assert max(layout.tensor, layout.expert) <= there.node
    fastest = min(ranked_seconds(one, stage, there) for stage in fitting)
    assert found.seconds == ranked_seconds(one, found.stage, there) <= fastest * CLOSE


@pytest.mark.parametrize(
    "name, layout",
    [
        ("math-midtrain", ParallelConfig(tensor=2, pipeline=4)),
        ("math-sft", ParallelConfig(pipeline=2, expert=4)),
        ("math-rlvr", ParallelConfig(tensor=2, pipeline=2)),
    ],
)
def test_the_rank_that_holds_most_is_the_one(name, layout):
    """Against every rank, one by one."""
    one, there = planned(name), machine(16)
    stage = replace(one.stage, parallel=layout)
    spread = Spread.of(one.shape, layout, 16)
    totals = [
        _of_rank(one, stage, there, spread, states(one.shape, one.policy, spread, place), place).total
        for place in map(spread.place, range(16))
    ]
    assert usage(one, stage, there).total == max(totals) > min(totals)


def test_earlier_pipeline_ranks_keep_more_micro_batches():
    one, there = planned("math-sft"), machine(8)
    spread = Spread(pipeline=8, tensor=1, expert=1, expert_tensor=1, ranks=8)
    stage = replace(one.stage, parallel=ParallelConfig(pipeline=8))
    kept = [
        _of_rank(one, stage, there, spread, states(one.shape, one.policy, spread, place), place).activations
        for place in map(spread.place, range(8))
    ]
    inner = (
        kept[6] // 2
    )  # of one micro-batch; the last rank also has the final norm, the first what the embedding takes
    assert kept[1:7] == [inner * n for n in (7, 6, 5, 4, 3, 2)] and kept[0] > 7.9 * inner


def test_the_sampler_and_other_engines():
    there = machine(8)
    one = planned("math-rlvr", "experts.math.rlvr.rl.slots=64")
    used = usage(one, one.stage, there)
    # The expert, attention, embedding and head, whose 100,278 rows are padded to multiples of 64 on each
    # rank.
    cut = 4_328_521_728 + 32 * 4 * 4096**2 + 2 * 100_352 * 4096
    whole = 32 * (2 + 2 + 2) * 4096 + 4096  # routers, QK-norms and block norms, the last norm
    tensor = one.stage.parallel.tensor
    assert used.start == 2 * (cut // tensor + whole)
    for given, keeps in (("kl_every=0", False), ("kl_every=100000", False), ("kl=0.1", True)):
        other = planned("math-rlvr", "experts.math.rlvr.rl.slots=64", f"experts.math.rlvr.rl.{given}")
        found = usage(other, one.stage, there)
        assert (found.start, found.scoring > 0) == (used.start * keeps, keeps)
    keys_and_values = 2 * 32 * 65 * (32 // tensor) * 6144 * 128 * 2
    assert keys_and_values < used.sampling < keys_and_values * 1.2
    few = planned("math-rlvr", "experts.math.rlvr.rl.slots=16")
    assert usage(few, few.stage, there).sampling < used.sampling / 3
    rl = "experts.math.rlvr.rl"
    beside = planned("math-rlvr", f"{rl}.engine.name=vllm", f"{rl}.engine.memory=0.5")
    assert usage(beside, beside.stage, there).engine == 40 * 10**9
    apart = planned("math-rlvr", f"{rl}.engine.name=vllm", f"{rl}.engine.devices=7")
    assert (usage(apart, apart.stage, there).engine, usage(apart, apart.stage, there).sampling) == (0, 0)


def test_the_smallest_number_of_gpus():
    one = planned("math-midtrain")
    assert propose(one, machine(2, "40GB")) is None
    count = smallest(one, machine(2, "40GB"))
    assert propose(one, machine(count, "40GB")) and not propose(one, machine(count // 2, "40GB"))
    assert smallest(one, machine(8, "1GB", reserve=0)) is None


def test_what_no_layout_divides():
    with pytest.raises(
        BarError, match="math-midtrain: no layout of 7 GPUs divides 128 rows, 32 heads and 32 layers"
    ):
        propose(planned("math-midtrain"), machine(7))
