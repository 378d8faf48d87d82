"""GRPO end to end on real weights: the reward rises, ratios start at one, a stopped run goes on as if it had not been."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distributed import run_distributed
from folders import load_tensors, save_hf

from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.rl import grpo
from megatron_bar.training.checkpoint import Checkpoints
from megatron_bar.training.fit import Job
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.weights.manifest import Manifest

LAYOUTS = {
    "tp1": (ParallelConfig(), 1),
    "tp2": (ParallelConfig(tensor=2), 2),
    "ep2": (ParallelConfig(expert=2), 2),
    "pp2": (ParallelConfig(pipeline=2), 2),
}
CONFIG = grpo.GRPOConfig(rounds=14, prompts=8, group=8, mini_batches=2, max_new_tokens=3, solved=1.1)


class Ids:
    """A chat format and its tokenizer, whose text is the ids themselves."""

    stop_ids, pad_id = frozenset({1}), 0

    @property
    def tokenizer(self) -> "Ids":
        return self

    def decode(self, ids) -> str:
        return " ".join(map(str, ids))


def first_is_five(items) -> list[float]:
    return [float(answer.split()[0] == "5") for _, answer, _ in items]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("grpo"), experts=2, seed=2)


def stage(layout: ParallelConfig, save_every: int = 0) -> Stage:
    return Stage(
        name="rlvr",
        policy="rlvr",
        optim=OptimConfig(lr=1e-2),
        sequence=16,
        batch=4,
        micro_batch=2,
        router_z_loss=1e-3,
        parallel=layout,
        save_every=save_every,
    )


def learn(source: Path, out: Path, wanted: Stage, config: grpo.GRPOConfig) -> list[dict]:
    tasks = [grpo.Task(prompt=[2 + n, 3, 4], verifier="", truth=None) for n in range(10)]
    manifest = Manifest(family="flex_olmo", kind="dense")
    job = Job(name="rlvr", source=source, out=out, manifest=lambda *_, source_hash: manifest, logs=out.with_name("logs"))
    grpo.train(job, wanted, config, tasks, Ids(), first_is_five)
    return []


def rewards(logs: Path) -> list[dict]:
    import json

    return [json.loads(line) for line in (logs / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_reward_rises(layout, folder, tmp_path):
    layout, processes = LAYOUTS[layout]
    run_distributed(learn, processes, folder, tmp_path / "out", stage(layout), CONFIG)
    seen = rewards(tmp_path / "logs")
    assert seen[0]["reward"] <= 0.3
    assert seen[-1]["reward"] >= 0.8
    # Rewards are graded by the text alone, so what the anchor's tensors hold cannot matter: they are frozen.
    before, after = load_tensors(folder), load_tensors(tmp_path / "out")
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    assert torch.equal(before[name], after[name])


def test_the_first_mini_batch_has_the_samplers_probabilities(folder, tmp_path):
    config = replace(CONFIG, rounds=1, mini_batches=1)
    run_distributed(learn, 1, folder, tmp_path / "out", stage(ParallelConfig()), config)
    (only,) = rewards(tmp_path / "logs")
    assert abs(only["kl_to_sampler"]) <= 1e-9
    assert only["clip_low"] == only["clip_high"] == 0


def stop_after_save(source: Path, out: Path, wanted: Stage, config: grpo.GRPOConfig) -> None:
    """Interrupted right behind a checkpoint, as by a kill; then run again."""
    original = Checkpoints.save

    def save_and_stop(checkpoints, *args):
        original(checkpoints, *args)
        checkpoints.wait()
        raise KeyboardInterrupt

    Checkpoints.save = save_and_stop
    try:
        with pytest.raises(KeyboardInterrupt):
            learn(source, out, wanted, config)
    finally:
        Checkpoints.save = original
    learn(source, out, wanted, config)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(folder, tmp_path):
    config = replace(CONFIG, rounds=4, solved=0.5)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run_distributed(learn, 1, folder, tmp_path / "a" / "out", stage(ParallelConfig()), config)
    run_distributed(stop_after_save, 1, folder, tmp_path / "b" / "out", stage(ParallelConfig(), save_every=2), config)
    a, b = load_tensors(tmp_path / "a" / "out"), load_tensors(tmp_path / "b" / "out")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not list((tmp_path / "b").glob(".*"))
