"""Seconds of a stage by hand: its operations, answers, checkpoints and folders; and the sampler as it was
measured."""

from dataclasses import replace

import pytest

from megatron_bar.config import override
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.planner.memory import Spread
from megatron_bar.planner.sampling import DRAW, LAUNCH, PAUSE, READ, round_seconds, token_seconds
from megatron_bar.planner.search import propose
from megatron_bar.planner.seconds import compute_seconds, ranked_seconds, stage_seconds
from megatron_bar.planner.usage import Machine, PlannedStage
from megatron_bar.recipes import load_recipe
from megatron_bar.recipes.olmo2_7b import SHAPE
from megatron_bar.run.pipeline import Pipeline

TWO = 11_626_795_008
"""Parameters of 7B with two experts, ..."""
VOCABULARY = 100_278 * 4096
"""... of these of the embedding, and as many of the head."""
PADDED = 100_352 * 4096
"""The head's on one rank."""
TENSOR4 = ParallelConfig(tensor=4)


def planned(name: str, *changes: str, size: str = "7b") -> PlannedStage:
    pipeline = Pipeline(override(load_recipe(f"olmo2_{size}"), changes), "runs/x")
    step = pipeline.steps[name]
    return PlannedStage(name=name, run=step.run, shape=pipeline.shape.with_experts(step.experts))


def machine(gpus: int, **more) -> Machine:
    return Machine(gpus=gpus, memory=80 * 10**9, **more)


def test_operations_by_hand():
    """Six operations for a parameter and token where all trains, eight with recomputation, at half of 1000
    TFLOP/s on 8 GPUs."""
    one, there = planned("math-rlvr"), machine(8, tflops=1000.0, mfu=0.5)
    everything = replace(one, run=replace(one.run, stage=replace(one.stage, policy="rlvr_open")))
    tokens, parameters = 128 * 6144, 11_626_795_008 - 100_278 * 4096  # the embedding multiplies nothing
    pairs = 128 * 6144 * 6145 // 2 * 32 * 4 * 4096
    straight = compute_seconds(
        everything, replace(one.stage, recompute=False, parallel=ParallelConfig()), there
    )
    assert straight == pytest.approx((6 * parameters * tokens + 3 * pairs) / 4e15, rel=1e-3)
    again = compute_seconds(everything, replace(one.stage, recompute=True, parallel=ParallelConfig()), there)
    forward = 2 * (parameters - 100_278 * 4096) * tokens + pairs
    assert again - straight == pytest.approx(forward / 4e15, rel=1e-3)
    pipelined = replace(one.stage, recompute=False, parallel=ParallelConfig(pipeline=4))
    assert compute_seconds(everything, pipelined, there) == pytest.approx(straight * (64 + 3) / 64)


@pytest.mark.parametrize(
    "layers, slots, recorded, milliseconds",
    [
        (8, 16, True, 3.327),
        (8, 64, True, 4.286),
        (32, 16, True, 1000 * 16 / 1774),
        (32, 64, True, 1000 * 64 / 5393),
        (8, 16, False, 20.09),
        (8, 64, False, 21.48),
    ],
)
def test_a_token_takes_what_was_measured(layers, slots, recorded, milliseconds):
    """Within a tenth of benchmarks/results/nvidia_h200.md: one H200 of 4.8 TB/s, 400 tokens behind 64, keys
    read up to the next multiple of 256."""
    shape = replace(SHAPE, num_layers=layers).with_experts(2)
    spread = Spread.of(shape, ParallelConfig(), 1)
    there = machine(1, bandwidth=4.8e12)
    found = token_seconds(shape, spread, there, slots=slots, length=64 + 328, recorded=recorded)
    assert 1000 * found == pytest.approx(milliseconds, rel=0.1)


def test_a_token_of_heads_of_their_own_width_by_hand():
    """Qwen3 8B with heads of 192: 16 slots read all weights but the embedding, and 1000 keys and values each."""
    shape = replace(load_recipe("qwen3_8b").shape, own_head_dim=192)
    attention = 4096 * 192 * (32 + 8 + 8 + 32)
    layer = attention + 3 * 4096 * 12_288 + 2 * 4096 + 2 * 192  # four norms
    read = 2 * (36 * layer + 4096 * 151_936 + 4096) + 16 * 1000 * 36 * 2 * 8 * 192 * 2
    there = machine(1, bandwidth=3e12)
    found = token_seconds(
        shape, Spread.of(shape, ParallelConfig(), 1), there, slots=16, length=1000, recorded=True
    )
    assert found == pytest.approx(36 * PAUSE + read / (READ * 3e12) + DRAW, rel=1e-9)


