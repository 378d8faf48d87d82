"""The study as a user runs it, cut down: two processes share its steps, a kill loses nothing, the report is
the files'."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_study

from megatron_bar.config import from_json, to_json
from megatron_bar.errors import BarError
from megatron_bar.recipes import load_recipe, tiny_study
from megatron_bar.recipes.recipe import Evaluation, Recipe
from megatron_bar.recipes.study import Claim, MergeSpec, ScanSpec, Study, folder_and_active
from megatron_bar.report.report import Report
from megatron_bar.run.collect import collect
from megatron_bar.run.pipeline import Pipeline
from megatron_bar.weights.hf_config import read_config

ROOT = Path(__file__).parents[2]
RECIPE = f"{ROOT / 'tests/run/small_study.py'}:recipe"


def start(out: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        str(ROOT / "examples/reproduce.py"),
        "--recipe",
        RECIPE,
        "--seeds",
        "1",
        "2",
        "--out",
        str(out / "runs"),
    ]
    command += ["--results", str(out / "results")]
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests/run")))
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that was killed on the way, with all its processes, and started again."""
    out = tmp_path_factory.mktemp("study")
    first = start(out)
    deadline = time.monotonic() + 600
    while not (out / "runs/seed1/retrain-sft").exists():
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    before, _ = first.communicate()
    second = start(out)
    after, _ = second.communicate(timeout=900)
    assert second.returncode == 0, after[-3000:]
    return out, before, after


def steps_of(printed: str) -> list[str]:
    """The steps that were begun, with their seed."""
    return re.findall(r"^(seed \d \[\d+/\d+\] [^\n]*?)(?: from .*)?$(?<!already)", printed, re.MULTILINE)


def test_every_step_was_made_once(finished):
    out, _, after = finished
    begun = [line for line in steps_of(after) if not line.endswith("there already")]
    assert len(begun) == len(set(begun)) > 40
    recorded = json.loads((out / "runs/seed2/steps.json").read_text())
    assert set(recorded) == set(Pipeline(small_study.recipe(), out).steps)


def test_the_kill_lost_no_finished_step(finished):
    _, before, after = finished
    made = set(re.findall(r"seed 1 \[\d+/\d+\] ([\w.-]+) from", before))
    again = set(re.findall(r"seed 1 \[\d+/\d+\] ([\w.-]+) from", after))
    assert len(made & again) <= 2  # what the two processes were at


def test_the_report_says_what_the_files_say(finished):
    out, _, _ = finished
    report = from_json(Report, json.loads((out / "results/report.json").read_text()))
    runs = [out / "runs/seed1", out / "runs/seed2"]
    row = next(row for row in report.rows if row.model == "BAR")
    means = []
    for run in runs:
        scores = json.loads((run / "evaluation/final.json").read_text())["scores"]
        assert "## Results" in (run / "final/README.md").read_text()
        means.append({skill: np.mean([item["score"] for item in items]) for skill, items in scores.items()})
    for skill, score in row.scores.items():
        assert score.mean == pytest.approx(np.mean([mean[skill] for mean in means]))
        assert score.seeds == 2 and score.low <= score.mean <= score.high
    assert row.overall.mean == pytest.approx(np.mean([np.mean(list(mean.values())) for mean in means]))
    assert report.provenance.seeds == (1, 2)
    assert {row.model for row in report.rows} >= {"anchor", "BAR", "retrain", "BTX", "dense", "frozen"}
    assert [claim.verdict for claim in report.claims[:3]] == ["holds", "does not hold", "not testable here"]
    own = next(row for row in report.rows if row.model == "math-rlvr")
    assert set(own.scores) == {"math", "code"} and own.overall is None
    assert report.claims[3].verdict == "holds"
    assert [claim.source for claim in report.claims[2:4]] == ["arXiv 2604.18473", "this test"]
    assert len(report.claims) == 6 and {curves.title for curves in report.curves} >= {
        "Loss",
        "Reward of RLVR",
    }
    sweep, small = report.sweeps
    assert sweep.rows["overall"][-1] == row.overall
    chosen = read_config(runs[0] / "few").active
    assert sum(chosen) == 2 * len(chosen) and read_config(runs[0] / "final").active == (5,) * len(chosen)
    both = [(mean["math"] + mean["code"]) / 2 for mean in means]
    assert set(small.rows) == {"overall", "math", "code"}
    assert small.rows["overall"][-1].mean == pytest.approx(np.mean(both))
    kept = (out / "runs/seed1/rank2-experts").glob("*/*.safetensors")
    assert small.xs == (f"2 ({sum(file.stat().st_size for file in kept) / 1e6:.3g} MB)", "all")
    (upgrade,) = report.comparisons
    assert set(upgrade.kl) == set(upgrade.gains) - {"code"} and all(kl.mean > 0 for kl in upgrade.kl.values())


