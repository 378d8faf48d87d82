"""GRPO end to end on real weights: the reward rises, ratios start at one, a stopped run goes on as if it had
not been."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distributed import run_distributed
from folders import load_tensors, save_hf

from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.rl import grpo
from megatron_bar.rl.apart import build_engine
from megatron_bar.rl.prompts import Prompts
from megatron_bar.training.fit import Job
from megatron_bar.training.guard import Guard
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.manifest import Cost, Manifest, read_manifest

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


TASKS = [grpo.Task(prompt=[2 + n, 3, 4], verifier="", truth=None) for n in range(10)]


def learn(
    source: Path, out: Path, wanted: Stage, config: grpo.GRPOConfig, grade: grpo.Verify = first_is_five
) -> list[dict]:
    def manifest(*_, source_hash: str, cost: Cost) -> Manifest:
        return Manifest(family="flex_olmo", kind="dense", ledger=(cost,))

    job = Job(name="rlvr", source=source, out=out, manifest=manifest, logs=out.with_name("logs"))
    grpo.train(job, wanted, config, TASKS, Ids(), grade)
    return []


def rewards(logs: Path) -> list[dict]:
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


def stop_and_go_on(source: Path, out: Path, wanted: Stage, config: grpo.GRPOConfig) -> int:
    """Warned by a SIGTERM while rank 0 grades the second round; then run again. Returns the first run's
    status."""
    calls = []

    def grade(items) -> list[float]:
        calls.append(len(items))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return first_is_five(items)

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            learn(source, out, wanted, config, grade)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not out.exists()
    learn(source, out, wanted, config)
    return stopped.value.code


@pytest.mark.parametrize("layout", ["tp1", "ep2"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(layout, folder, tmp_path):
    config = replace(CONFIG, rounds=4, solved=0.5)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    layout, processes = LAYOUTS[layout]
    run_distributed(learn, processes, folder, tmp_path / "a" / "out", stage(layout), config)
    found = run_distributed(
        stop_and_go_on, processes, folder, tmp_path / "b" / "out", stage(layout, save_every=1), config
    )
    assert found == [os.EX_TEMPFAIL] * processes
    assert rewards(tmp_path / "a" / "logs") == rewards(tmp_path / "b" / "logs")
    a, b = load_tensors(tmp_path / "a" / "out"), load_tensors(tmp_path / "b" / "out")
    assert all(torch.equal(a[name], b[name]) for name in a)
    (straight,), (stopped,) = (read_manifest(tmp_path / run / "out").ledger for run in "ab")
    assert replace(straight, seconds=0) == replace(stopped, seconds=0)
    answers, rounds = config.prompts * config.group, rewards(tmp_path / "a" / "logs")
    assert straight.generated == pytest.approx(answers * sum(values["length"] for values in rounds))
    assert straight.tokens == sum(values.get("tokens", 0) for values in rounds)
    assert not list((tmp_path / "b").glob(".*"))


def spoil_one_step(source: Path, report: Path) -> list[dict]:
    """Two rounds, in whose second step one gradient is not finite."""
    wanted, config = stage(ParallelConfig()), replace(CONFIG, rounds=2)
    trainer = Trainer(source, wanted, steps=4)
    param = next(param for param in trainer.model.parameters() if param.requires_grad)
    param.register_hook(lambda gradient: gradient * (torch.inf if trainer.done == 1 else 1.0))
    engine = build_engine(config.engine, trainer, Ids(), config.params, place=report.with_name("handover"))
    rollouts = grpo.Rollouts(trainer, engine, TASKS, Prompts(TASKS, seed=0, solved=1.1), config, 0)
    guard = Guard("rlvr", report, wanted, start=0, watched=("grad_norm",))
    rounds = grpo.Rounds("rlvr", rollouts, guard, Ids(), first_is_five)
    found = [rounds.next(), rounds.next()]
    assert (trainer.done, trainer.updates) == (4, 3)
    return found


def test_a_step_that_is_not_finite_is_skipped_and_its_prompts_are_named(folder, tmp_path):
    (found,) = run_distributed(spoil_one_step, 1, folder, tmp_path / "nonfinite.jsonl")
    assert [values.get("skipped") for values in found] == [1.0, None]
    assert all(abs(value) < 1e6 for values in found for value in values.values())
    (reported,) = map(json.loads, (tmp_path / "nonfinite.jsonl").read_text().splitlines())
    assert reported["step"] == 2 and reported["values"]["grad_norm"] in ("inf", "nan")
    asked = reported["rows"]["prompts"]
    assert asked and set(asked) <= set(range(len(TASKS)))