def test_a_round_that_reads_by_hand():
    """1B whole on each of 8 GPUs: two times 32 answers a GPU, each token reads the weights and 32 caches."""
    one, there = planned("math-rlvr", size="1b"), machine(8, tflops=1000.0, mfu=0.5, bandwidth=3e12)
    parameters = 2_290_288_640 - 100_352 * 2048  # the embedding is not read
    keys = 32 * (2048 + (4096 + 256) / 2) * 2 * 16 * 2048
    passes = 2 * 4096 * (16 * PAUSE + 2 * (parameters + keys) / (READ * 3e12) + DRAW)
    tokens, pairs = 512 * 2048, 512 * (2048 * 2049 // 2)
    multiplied = parameters - 100_352 * 2048  # the head for the last token of a prompt alone
    prompts = (2 * multiplied * tokens + 4 * 2048 * 16 * pairs + 2 * 512 * 100_352 * 2048) / 4e15
    assert round_seconds(one, one.stage, there, steps=0.0) == pytest.approx(passes + prompts, rel=1e-3)


def test_a_round_that_launches_by_hand():
    """7B over 4 of 8 GPUs: nothing is recorded, and 256 answers go through 48 slots in six turns."""
    one, there = planned("math-rlvr"), machine(8, tflops=1000.0, mfu=0.5)
    tokens, pairs = 512 * 2048, 512 * (2048 * 2049 // 2)
    prompts = (2 * (TWO - 2 * VOCABULARY) * tokens + 4 * 4096 * 32 * pairs) / 4e15
    turns = 6 * 4096 * (32 * LAUNCH + DRAW)
    found = round_seconds(one, replace(one.stage, parallel=TENSOR4), there, steps=0.0)
    assert found == pytest.approx(turns + prompts, rel=1e-3)
    two = replace(one.stage, parallel=ParallelConfig(tensor=4, pipeline=2))
    assert round_seconds(one, two, there, steps=0.0) == pytest.approx(11 * turns / 6 + 2 * prompts, rel=1e-3)


def test_an_engine_of_its_own_by_hand():
    """Eight GPUs of vLLM hold 171 answers at their longest, a third of a round; each round hands 23 GB over;
    the lag hides what training takes."""
    engine = "experts.math.rlvr.rl.{engine.name=vllm,engine.tensor=8,lag=1,importance_cap=2}"
    one, there = planned("math-rlvr", *expanded(engine)), machine(16, disk=1e9)
    room = 0.9 * 80e9 - 2 * TWO / 8
    slots = int(room / (6144 * 2 * 32 * 4096 * 2 / 8))
    assert slots == 171
    keys = slots * (2048 + (4096 + 256) / 2) * 2 * 32 * 4096
    # The norms and routers, whole on every GPU, and the head's padding are a thousandth.
    read = 2 * (TWO - VOCABULARY + keys) / 8 / (READ * 3.35e12)
    tokens, pairs = 512 * 2048, 512 * (2048 * 2049 // 2)
    prompts = (2 * (TWO - 2 * VOCABULARY) * tokens + 4 * 4096 * 32 * pairs) / (8 * 0.4 * 989e12)
    answers = 3 * 4096 * (32 * PAUSE + read + DRAW) + prompts
    handed = 2 * 2 * TWO / 1e9
    assert round_seconds(one, one.stage, there, steps=10.0) == pytest.approx(answers + handed - 10, rel=2e-3)
    assert round_seconds(one, one.stage, there, steps=1e6) == pytest.approx(handed)
    small = planned("math-rlvr", *expanded(engine), "experts.math.rlvr.rl.engine.memory=0.1")
    assert round_seconds(small, one.stage, there, steps=0.0) > 2 * answers


def expanded(text: str) -> list[str]:
    start, _, rest = text.partition("{")
    return [start + part for part in rest.rstrip("}").split(",")]


def test_a_stage_is_the_sum_of_its_parts():
    """Mid-training: 95 checkpoints before the last step, 12 bytes a value; the folder passes the disk four
    times."""
    one, there = planned("math-midtrain"), machine(16, disk=1e9)
    found = stage_seconds(one, one.stage, there)
    assert (found.steps, found.saves, found.sampling) == (47_684, 95, 0.0)
    assert found.save == pytest.approx(12 * 4_328_783_872 / 2 / 1e9, rel=1e-3)  # on each of two nodes
    assert found.folders == 4 * 2 * TWO / 1e9
    assert found.total == 47_684 * found.step + 95 * found.save + found.folders


def test_rlvr_counts_rounds():
    one, there = planned("math-rlvr"), machine(8)
    found = stage_seconds(one, one.stage, there)
    assert (found.steps, found.saves) == (1200, 29)  # of 300 rounds, every tenth
    assert 4 * found.sampling == round_seconds(one, one.stage, there, steps=4 * found.step)
    assert ranked_seconds(one, one.stage, there) == found.step + found.sampling
    many = stage_seconds(planned("math-sft"), planned("math-sft").stage, there)
    assert (many.steps, many.saves, many.total) == (None, None, None)
    assert stage_seconds(one, one.stage, machine(8, disk=4e9)).save == found.save / 2


def test_who_samples_itself_gets_another_layout():
    """A small model that is whole on a GPU records its passes, which is worth more than a faster step."""
    one = planned("math-rlvr", size="1b")
    assert propose(one, machine(64)).stage.parallel == ParallelConfig()
    spread = replace(one.stage, parallel=ParallelConfig(expert=2))
    assert ranked_seconds(one, spread, machine(64)) > 3 * ranked_seconds(one, one.stage, machine(64))
