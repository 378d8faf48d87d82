"""What a stage says that it cost: counted by hand, the same on every layout, and summed over
interruptions."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import run_distributed
from folders import save_hf
from tiny_fit import STAGE, rows

from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.training import flops
from megatron_bar.training.checkpoint import Checkpoints
from megatron_bar.training.fit import Job, fit
from megatron_bar.training.meter import Meter
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.groups import POLICIES
from megatron_bar.weights.hf_config import read_config
from megatron_bar.weights.manifest import Cost, Manifest, read_manifest

LAYOUTS = {
    "tp2": ParallelConfig(tensor=2),
    "ep2": ParallelConfig(expert=2),
    "pp2": ParallelConfig(pipeline=2),
    "dp2": ParallelConfig(),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("source") / "two", experts=2)


def costs(source: Path, out: Path, layouts: list[ParallelConfig]) -> list[Cost]:
    found = []

    def manifest(*_, source_hash: str, cost: Cost) -> Manifest:
        found.append(cost)
        return Manifest(family="flex_olmo", kind="dense", ledger=(cost,))

    for number, layout in enumerate(layouts):
        stage = replace(STAGE, parallel=layout, batch=4, save_every=0)
        fit(
            Job(name="math-midtrain", source=source, out=out / str(number), manifest=manifest),
            stage,
            [rows()],
        )
    return found


def by_hand(source: Path) -> dict[str, float]:
    """Of six steps of four rows: two whole documents of seven tokens in a row of sixteen, the rest
    padding."""
    config, tokens = read_config(source), 6 * 4 * 16
    pairs = 6 * 4 * (2 * (7 * 8 // 2) + 2)
    forward, backward = flops.forward(config), flops.backward(config, POLICIES["midtrain"])
    counts = {"tokens": tokens, "pairs": pairs, "heads": 6 * 4 * 12}
    total = forward(**counts) + backward(**counts)
    return {"tokens": tokens, "loss_tokens": counts["heads"], "generated": 0, "flops": total}


def test_a_stage_counts_what_it_does_on_every_layout(source, tmp_path):
    found = run_distributed(costs, 2, source, tmp_path, list(LAYOUTS.values()))[0]
    for cost in found:
        assert {name: getattr(cost, name) for name in by_hand(source)} == by_hand(source)
        assert (cost.step, cost.stage, cost.devices) == ("math-midtrain", "midtrain", 2)
        assert cost.device and 0 < cost.seconds < 600
    assert read_manifest(tmp_path / "0").ledger == (found[0],)


def test_an_answer_is_read_but_for_its_last_token(source):
    """Of a prompt of 3 and an answer of 2 tokens four are read, and two distributions wanted; each reads all
    before it."""
    config = read_config(source)
    meter, one = Meter(config, POLICIES["rlvr"]), flops.forward(config)
    meter.sample([(3, 2), (3, 2)])
    read = sum(one(tokens=1, pairs=place, heads=0) for place in (1, 2, 3, 4)) + 2 * one.head
    assert (meter.spent.generated, meter.spent.flops, meter.spent.tokens) == (4, pytest.approx(2 * read), 0)


def interrupted(source: Path, folder: Path) -> tuple[dict, dict, float]:
    """What was spent just before a checkpoint, what the run that goes on from it begins with, and the most
    seconds in between."""
    trainer = Trainer(source, STAGE, steps=6)
    trainer.meter.train(7, 5, 11)
    time.sleep(0.3)
    checkpoints = Checkpoints(trainer, folder, name="x", origin={})
    saved, began = trainer.meter.saved(), time.monotonic()
    checkpoints.save(1, {})
    checkpoints.wait()
    trainer = Trainer(source, STAGE, steps=6)
    assert Checkpoints(trainer, folder, name="x", origin={}).resume() == {}
    return saved, trainer.meter.saved(), time.monotonic() - began


def test_what_was_spent_before_an_interruption_is_not_forgotten(source, tmp_path):
    ((before, after, between),) = run_distributed(interrupted, 1, source, tmp_path / "checkpoints")
    assert 0.3 <= before["seconds"] <= after["seconds"] <= before["seconds"] + between
    assert before["tokens"] == 7 and {**after, "seconds": 0} == {**before, "seconds": 0}
