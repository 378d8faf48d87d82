"""What is not finite moves nothing and enters no log; N in a row stop the run; spikes are told. On real
models and batches."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed import run_distributed
from folders import save_hf
from tiny_fit import STAGE, job, logs, make_source, rows

from megatron_bar.data.loader import Loader
from megatron_bar.errors import BarError
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.training.fit import fit
from megatron_bar.training.guard import Guard
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.pieces import snapshot
from megatron_bar.training.trainer import Trainer

LAYOUTS = {
    "dp2": ParallelConfig(),
    "tp2": ParallelConfig(tensor=2),
    "ep2": ParallelConfig(expert=2),
    "pp2": ParallelConfig(pipeline=2),
}


def spoiled_loss(trainer: Trainer):
    """The forward pass of one rank's first block overflows."""
    if dist.get_rank() == 0:
        return trainer.model.decoder.layers[0].register_forward_hook(
            lambda _, __, out: (out[0] * math.inf, *out[1:])
        )
    return None


def spoiled_gradient(trainer: Trainer):
    """The loss is finite, one gradient of one rank is not."""
    if dist.get_rank() == 0:
        param = next(param for param in trainer.model.parameters() if param.requires_grad)
        return param.register_hook(lambda gradient: gradient * math.nan)
    return None


def skip_one(source: Path, layout: ParallelConfig, spoil) -> list[dict]:
    """Three steps, one that is spoiled, and one more; what the spoiled one reported and what moved in it."""
    trainer = Trainer(source, replace(STAGE, parallel=layout, save_every=0), steps=6)
    ranks = {"data_rank": trainer.data_rank, "data_size": trainer.data_size}
    loader = Loader([rows()], global_batch=2, micro_batch=1, seed=0, steps=6, **ranks)

    def everything() -> dict[str, torch.Tensor]:
        params = {name: param.detach().clone() for name, param in trainer.model.named_parameters()}
        return params | snapshot(trainer)[1]

    def step() -> dict[str, float]:
        return trainer.step(loader.step(trainer.done).micro_batches, LanguageModelling())

    found = [step() for _ in range(3)]
    before = everything()
    hook = spoil(trainer)
    found.append(step())
    if hook is not None:
        hook.remove()
    after = everything()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert (trainer.done, trainer.updates) == (4, 3)
    found.append(step())
    assert (trainer.done, trainer.updates) == (5, 4)
    moved = torch.tensor(
        float(any(not torch.equal(value, everything()[name]) for name, value in after.items()))
    )
    dist.all_reduce(moved)
    assert moved > 0
    for part in trainer.optimizer_parts:
        assert all(state["step"] == 4 for state in part.optimizer.state.values())
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return {
        "float32": save_hf(root / "two", experts=2),
        "bfloat16": save_hf(root / "bf16", experts=2, dtype="bfloat16"),
        "tiny": make_source(root / "tiny"),
    }


@pytest.mark.parametrize("spoil", [spoiled_loss, spoiled_gradient])
@pytest.mark.parametrize("layout, dtype", [*((name, "float32") for name in LAYOUTS), ("dp2", "bfloat16")])
def test_what_is_not_finite_moves_nothing(layout, dtype, spoil, sources, record_property):
    found, other = run_distributed(skip_one, 2, sources[dtype], LAYOUTS[layout], spoil)
    assert str(found) == str(other)  # NaN differs from itself
    assert ["skipped" in values for values in found] == [False, False, False, True, False]
    assert not all(map(math.isfinite, found[3].values()))
    assert all(
        math.isfinite(value)
        for number, values in enumerate(found)
        if number != 3
        for value in values.values()
    )
    if spoil is spoiled_gradient:
        assert math.isfinite(found[3]["loss"])
    record_property(
        "figure",
        f"non-finite {spoil.__name__[8:]} ({layout}, {dtype}): 1 skip, nothing moved, the next step proceeds",
    )


def explode(source: Path, folder: Path) -> str:
    """A learning rate that throws the weights out of range in its first step."""
    folder.mkdir()
    stage = replace(STAGE, optim=replace(STAGE.optim, lr=1e30), save_every=0)
    with pytest.raises(BarError) as stopped:
        fit(job(source, folder), stage, [rows("general"), rows("math")])
    return str(stopped.value)