def test_each_cost_is_there_once(finished):
    out, _, _ = finished
    report = from_json(Report, json.loads((out / "results/report.json").read_text()))
    stages = [(row.domain, row.stage) for row in report.costs]
    assert len(stages) == len(set(stages))
    assert {("math", "midtrain"), ("math", "sft"), ("math", "rlvr"), ("safety", "sft")} <= set(stages)
    assert all(row.flops > 0 and row.seconds > 0 for row in report.costs)


def test_the_best_rate_was_chosen(finished):
    out, _, _ = finished
    found = json.loads((out / "runs/seed1/choices/retrain-sft.json").read_text())
    totals = {name: sum(losses.values()) for name, losses in found["losses"].items()}
    assert len(totals) == 2 and found["chosen"] == min(totals, key=totals.get)
    read = [
        (out / "runs/seed1" / name / "manifest.json").read_bytes()
        for name in ("retrain-sft", found["chosen"])
    ]
    assert read[0] == read[1]


def _other_items(results: dict) -> None:
    results["tests"]["math"]["hash"] = "0" * 64


def _fewer_tests(results: dict) -> None:
    del results["tests"]["math"], results["scores"]["math"]


@pytest.mark.parametrize(
    "change, message",
    [
        (_other_items, "test math expected the same items"),
        (_fewer_tests, r"final@1\.json: expected results of math, .*; to measure it again remove the file"),
    ],
)
def test_runs_with_other_test_sets_are_refused(finished, change, message):
    out, _, _ = finished
    recipe = small_study.recipe()
    file = out / "runs/seed1/evaluation/final@1.json"
    whole = file.read_text()
    try:
        changed = json.loads(whole)
        change(changed)
        file.write_text(json.dumps(changed))
        claim = Claim(text="fewer", before="final@1", after="final", expect="higher")
        with pytest.raises(BarError, match=message):
            collect(replace(recipe, study=replace(recipe.study, claims=(claim,))), [out / "runs/seed1"])
    finally:
        file.write_text(whole)


@pytest.mark.parametrize("start", ["anchor", ""])
@pytest.mark.parametrize("left, verdict", [(0.75, "holds"), (0.5, "does not hold")])
def test_a_share_is_kept(finished, left, verdict, start):
    """Nothing, then all, then a part of it, against the 70 % that are asked for: of the gain, or of the
    score."""
    out, _, _ = finished
    recipe = small_study.recipe()
    folder = out / "runs/seed1/evaluation"
    whole = {name: (folder / f"{name}.json").read_text() for name in ("anchor", "final@1", "final")}
    try:
        for (name, text), score in zip(whole.items(), (0.0, 1.0, left), strict=True):
            results = json.loads(text)
            for item in results["scores"]["math"]:
                item["score"] = score
            (folder / f"{name}.json").write_text(json.dumps(results))
        kept = {"start": start, "before": "final@1", "after": "final", "skills": ("math",)}
        claim = Claim(text="kept", expect="not lower", keeps=0.7, **kept)
        report = collect(replace(recipe, study=replace(recipe.study, claims=(claim,))), [out / "runs/seed1"])
    finally:
        for name, text in whole.items():
            (folder / f"{name}.json").write_text(text)
    assert report.claims[0].verdict == verdict
    of = "the gain from anchor to final@1" if start else "final@1"
    assert report.claims[0].evidence.endswith(f"than 70 % of {of}")


def test_the_study_is_a_recipe_that_survives_json():
    recipe = load_recipe("tiny_study")
    assert from_json(Recipe, to_json(recipe)) == recipe
    steps = Pipeline(recipe, Path("/nowhere")).steps
    for model in recipe.study.models:
        assert folder_and_active(model)[0] in steps
    for claim in recipe.study.claims:
        assert claim.untestable or {claim.before, claim.after} <= set(recipe.study.models)


