"""The layouts of the shipped recipes against what the planner proposes for them."""

import pytest

from megatron_bar.planner.search import propose
from megatron_bar.planner.seconds import ranked_seconds
from megatron_bar.planner.usage import Machine, PlannedStage, usage
from megatron_bar.recipes import load_recipe
from megatron_bar.run.pipeline import Pipeline

GPUS = {
    "olmo2_1b": (8, 64),
    "olmo2_7b": (8, 16, 32, 64),
    "olmo2_13b": (8, 16, 64),
    "olmo2_32b": (16, 64, 128),
    "qwen3_8b": (8, 16, 32, 64),
    "llama31_8b": (8, 16, 32, 64),
}
"""How many of 80 GB each is for: from what its docstring names on, and those of examples/cluster/."""
SLOWER = 1.1


@pytest.mark.parametrize("name, gpus", [(name, gpus) for name, counts in GPUS.items() for gpus in counts])
def test_no_stage_is_slower_than_its_proposal_by_more_than_a_tenth(name, gpus, tmp_path):
    pipeline = Pipeline(load_recipe(name), tmp_path)
    machine = Machine(gpus=gpus, memory=80 * 10**9)
    seen = set()
    for step in pipeline.select():
        if step.run is None or step.run.stage.name in seen:
            continue
        seen.add(step.run.stage.name)
        planned = PlannedStage(name=step.name, run=step.run, shape=pipeline.shape.with_experts(step.experts))
        planned.stage.check(planned.shape, gpus, batches=planned.run.rl is None)
        assert machine.holds(usage(planned, planned.stage, machine)), step.name
        written = ranked_seconds(planned, planned.stage, machine)
        assert written <= SLOWER * propose(planned, machine).seconds, step.name
    assert seen == {"midtrain", "sft", "rlvr", "route"}
