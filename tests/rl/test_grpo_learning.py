"""RLVR learns arithmetic that its start cannot do, from the verifier's word on its text alone; with shuffled
rewards it does not.

The start is trained to answer in the right form, with digits drawn at random. One seed and the control here;
more in test-slow.
"""

import json
import random
import resource
from pathlib import Path

import pytest
import torch
from distributed import run_distributed
from folders import save_hf

from megatron_bar.data.indexed import in_memory
from megatron_bar.data.loader import Loader
from megatron_bar.data.packing import PackedRows
from megatron_bar.rl import grpo
from megatron_bar.rl.rollouts import check_rollouts
from megatron_bar.training.fit import Job
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.verifiers import verify_many
from megatron_bar.weights.manifest import Manifest

PAD, EOS, DIGIT, PLUS, EQUALS = 0, 1, 2, 12, 13
SUMS = [(a, b) for a in range(5) for b in range(5)]
CONFIG = grpo.GRPOConfig(
    rounds=320,
    prompts=25,
    group=8,
    mini_batches=1,
    max_new_tokens=2,
    temperature=2.0,
    slots=200,
    solved=2.0,
    kl_every=0,
)


class Digits:
    """A chat format and its tokenizer in one: the text of an answer is its digits."""

    stop_ids, pad_id = frozenset({EOS}), PAD

    @property
    def tokenizer(self) -> "Digits":
        return self

    def decode(self, ids) -> str:
        return "".join(str(token - DIGIT) if DIGIT <= token < PLUS else "?" for token in ids if token != EOS)


def prompt(a: int, b: int) -> list[int]:
    return [DIGIT + a, PLUS, DIGIT + b, EQUALS]


def stage(lr: float, seed: int) -> Stage:
    optim = OptimConfig(lr=lr)
    return Stage(
        name="rlvr",
        policy="rlvr",
        optim=optim,
        sequence=12,
        batch=32,
        micro_batch=32,
        router_z_loss=1e-3,
        seed=seed,
    )


def learn_form(source: Path, out: Path, seed: int) -> None:
    rng = random.Random(seed)
    docs = []
    for _ in range(100):
        for a, b in SUMS:
            ids = [*prompt(a, b), DIGIT + rng.randrange(10), EOS]
            docs.append((ids, [False] * 4 + [True] * 2))
    rows = PackedRows([("form", in_memory(docs))], 12, pad_id=PAD)
    trainer = Trainer(source, stage(3e-3, seed), steps=80)
    loader = Loader([rows], global_batch=32, micro_batch=32, data_rank=0, data_size=1, seed=seed, steps=80)
    for step in loader.ahead():
        trainer.step(step.micro_batches, LanguageModelling())
    trainer.save(out, manifest=lambda *_: Manifest(family="flex_olmo", kind="dense"))


def learn_sums(source: Path, out: Path, seed: int, shuffled: bool) -> float:
    """Processor seconds."""
    rng = random.Random(seed)

    def shuffle(items) -> list[float]:
        scores = verify_many(items)
        rng.shuffle(scores)
        return scores

    tasks = [grpo.Task(prompt=prompt(a, b), verifier="exact", truth=str(a + b)) for a, b in SUMS]
    manifest = Manifest(family="flex_olmo", kind="dense")
    job = Job(
        name="sums", source=source, out=out, manifest=lambda *_, **__: manifest, logs=out.with_name("logs")
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    grpo.train(job, stage(2e-3, seed), CONFIG, tasks, Digits(), shuffle if shuffled else verify_many)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rewards(tmp_path: Path, seed: int, *, shuffled: bool) -> list[float]:
    start = save_hf(
        tmp_path / "random",
        experts=2,
        seed=seed,
        vocab_size=16,
        hidden_size=32,
        intermediate_size=48,
        num_key_value_heads=4,
    )
    run_distributed(learn_form, 1, start, tmp_path / "form", seed)
    (seconds,) = run_distributed(learn_sums, 1, tmp_path / "form", tmp_path / "out", seed, shuffled)
    found = [
        json.loads(line)["reward"] for line in (tmp_path / "logs/metrics.jsonl").read_text().splitlines()
    ]
    shown = " ".join(f"{found[n]:.2f}" for n in range(0, len(found), 20))
    print(
        f"seed {seed}{' shuffled' if shuffled else ''}: reward every 20 rounds {shown}, last "
        f"{found[-1]:.3f}; {seconds:.0f} CPU s"
    )
    return found


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_the_reward_rises_from_chance_to_nine_tenths(tmp_path, seed):
    found = rewards(tmp_path, seed, shuffled=False)
    assert found[0] <= 0.2
    assert sum(found[-5:]) / 5 >= 0.9


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_shuffled_rewards_teach_nothing(tmp_path, seed):
    found = rewards(tmp_path, seed, shuffled=True)
    assert max(sum(found[n : n + 5]) / 5 for n in range(len(found) - 4)) <= 0.2


def corrupted(source: Path) -> str:
    """An expert's weight changes between sampling and training."""
    trainer = Trainer(source, stage(1e-3, 0), steps=1)
    tasks = [grpo.Task(prompt=prompt(a, b), verifier="exact", truth="") for a, b in SUMS[:4]]
    prompts = grpo.Prompts(tasks, seed=0, solved=2.0)
    engine = grpo.build_engine(
        CONFIG.engine, trainer, Digits(), CONFIG.params, place=source.with_name("unused")
    )
    rollouts = grpo.Rollouts(trainer, engine, tasks, prompts, CONFIG, PAD)
    rollouts.begin(0)
    drawn, groups = rollouts.take()
    tasks = [tasks[n] for n in drawn]
    scores = [[float(n % 2) for n in range(8)] for _ in groups]
    rows = grpo.pack_rollouts(tasks, groups, scores, length=12, pad_id=PAD, longest=2)
    assert check_rollouts(trainer, engine, rows, CONFIG.objective, limit=1e-5) <= 1e-5
    with torch.no_grad():
        dict(trainer.model.named_parameters())[
            "decoder.layers.1.mlp.experts.local_experts.1.linear_fc2.weight"
        ][3, 5] += 0.5
    with pytest.raises(ValueError) as caught:
        check_rollouts(trainer, engine, rows, CONFIG.objective, limit=1e-5)
    return str(caught.value)


def test_a_weight_corrupted_after_sampling_is_named(tmp_path):
    start = save_hf(tmp_path / "random", experts=2, seed=0, vocab_size=16)
    (message,) = run_distributed(corrupted, 1, start)
    assert message.startswith("sampler and trainer differ by ")
    assert message.endswith(
        "changed since the answers were sampled: model.layers.1.mlp.experts.1.down_proj.weight"
    )


def hopeless(source: Path, out: Path) -> str:
    tasks = [grpo.Task(prompt=prompt(1, 2), verifier="exact", truth="never")]
    config = grpo.GRPOConfig(rounds=9, prompts=1, group=2, mini_batches=1, max_new_tokens=2, patience=3)
    job = Job(name="sums", source=source, out=out, manifest=lambda *_, **__: None)
    with pytest.raises(ValueError) as caught:
        grpo.train(job, stage(1e-3, 0), config, tasks, Digits(), verify_many)
    return str(caught.value)


def test_prompts_that_teach_nothing_stop_the_run(tmp_path):
    start = save_hf(tmp_path / "random", experts=2, seed=0, vocab_size=16)
    (message,) = run_distributed(hopeless, 1, start, tmp_path / "out")
    assert message.startswith(
        "sums: in 3 rounds no group had answers of different rewards (mean reward 0.00): nothing to learn "
        "from"
    )
    assert not (tmp_path / "out").exists()
