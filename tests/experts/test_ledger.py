"""The ledger through branch, merge, artifacts and upgrades: every stage that went into a folder stands in it
once."""

import shutil

import pytest
from folders import copy_with, save_hf, seal

from megatron_bar.experts.artifact import extract
from megatron_bar.experts.branch import branch
from megatron_bar.experts.btx import btx
from megatron_bar.experts.dense_merge import dense_merge
from megatron_bar.experts.merge import merge
from megatron_bar.experts.upgrade import Merged, remove, replace_expert
from megatron_bar.weights.manifest import Cost, Expert, Manifest, TrainingRecord, read_manifest


def cost(step: str) -> Cost:
    return Cost(
        step=step,
        stage="sft",
        tokens=1,
        loss_tokens=1,
        generated=0,
        flops=1.0,
        seconds=1.0,
        devices=1,
        device="CPU",
    )


def train(
    source,
    target,
    step: str,
    change=lambda name, tensor: tensor,
    *,
    policy: str = "rlvr",
    expert: str | None = None,
):
    copy_with(source, target, change)
    training = TrainingRecord(stage="sft", policy=policy)
    seal(target, read_manifest(source).after(training, sources=(), expert=expert, cost=cost(step)))
    return target


def steps(folder) -> list[tuple[str, str | None]]:
    return [(entry.step, entry.expert) for entry in read_manifest(folder).ledger]


def scaled(by: float):
    """As SFT may: the domain expert's FFN and the shared head, so that the merge's inputs do not share all
    tensors."""
    return lambda name, tensor: tensor * by if ".experts.1." in name or name == "lm_head.weight" else tensor


DENSE = [("base", None), ("anchor", None)]
"""Of no expert."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("ledger")
    start = save_hf(root / "init", seed=1)
    seal(start, Manifest(family="olmo2", kind="dense", experts=(Expert(index=0, name="base"),)))
    train(start, root / "base", "base", policy="dense_all")
    train(root / "base", root / "anchor", "anchor", lambda name, tensor: tensor * 1.5, policy="dense_all")
    branch(root / "anchor", root / "base", root / "branched", router_init="normal")
    for by, name in enumerate(("math", "code", "better"), 2):
        train(root / "branched", root / f"{name}-sft", f"{name}-sft", scaled(by), expert=name)
    merge(root / "branched", {name: root / f"{name}-sft" for name in ("math", "code")}, root / "merged")
    train(root / "merged", root / "final", "final", policy="route")
    return root


def test_a_final_folder_lists_every_stage_once(run):
    assert steps(run / "branched") == DENSE
    assert steps(run / "math-sft") == [*DENSE, ("math-sft", None)], "a merge says whose it was"
    assert steps(run / "final") == [*DENSE, ("math-sft", "math"), ("code-sft", "code"), ("final", None)]


def test_an_artifact_keeps_it_and_a_merge_calls_experts_by_its_own_names(run, tmp_path):
    extract(run / "math-sft", run / "branched", tmp_path / "artifact")
    merge(run / "branched", {"sums": tmp_path / "artifact"}, tmp_path / "merged")
    assert steps(tmp_path / "merged") == [*DENSE, ("math-sft", "sums")]


def test_an_upgrade_lists_what_went_into_it(run, tmp_path):
    """The router's rows that stay were trained, and what an expert that left had cost is no longer in it."""
    made = replace_expert(Merged.open(run / "final", []), "math", run / "better-sft", tmp_path / "made").path
    expected = [*DENSE, ("better-sft", "math"), ("code-sft", "code"), ("final", None)]
    assert steps(made) == expected
    train(made, tmp_path / "again", "again", policy="route")
    assert steps(tmp_path / "again") == [*expected, ("again", None)]
    fewer = remove(Merged.open(run / "final", []), "code", tmp_path / "fewer").path
    assert steps(fewer) == [*DENSE, ("math-sft", "math"), ("final", None)]


def test_an_expert_whose_folder_is_gone_brings_its_entries(run, tmp_path):
    for by, name in enumerate(("one", "two", "three"), 2):
        own = lambda n, t, by=by: t * by if ".experts.1." in n else t  # noqa: E731
        train(run / "branched", tmp_path / name, name, own, policy="midtrain", expert=name)
    merge(run / "branched", {name: tmp_path / name for name in ("one", "two")}, tmp_path / "merged")
    shutil.rmtree(tmp_path / "one")
    made = replace_expert(
        Merged.open(tmp_path / "merged", [run]), "two", tmp_path / "three", tmp_path / "made"
    ).path
    assert steps(made) == [*DENSE, ("one", "one"), ("three", "two")]


def test_merges_of_dense_models_list_those_of_all(run, tmp_path):
    """What several have in common belongs to none of them."""
    inputs = {name: run / name for name in ("anchor", "base")}
    dense_merge(inputs, tmp_path / "dense")
    btx(inputs, tmp_path / "btx", seed=0)
    for made in ("dense", "btx"):
        assert steps(tmp_path / made) == [("base", None), ("anchor", "anchor")]