def strict(line: str) -> dict:
    def refuse(name: str):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(line, parse_constant=refuse)


def test_a_run_that_exploded_stops_and_names_its_rows(sources, tmp_path, record_property):
    folder = tmp_path / "run"
    (line,) = run_distributed(explode, 1, sources["tiny"], folder)
    reported = [strict(text) for text in (logs(folder) / "nonfinite.jsonl").read_text().splitlines()]
    skipped = [report for report in reported if "skipped" in report["what"]]
    assert [report["step"] for report in skipped] == [2, 3, 4]
    loader = Loader(
        [rows("general"), rows("math")],
        global_batch=2,
        micro_batch=1,
        data_rank=0,
        data_size=1,
        seed=0,
        steps=6,
    )
    assert [report["rows"] for report in skipped] == [loader.step(number).rows for number in (1, 2, 3)]
    named = "; ".join(
        f"{name} {', '.join(map(str, numbers))}" for name, numbers in skipped[-1]["rows"].items()
    )
    assert (
        line.startswith("tiny: step 4: ") and "expected finite values, got none in 3 steps in a row" in line
    )
    assert named in line and str(logs(folder) / "nonfinite.jsonl") in line
    metrics = [strict(text) for text in (logs(folder) / "metrics.jsonl").read_text().splitlines()]
    assert [values["step"] for values in metrics] == [1, 2, 3]
    assert ["loss" in values for values in metrics] == [True, False, False]
    record_property(
        "figure", "3 non-finite steps in a row: the run stops, naming step, file and rows of every batch"
    )


def guard(path: Path, saved: dict | None = None, **changes) -> Guard:
    return Guard("x", path / "nonfinite.jsonl", replace(STAGE, **changes), start=0, saved=saved)


def values(loss: float, grad_norm: float = 1.0) -> dict[str, float]:
    return {"loss": loss, "grad_norm": grad_norm}


def test_a_spike_is_told_and_not_skipped(tmp_path, capsys):
    watch = guard(tmp_path, spike=10.0)
    for step in range(1, 9):
        assert watch.judge(step, values(2.0 + step / 10), {"a": [step]}) == values(2.0 + step / 10)
    assert not (tmp_path / "nonfinite.jsonl").exists()
    assert watch.judge(9, values(24.0), {"a": [9]}) == values(24.0)  # the median is 2.45
    watch.judge(10, values(24.6, 11.0), {"a": [7], "b": [8]})
    watch.judge(11, values(2.0), {"a": [11]})
    reports = [strict(line) for line in (tmp_path / "nonfinite.jsonl").read_text().splitlines()]
    assert [(report["step"], report["rows"]) for report in reports] == [(10, {"a": [7], "b": [8]})]
    assert "spike: grad_norm 11" in reports[0]["what"]
    assert capsys.readouterr().out.count("\n") == 1
    quiet = guard(tmp_path / "quiet", spike=0.0)
    for step in range(1, 20):
        quiet.judge(step, values(1.0 if step < 15 else 1e9), {})
    assert not (tmp_path / "quiet/nonfinite.jsonl").exists()


def test_one_bad_step_does_not_enter_the_median(tmp_path):
    watch = guard(tmp_path, max_skipped=2)
    for step in range(1, 10):
        watch.judge(step, values(1.0), {"a": [step]})
    bad = values(math.nan, math.inf) | {"skipped": 1.0, "lr": 0.1}
    assert watch.judge(10, bad, {"a": [10]}) == {"skipped": 1.0, "lr": 0.1}
    assert all(all(map(math.isfinite, recent)) for recent in watch.recent.values())
    again = guard(tmp_path, json.loads(json.dumps(watch.saved())), max_skipped=2)  # resumed from a checkpoint
    with pytest.raises(
        BarError,
        match=r"x: step 11: loss nan, grad_norm inf: .* 2 steps in a row; the last rows: a 11; all are in",
    ):
        again.judge(11, bad, {"a": [11]})
    for step in range(11, 20):  # a finite step in between begins the count anew
        watch.judge(step, values(1.0) if step % 2 else bad, {"a": [step]})
