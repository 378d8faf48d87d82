"""The study of few active experts with every stage cut down to a step or two: it runs through, and the
summary is its files'."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import run_distributed

from megatron_bar.data.untagged import UntaggedSizes
from megatron_bar.recipes import sparse
from megatron_bar.recipes.recipe import ExpertSpec, Recipe, Training
from megatron_bar.recipes.study import RouterSpec
from megatron_bar.run.pipeline import Pipeline
from megatron_bar.weights.folder import Folder

EXAMPLE = Path(__file__).parents[1] / "examples/tiny/sparse_routing.py"
SIZES = UntaggedSizes(pretrain=300, sft_general=60, sft_domain=60, validation=6, test=8)


def short(run: Training) -> Training:
    return replace(run, stage=replace(run.stage, steps=2), rates=run.rates[:2])


def recipe(drift: str) -> Recipe:
    made = sparse.study(drift)

    def cut(part):
        if isinstance(part, ExpertSpec):
            return replace(part, runs=tuple(map(short, part.runs)))
        return replace(part, scales=part.scales[:2]) if isinstance(part, RouterSpec) else part

    return replace(
        made,
        world=SIZES,
        pretrain=short(made.pretrain),
        posttrain=short(made.posttrain),
        experts=tuple(map(cut, made.experts)),
        route=short(made.route),
        more=tuple(map(cut, made.more)),
    )


def run(drift: str, out: Path) -> None:
    pipeline = Pipeline(recipe(drift), out)
    pipeline.run(pipeline.select())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("sparse") / "published" / "seed2"
    run_distributed(run, 1, "published", out, timeout=900)
    return out


def example():
    spec = importlib.util.spec_from_file_location("sparse_routing", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_summary_says_what_the_files_say(finished):
    summary = example().Summary("published", [finished])
    text = "\n".join(summary.lines())
    assert text.count("\n| plain |") == text.count("\n| alone |") == 4
    for (_, _), model in sparse.FOUND.items():
        for k in range(1, 6):
            scores = json.loads((finished / f"evaluation/{model}@{k}.json").read_text())
            assert scores["active_experts"] == k
            mean = np.mean(
                [np.mean([item["score"] for item in items]) for items in scores["scores"].values()]
            )
            assert summary.numbers["scores"][f"{model}@{k}"][0] == pytest.approx(mean)
    assert json.loads((finished / "evaluation/final@5,2,2.json").read_text())["active_experts"] == [5, 2, 2]


@pytest.mark.slow
def test_folders_say_what_their_routers_were_trained_for(finished):
    wanted = {"final": 5, "plain_two-route": 2, "alone_two_dense-route": 2, "alone_sampled_dense-route": 5}
    assert {name: Folder.open(finished / name).config.experts_per_token for name in wanted} == wanted


@pytest.mark.slow
def test_every_learning_rate_was_chosen_at_what_it_says(finished):
    published = json.loads((finished / "choices/final.json").read_text())["losses"]
    other = json.loads((finished / "choices/plain_two-route.json").read_text())["losses"]
    assert {name.partition("@")[2] for losses in published.values() for name in losses} == {"5"}
    assert {name.partition("@")[2] for losses in other.values() for name in losses} == {"2", "5"}


def test_the_larger_drift_frees_everything_that_is_shared():
    policies = {
        drift: {run.stage.policy for spec in sparse.study(drift).experts for run in spec.runs}
        for drift in sparse.DRIFTS
    }
    assert policies == {"published": {"sft"}, "large": {"rlvr"}}
