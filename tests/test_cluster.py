"""examples/cluster/ by a Slurm of one node that runs jobs at once (fake_slurm/): what is submitted, runs, is
requeued."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from folders import add_tokenizer
from scripts import ROOT

from megatron_bar.data import world
from megatron_bar.data.tokenizer import HOLE, load_tokenizer
from megatron_bar.experts.branch import branch
from megatron_bar.recipes import load_recipe
from megatron_bar.run.pipeline import Pipeline
from megatron_bar.weights.init import random_folder

CLUSTER, FAKE = Path("examples/cluster"), ROOT / "tests/fake_slurm"


@dataclass
class Slurm:
    """Jobs of one test, and what became of them."""

    place: Path

    @property
    def out(self) -> Path:
        return self.place / "runs"

    def settings(self, **values: str) -> None:
        """env.sh with these lines changed."""
        common = {
            "OUT": self.out,
            "GPUS": "1",
            "PYTHON": f"({sys.executable})",
            "ENGINE_NODES": "0",
            "RLVR": "()",
        }
        lines = (ROOT / CLUSTER / "env.sh").read_text().splitlines()
        for name, value in (common | values).items():
            (place,) = [n for n, line in enumerate(lines) if line.startswith(f"{name}=")]
            lines[place] = f"{name}={value}"
        (self.place / "my.sh").write_text("\n".join(lines))

    def start(self, *command: object) -> subprocess.Popen:
        env = os.environ | {
            "PATH": f"{FAKE}:{os.environ['PATH']}",
            "FAKE_SLURM": str(self.place),
            "BAR_ENV": str(self.place / "my.sh"),
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: object) -> tuple[int, str, str]:
        process = self.start(*command)
        out, err = process.communicate(timeout=900)
        return process.returncode, out, err

    def read(self, name: str) -> str:
        return (self.place / name).read_text().strip()

    def logs(self) -> list[str]:
        """Of the attempts, oldest first."""
        return [path.read_text() for path in sorted((self.out / "slurm").glob("*.log"))]

    def warn(self) -> None:
        """As --signal=B:USR1 does."""
        os.kill(int(self.read("1.pid")), signal.SIGUSR1)


@pytest.fixture
def slurm(tmp_path) -> Slurm:
    return Slurm(tmp_path)


def wait_until(done, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not done():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def sbatch_files() -> dict[str, str]:
    return {path.stem: path.read_text() for path in (ROOT / CLUSTER).glob("*.sbatch")}


def shellcheck() -> str | None:
    beside = Path(sys.executable).with_name("shellcheck")
    return str(beside) if beside.is_file() else shutil.which("shellcheck")


@pytest.mark.skipif(shellcheck() is None, reason="no shellcheck")
def test_the_scripts_are_clean():
    files = [str(path) for path in sorted([*(ROOT / CLUSTER).iterdir(), *FAKE.iterdir()])]
    done = subprocess.run([shellcheck(), "-x", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("stage, model", [("midtrain", 2), ("sft", 1), ("rlvr", 4), ("route", 1)])
def test_the_nodes_of_a_stage_suit_the_recipe(stage, model, tmp_path):
    """And the layout is the one that the file names."""
    text = sbatch_files()[stage]
    nodes = int(re.search(r"--nodes=(\d+)", text)[1]) - (stage == "rlvr")
    pipeline = Pipeline(load_recipe("olmo2_7b"), tmp_path)
    steps = pipeline.select(stage=stage)
    pipeline.check(steps, 8 * nodes)
    assert {step.run.stage.parallel.tensor for step in steps} == {model}
    assert f"tensor {model} x data {8 * nodes // model}" in text


def test_every_job_can_be_warned_in_time():
    for name, text in sbatch_files().items():
        warned = int(re.search(r"#SBATCH --signal=B:USR1@(\d+)", text)[1])
        grace = int((re.search(r"^GRACE=(\d+)", text, re.MULTILINE) or re.search(r"GRACE:=(\d+)", JOB))[1])
        assert "#SBATCH --requeue" in text and grace < warned, name


JOB = (ROOT / CLUSTER / "job.sh").read_text()
EXPERTS = {
    "math": ("midtrain", "sft", "rlvr"),
    "code": ("midtrain", "sft", "rlvr"),
    "safety": ("sft",),
    "tool_use": ("sft",),
}


CHAT = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
ROWS = {
    "text": {"text": "one"},
    "fim": {"text": "one"},
    "chat": {"messages": CHAT},
    "task": {"messages": CHAT[:1], "verifier": "exact", "truth": "two"},
}


@pytest.fixture
def seven(slurm) -> Slurm:
    """The shape of the 7B models in place of their folders, and a row in place of each of their files."""
    recipe = load_recipe("olmo2_7b")
    trained = [training for expert in recipe.experts for training in expert.runs]
    for source in (source for training in (*trained, recipe.route) for source in training.data):
        file = slurm.place / "data" / source.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(ROWS[source.kind]) + "\n")
    for name in ("base", "anchor"):
        (slurm.place / name).mkdir()
        shape = load_recipe("olmo2_7b").shape
        (slurm.place / name / "config.json").write_text(json.dumps(shape.to_hf()))
        add_tokenizer(slurm.place / name, ("<|pad|>", "<|endoftext|>", *HOLE), special=5)
    return slurm


def test_a_run_is_submitted_in_the_order_of_its_needs(seven):
    given = {"BASE": seven.place / "base", "ANCHOR": seven.place / "anchor", "DATA": seven.place / "data"}
    seven.settings(**given, TORCHRUN="(true)", AFTER="(evaluate)")
    status, _, err = seven.run(CLUSTER / "submit.sh")
    assert status == 0, err
    jobs = [
        re.fullmatch(r"(\d+) (\S+) after (\S*): (.*)", line).groups()
        for line in seven.read("jobs").splitlines()
    ]
    numbers = {name: number for number, name, _, _ in jobs}
    needs = {
        name: [n for n, other in numbers.items() if other in after.split(":")] for _, name, after, _ in jobs
    }
    expected, ends = {"branch": []}, []
    for expert, stages in EXPERTS.items():
        chain = ["branch", *(f"{expert}-{stage}" for stage in stages)]
        expected |= {name: [before] for before, name in pairwise(chain)}
        ends.append(chain[-1])
    expected |= {"merge": ends, "route": ["merge"], "evaluate": ["route"]}
    assert needs == expected
    scripts = {name: script for _, name, _, script in jobs}
    assert scripts["math-rlvr"] == "examples/cluster/rlvr.sbatch math"
    assert scripts["merge"] == "examples/cluster/one.sbatch merge"
    assert {seven.read(f"{number}.status") for number in numbers.values()} == {"0"}
    assert "policy midtrain, 47,684 steps" in (seven.out / "slurm/plan.txt").read_text()


def test_what_needs_a_failed_job_never_starts_and_is_not_requeued(seven):
    given = {"BASE": seven.place / "base", "ANCHOR": seven.place / "anchor", "DATA": seven.place / "data"}
    seven.settings(**given, TORCHRUN="(false)")
    assert seven.run(CLUSTER / "submit.sh")[0] == 0
    statuses = [seven.read(f"{number}.status") for number in range(1, 2 + 8 + 2)]
    assert statuses == ["1"] + ["never"] * 10
    assert re.search(r"error: status 1; .*slurm/branch-1\.0\.log", seven.read("1.out"))


def test_what_is_not_there_is_told_before_anything_is_submitted(slurm):
    slurm.settings(BASE=slurm.place / "none")
    status, _, err = slurm.run(CLUSTER / "submit.sh")
    assert status == 1 and err.startswith(f"error: {slurm.place}/none: not found; see ")
    assert not (slurm.place / "jobs").exists()


PROGRAM = """
if [[ $1 == --help ]]; then echo "{options}"; exit; fi
echo "given $*"
if [[ $SLURM_RESTART_COUNT == 1 ]]; then exit {again}; fi
trap 'echo "{says}"; exit {status}' TERM
touch "$FAKE_SLURM/ready"
for n in {{1..3000}}; do sleep 0.1; done
"""


@pytest.mark.parametrize(
    "says, status, warned, requeued",
    [
        ("stopped: step 3 of x is saved; the same command goes on from it", 1, True, True),
        ("stopped: step 3 of x is saved; the same command goes on from it", 75, True, True),
        ("error: terminated", 1, True, True),
        ("Traceback (most recent call last):", 1, True, False),  # it could not save
        ("error: x was not stopped: by us", 1, True, False),
        ("stopped: step 3 of x is saved; the same command goes on from it", 0, True, False),  # it was through
        (
            "stopped: step 3 of x is saved; the same command goes on from it",
            1,
            False,
            False,
        ),  # a user's scancel
    ],
)
def test_a_job_is_requeued_when_it_was_warned_and_has_saved(says, status, warned, requeued, slurm):
    (slurm.place / "program").write_text(
        PROGRAM.format(says=says, status=status, again=0, options="--shutdown-timeout SECONDS")
    )
    slurm.settings(TORCHRUN=f'(bash "{slurm.place}/program")')
    process = slurm.start("sbatch", "--parsable", CLUSTER / "sft.sbatch", "math")
    wait_until(lambda: (slurm.place / "ready").exists(), process)
    if warned:
        slurm.warn()
    else:
        os.kill(int(slurm.read("1.0.pid")), signal.SIGTERM)
    process.communicate(timeout=60)
    assert slurm.read("1.status") == ("0" if requeued else str(status))
    assert len(slurm.logs()) == 1 + requeued
    assert ("the time was up: requeued" in slurm.read("1.out")) == requeued
    assert "--max-restarts=0 --" not in slurm.logs()[0] and "--shutdown-timeout=240 " in slurm.logs()[0]


def test_an_older_torchrun_is_not_given_what_it_does_not_know(slurm):
    (slurm.place / "program").write_text(
        PROGRAM.format(says="", status=0, again=0, options="--max-restarts N")
    )
    slurm.settings(TORCHRUN=f'(bash "{slurm.place}/program")')
    process = slurm.start("sbatch", "--parsable", CLUSTER / "sft.sbatch", "math")
    wait_until(lambda: (slurm.place / "ready").exists(), process)
    os.kill(int(slurm.read("1.0.pid")), signal.SIGTERM)
    process.communicate(timeout=60)
    assert "warning: torchrun has no --shutdown-timeout" in slurm.logs()[0]
    assert "--shutdown-timeout=" not in slurm.logs()[0] and "--max-restarts=0" in slurm.logs()[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A world, and a base and an anchor that have learnt nothing, of the smoke recipe's shape in fp32."""
    place, recipe = tmp_path_factory.mktemp("models"), load_recipe("smoke")
    tokens = world.build(place / "world", seed=0, sizes=recipe.world) / "tokenizer"
    tokenizer = load_tokenizer(tokens)
    shape = replace(
        recipe.shape, dtype="float32", eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id
    )
    for seed, name in enumerate(("base", "anchor")):
        random_folder(shape, place / name, tokenizer=tokens, seed=seed, embedding_std=0.02)
    return place