def test_every_baseline_sees_the_rows_of_its_domains_once():
    """As many passes over the same files as the modular experts make, whatever is trained on them."""
    recipe = load_recipe("tiny_study")
    for part in recipe.more:
        for run in getattr(part, "runs", ()):
            if run.stage.name == "sft" and not part.name.endswith(("_only", "_old")):
                assert run.stage.epochs == 1 and all(source.share == 1 for source in run.data)
                times = (
                    4 if part.start == "base" and part.name.startswith("retrain") else 1
                )  # with the anchor's three passes
                assert [source.domain for source in run.data].count("general") == times
                assert run.rates == (3e-4, 1e-3, 3e-3)


CHATS = tiny_study.validation("math")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MergeSpec(name="m", inputs={"a": "x"}, how="btx"), "at least 2 inputs"),
        (
            lambda: MergeSpec(name="m", inputs={"a": "x", "b": "y"}, how="dense", rank=4),
            "rank and routers expected of bar alone",
        ),
        (lambda: MergeSpec(name="m", inputs={"a": "x"}, how="bar", rank=0), "a rank from 1, got rank 0"),
        (
            lambda: _pipeline(more=(ScanSpec(name="s", source="final", validation=CHATS, mean=50),)),
            "scan s: mean expected up to the 5 experts of final, got 50",
        ),
        (
            lambda: _pipeline(more=(ScanSpec(name="s", source="anchor", validation=CHATS, mean=2),)),
            "scan s: mean expected up to the 0 experts of anchor, got 2",
        ),
        (
            lambda: MergeSpec(name="m", inputs={"a": "x", "b": "y"}, how="dense", shared_from="a"),
            "shared_from expected one of btx",
        ),
        (lambda: Claim(text="c", before="a"), "two models, or why it is not testable"),
        (lambda: folder_and_active("final@many"), "NAME@K"),
        (
            lambda: _pipeline(more=(MergeSpec(name="m", inputs={"a": "nowhere", "b": "base"}, how="btx"),)),
            "no step before it makes",
        ),
        (lambda: _pipeline(study=Study(baselines={"x": "nowhere"})), "no step before it makes"),
        (
            lambda: _pipeline(study=Study(lens={"cooking": 1})),
            "lens: expected skills that are tested .*got cooking",
        ),
        (
            lambda: _pipeline(evaluation=_only(anchor=("math",))),
            "evaluation of anchor: expected by all tests",
        ),
        (
            lambda: _pipeline(study=Study(baselines={"x": "final@9"})),
            "evaluation of final@9: expected at most the 5 experts of final, at least one, got 9",
        ),
        (lambda: _pipeline(study=Study(baselines={"x": "final@5,0"})), "the 5 experts of final.*got 5,0"),
        (lambda: _pipeline(study=Study(baselines={"x": "anchor@2"})), "the 0 experts of anchor.*got 2"),
        (lambda: _pipeline(study=Study(retrained="nowhere")), "study: retrained.*no step before it makes"),
        (
            lambda: _pipeline(
                more=(MergeSpec(name="m", inputs={"a": "math-rlvr"}, how="bar", routers="final"),)
            ),
            "merge m: expected routers for its 2 experts, final has 5",
        ),
        (lambda: _pipeline(evaluation=_only(merged=("cooking",))), "evaluation of merged: .*got cooking"),
        (lambda: _pipeline(evaluation=_only(nothing=("math",))), "expected only of anchor, .*got nothing"),
        (
            lambda: _pipeline(
                evaluation=_only(merged=("math",)),
                study=Study(claims=(Claim(text="c", before="merged", after="final", skills=("code",)),)),
            ),
            "claim 'c': merged is not measured on code",
        ),
    ],
)
def test_what_cannot_be_is_told(make, message):
    with pytest.raises(BarError, match=message):
        make()


def _only(**of_models: tuple[str, ...]) -> Evaluation:
    return replace(load_recipe("tiny").evaluation, only=of_models)


def _pipeline(**changes) -> Pipeline:
    return Pipeline(replace(load_recipe("tiny"), **changes), Path("/nowhere"))
