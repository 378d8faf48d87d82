"""What `make demo` leaves, on the tiny recipe cut down: killed on the way, started again, read by transformers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from demo import SMALL
from folders import load_tensors
from scripts import ROOT

from megatron_bar.weights.manifest import read_manifest


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "examples/pretrain_bar.py"), "tiny", "--out", str(out), *more, "--set", *SMALL]


def run(out: Path, *more: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command(out, *more), capture_output=True, text=True, env=env, timeout=1200, check=False)


ENDS = [("math", "midtrain", "sft", "rlvr"), ("code", "midtrain", "sft", "rlvr"), ("tool_use", "sft"), ("safety", "sft")]


@pytest.fixture(scope="module")
def finished(demo, tmp_path_factory):
    """A run that was killed while it trained and then started again; and what it printed then."""
    checkout, printed = demo
    out = tmp_path_factory.mktemp("run") / "tiny"
    shutil.copytree(checkout / "runs/tiny", out)
    assert "branched: there already" in printed
    return out, printed


def test_it_ends_with_the_report(finished):
    out, printed = finished
    report = (out / "report.md").read_text()
    assert report.strip() in printed
    for model in ("anchor", "math-rlvr", "code-rlvr", "tool_use-sft", "safety-sft", "merged, router untrained", "BAR"):
        assert f"| {model} |" in report
    assert not [path for path in out.rglob(".*") if "partial" in path.name or "checkpoints" in path.name]


def test_transformers_reads_the_result_and_computes_the_same(finished):
    import transformers

    from megatron_bar.weights.folder import Folder

    out, _ = finished
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "final")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out / "final", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    chat = [{"role": "user", "content": "What is 3 * 4 + 5?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert torch.isfinite(model(**ids).logits).all()
    assert model.config.num_experts == model.config.num_experts_per_tok == 5
    assert Folder.open(out / "final").config.vocab_size == model.config.vocab_size


def test_the_manifest_tells_the_lineage(finished):
    out, _ = finished
    manifest = read_manifest(out / "final")
    assert manifest.kind == "routed"
    assert [(e.name, e.stages) for e in manifest.experts[1:]] == [
        ("math", ("midtrain", "sft", "rlvr")),
        ("code", ("midtrain", "sft", "rlvr")),
        ("tool_use", ("sft",)),
        ("safety", ("sft",)),
    ]
    assert {e.anchor_hash for e in manifest.experts} == {read_manifest(out / "branched").anchor_hash}


def test_the_ledger_has_every_stage_once(finished):
    out, _ = finished
    ledger = read_manifest(out / "final").ledger
    ends = [(name, stage) for name, *stages in ENDS for stage in stages]
    assert [(cost.step, cost.expert) for cost in ledger[2:-1]] == [(f"{name}-{stage}", name) for name, stage in ends]
    assert [cost.step for cost in (*ledger[:2], ledger[-1])] == ["base", "anchor", "final"]
    for cost in ledger:
        assert cost.flops > 0 and cost.seconds > 0 and cost.tokens >= cost.loss_tokens
        assert (cost.generated > 0) == (cost.stage == "rlvr")


def test_only_the_routers_moved_in_the_last_stage(finished):
    out, _ = finished
    before, after = load_tensors(out / "merged"), load_tensors(out / "final")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith("mlp.gate.weight")}


def test_run_again_it_has_nothing_to_do(finished):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    left = [out / ".math-sft.checkpoints", out / ".branched.partial"]  # as by a kill behind the renaming
    (left[0] / "step-00000001").mkdir(parents=True)
    left[1].mkdir()
    done = run(out)
    assert done.returncode == 0 and not any(path.exists() for path in left)
    assert done.stdout.count("there already") == 24
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


def test_what_was_made_from_other_folders_is_not_taken_for_whole(finished, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out, copy_function=os.link)
    manifest = out / "math-rlvr/manifest.json"
    changed = manifest.read_text().replace('"tiny"', '"another"')
    manifest.unlink()
    manifest.write_text(changed)
    done = run(out)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    refusal = "merged was made from other folders than there are now (math-rlvr differs); to make it again remove merged, final,"
    assert refusal in (done.stderr)
    noted = run(finished[0], "--stage", "route", "--set", "route.optim.lr=0.5")
    assert noted.returncode == 0
    assert "note: final stays as it was made, with other choices: stage.optim.lr: 0.01 -> 0.5" in noted.stdout


def test_logs_hold_each_step_once(finished):
    for log in (finished[0] / "logs").rglob("metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
        assert steps == list(range(1, len(steps) + 1)), log


def test_data_is_looked_at_before_anything_is_trained(finished, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out, copy_function=os.link)
    for name in ("safety-sft", "math-sft", "math-rlvr"):
        shutil.rmtree(out / name)
    (out / "world/sft_safety.jsonl").unlink()
    done = run(out, "--stage", "sft")
    assert done.returncode == 1 and "sft_safety.jsonl: not found" in done.stderr
    assert not (out / "math-sft").exists()


@pytest.mark.parametrize(
    "more, message",
    [
        (["--expert", "cooking"], "--expert cooking: expected one of code, math, safety, tool_use"),
        (["--expert", "safety", "--stage", "midtrain"], "expert safety has no stage midtrain"),
        (["--stage", "route"], "merged, which is not there"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(more, message, tmp_path):
    done = run(tmp_path / "out", *more)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