def smoke(models: Path, *changes: str) -> dict[str, object]:
    """The settings of a run of the smoke recipe."""
    given = {
        "RECIPE": "smoke",
        "BASE": models / "base",
        "ANCHOR": models / "anchor",
        "DATA": models / "world",
    }
    all_changes = " ".join(('base="$BASE" anchor="$ANCHOR" data="$DATA"', *changes))
    return given | {"TORCHRUN": f"({sys.executable} -m torch.distributed.run)", "CHANGES": f"({all_changes})"}


def test_a_warned_training_saves_is_requeued_and_goes_on(models, slurm):
    stage = "experts.code.midtrain"
    slurm.settings(
        **smoke(
            models, f"{stage}.steps=150", f"{stage}.batch=2", f"{stage}.sequence=32", f"{stage}.save_every=0"
        )
    )
    branch(models / "anchor", models / "base", slurm.out / "branched", router_init="normal", seed=0)
    process = slurm.start("sbatch", "--parsable", CLUSTER / "midtrain.sbatch", "code")
    metrics = slurm.out / "logs/code-midtrain/metrics.jsonl"
    wait_until(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 2, process)
    slurm.warn()
    process.communicate(timeout=600)
    first, second = slurm.logs()
    stopped = int(re.search(r"^stopped: step (\d+) of code-midtrain is saved", first, re.MULTILINE)[1])
    assert 2 <= stopped < 150
    assert slurm.read("1.status") == "0" and (slurm.out / "code-midtrain/manifest.json").is_file(), second
    assert "stopped:" not in second and metrics.read_text().count("\n") == 150


