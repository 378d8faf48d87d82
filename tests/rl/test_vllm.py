"""vLLM on the CPU against this project: answers, log-probabilities, learning, refusals, serving."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import run_distributed
from engines import VLLM, folder_for, vllm
from folders import LLAMA3
from scripts import ROOT
from test_engine import learn, metrics
from test_grpo_training import CONFIG, Ids, stage

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import read_tests
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.recipes import load_recipe
from megatron_bar.rl.apart import Engines, build_engine, check_devices
from megatron_bar.rl.engine import EngineConfig, SamplingParams
from megatron_bar.training.trainer import Trainer

pytestmark = pytest.mark.vllm
DEMO = ROOT / "runs/tiny"
PARAMS = SamplingParams(max_new_tokens=24, temperature=1.0, stop=(), slots=8)


def drawn(source: Path, place: Path, config: EngineConfig, layout: ParallelConfig) -> tuple[bool, float, int]:
    """Whether greedy answers agree, and the largest difference of drawn answers' log-probabilities, over how
    many."""
    trainer = Trainer(source, stage(layout), steps=1)
    engines = [build_engine(c, trainer, Ids(), PARAMS, place=place) for c in (EngineConfig(), config)]
    prompts = [[2 + n % 17, 3 + n % 11, 4] for n in range(24)]
    greedy = replace(PARAMS, temperature=0.0)
    for engine in engines:
        engine.sync()
    own, apart = ([c.ids for c in engine.start(prompts, greedy, seed=0)()] for engine in engines)
    answers = engines[1].start(prompts, PARAMS, seed=5)()
    # The own sampler scores what the other one drew: one token at a time behind the same beginning.
    worst = 0.0
    for prompt, answer in zip(prompts[:6], answers, strict=False):
        worst = max(worst, _apart(trainer, prompt, answer))
    engines[1].close()
    return own == apart, worst, sum(len(answer.ids) for answer in answers)


def _apart(trainer: Trainer, prompt: list[int], answer) -> float:
    import torch

    ids = torch.tensor([prompt + answer.ids])
    with torch.no_grad():
        logits = trainer.model(ids, torch.arange(ids.shape[1])[None])
    logprobs = logits.float().log_softmax(-1)[0, len(prompt) - 1 : -1]
    ours = logprobs.gather(-1, torch.tensor(answer.ids)[:, None]).squeeze(-1)
    return float((ours - torch.tensor(answer.logprobs)).abs().max())


@pytest.mark.parametrize(
    "experts, active, more",
    [
        (2, 2, {}),
        (5, 5, {}),
        (5, 2, {}),
        (2, 2, {"family": "qwen3", "head_dim": 64}),
        (2, 2, {"family": "llama", "rope_parameters": LLAMA3}),
        (2, 2, {"family": "qwen2"}),
    ],
)
def test_answers_and_probabilities_are_the_trainers(experts, active, more, tmp_path, record_property):
    wide = {"experts": experts, "num_experts_per_tok": active} | more
    source = folder_for("vllm", tmp_path, **wide)
    config = EngineConfig(**vllm(), seeded=True)
    ((same, worst, tokens),) = run_distributed(
        drawn, 1, source, tmp_path / "links", config, ParallelConfig(), timeout=300
    )
    assert same and worst <= 1e-4
    record_property(
        "figure",
        f"vLLM, {more.get('family', 'olmo2')}, {active} of {experts} experts: greedy equal, drawn within {worst:.1e} of {tokens} tokens",
    )


def demo_answers(place: Path, config: EngineConfig) -> dict[str, list[str]]:
    """The demo's final model's greedy answers to its test sets, tools included."""
    recipe = load_recipe("tiny")
    source = DEMO / "final"
    chats = ChatFormat(load_tokenizer(source), recipe.chat_template)
    trainer = Trainer(source, replace(recipe.route.stage, parallel=ParallelConfig()), steps=1)
    tests = recipe.evaluation.tests
    longest = max(test.max_new_tokens for test in tests)
    params = SamplingParams(max_new_tokens=longest, temperature=0.0, stop=(), slots=64)
    engines = Engines(trainer, chats, config, params, place=place)
    engines.sync()
    found = {}
    for test in tests:
        rows = read_tests((test,), DEMO / "world")[test.name]
        prompts = [chats.prompt(row["messages"], tools=row.get("tools"), where=where) for where, row in rows]
        done = engines.start(prompts, replace(params, max_new_tokens=test.max_new_tokens), seed=0)()
        found[test.name] = [chats.tokenizer.decode(completion.ids) for completion in done]
    engines.close()
    return found


def test_the_demos_answers_are_vllms(tmp_path, record_property):
    if not (DEMO / "evaluation/final.json").exists():
        pytest.skip(f"{DEMO} is not there: make demo")
    (found,) = run_distributed(demo_answers, 1, tmp_path / "links", EngineConfig(**vllm()), timeout=600)
    scores = json.loads((DEMO / "evaluation/final.json").read_text())["scores"]
    assert found.keys() == scores.keys() and len(found) == 7
    equal = {
        name: sum(a == item["answer"] for a, item in zip(found[name], items, strict=True))
        for name, items in scores.items()
    }
    total = sum(map(len, scores.values()))
    record_property(
        "figure", f"vLLM on the demo's seven test sets: {sum(equal.values())} of {total} answers equal"
    )
    assert equal == {name: len(items) for name, items in scores.items()}


@pytest.mark.parametrize("lag, processes", [(0, 1), (1, 1), (0, 2)])
def test_the_reward_rises(lag, processes, tmp_path, record_property):
    source = folder_for("vllm", tmp_path, seed=4)  # whose reward rises in 10 rounds whatever is drawn
    more = {"lag": 1, "importance_cap": 2.0} if lag else {}
    engine = EngineConfig(**vllm(), seeded=True)
    config = replace(CONFIG, rounds=10, max_drift=1e-3, engine=engine, **more)
    left = run_distributed(
        learn, processes, source, tmp_path / "out", config, ParallelConfig(), 0, False, timeout=600
    )
    assert left == [0] * processes
    found = metrics(tmp_path / "out")
    # One round behind, at this rate of learning, it swings on its way.
    assert found[0]["reward"] <= 0.3 and found[-1]["reward"] >= (0.4 if lag else 0.8)
    drift = max(row.get("drift", 0.0) for row in found)
    record_property(
        "figure",
        f"RLVR through vLLM, lag {lag}, {processes} processes: reward {found[0]['reward']:.2f} to "
        f"{found[-1]['reward']:.2f} in {len(found)} rounds, drift at most {drift:.1e}",
    )


def test_the_demos_rlvr_goes_through_vllm(tmp_path, record_property):
    if not (DEMO / "math-sft").exists():
        pytest.skip(f"{DEMO} is not there: make demo")
    out = tmp_path / "tiny"
    kept = ("math-rlvr", "merged", "final", "logs", "evaluation")
    shutil.copytree(DEMO, out, ignore=lambda _, names: [name for name in names if name.startswith(kept)])
    engine = "experts.math.rlvr.rl.engine.{}={}"
    changes = [engine.format(name, value) for name, value in vllm().items()]
    changes += ["experts.math.rlvr.rl.rounds=10", "experts.math.rlvr.rl.max_drift=1e-3"]
    command = [sys.executable, str(ROOT / "examples/pretrain_bar.py"), "tiny", "--out", str(out)]
    command += ["--expert", "math", "--stage", "rlvr", "--set", *changes]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    ours = [row["reward"] for row in rounds_of(DEMO)[:10]]
    found = rounds_of(out)
    drift = max(row.get("drift", 0.0) for row in found)
    assert len(found) == 10 and drift <= 1e-3
    means = [sum(rewards) / 10 for rewards in (ours, [row["reward"] for row in found])]
    assert abs(means[0] - means[1]) <= 0.15
    record_property(
        "figure",
        f"demo's math-rlvr through vLLM: mean reward of 10 rounds {means[1]:.2f}, "
        f"by the own sampler {means[0]:.2f}; drift at most {drift:.1e}",
    )


def rounds_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "logs/math-rlvr/metrics.jsonl").read_text().splitlines()]


def refused(source: Path, place: Path, changes: dict, environment: dict) -> str:
    trainer = Trainer(source, stage(ParallelConfig()), steps=1)
    os.environ |= environment
    try:
        with pytest.raises(BarError) as caught:
            build_engine(EngineConfig(**vllm() | changes), trainer, Ids(), PARAMS, place=place)
    finally:
        for name in environment:
            del os.environ[name]
    assert "\n" not in str(caught.value) and not place.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    "changes, environment",
    [({"tensor": 3}, {}), ({}, {"VLLM_CPU_KVCACHE_SPACE": "4000"})],  # of 4 heads; no room for the cache
)
def test_what_cannot_run_is_said_before_the_first_step(changes, environment, tmp_path):
    source = folder_for("vllm", tmp_path)
    (line,) = run_distributed(refused, 1, source, tmp_path / "links", changes, environment, timeout=300)
    assert line.startswith("engine vllm: open: "), line


def test_gpus_that_train_too_are_refused():
    config = EngineConfig(name="vllm", devices=("3",), python=str(VLLM))
    with pytest.raises(BarError, match=r"memory 0\.9 of GPU 3, which trains too: expected other GPUs"):
        check_devices(config, ("0", "1", "2", "3"))
    check_devices(config, ("0", "1"))
    check_devices(replace(config, memory=0.5), ("3",))