@pytest.mark.slow
def test_the_whole_run_goes_through_the_scripts_its_answers_from_an_engine_behind_srun(models, slurm):
    engine = "{lag=1,importance_cap=2,engine.name=transformers,engine.python=examples/cluster/engine.sh}"
    run = {
        "CHAINS": '("code midtrain sft rlvr" "math sft")',
        "AFTER": "(evaluate lens report)",
        "ENGINE_PYTHON": sys.executable,
    }
    handover = "experts.code.rlvr.rl.engine.handover=$OUT/handover"
    slurm.settings(**smoke(models), **run, RLVR=f"(experts.code.rlvr.rl.{engine} {handover})")
    status, _, err = slurm.run(CLUSTER / "submit.sh")
    assert status == 0, err
    found = {
        line.split()[1]: slurm.read(f"{line.split()[0]}.status") for line in slurm.read("jobs").splitlines()
    }
    experts = ["code-midtrain", "code-sft", "code-rlvr", "math-sft"]
    assert found == dict.fromkeys(
        ["branch", *experts, "merge", "route", "evaluate", "lens", "report"], "0"
    ), slurm.logs()[-1]
    assert list((slurm.out / "handover").iterdir()) == []
    assert (slurm.out / "report.md").is_file() and (slurm.out / "final/manifest.json").is_file()
    assert {path.name for path in slurm.place.glob("4.*.pid")} == {
        "4.0.pid",
        "4.1.pid",
        "4.2.pid",
    }  # the trainer's step; the engine's Python, asked whether it can; the engine's


@pytest.mark.slow
def test_the_smoke_job_does_everything_on_two_ranks_in_bfloat16(slurm):
    slurm.settings(GPUS="2", TORCHRUN=f"({sys.executable} -m torch.distributed.run)")
    stages = ("pretrain", "posttrain", "experts.*.*", "route")
    status, _, _ = slurm.run(
        "sbatch", CLUSTER / "smoke.sbatch", *(f"{stage}.parallel.tensor=2" for stage in stages)
    )
    out = slurm.out / "smoke"
    assert (status, slurm.read("1.status")) == (0, "0"), slurm.logs()[-1]
    assert json.loads((out / "final/config.json").read_text())["dtype"] == "bfloat16"
    rounds = [json.loads(line) for line in (out / "logs/code-rlvr/metrics.jsonl").read_text().splitlines()]
    assert len(rounds) == 2 and all(values["kept"] > 0 and values["grad_norm"] > 0 for values in rounds)
    assert (out / "report.md").read_text() in slurm.logs()[0]
