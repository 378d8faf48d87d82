"""The loop around a stage: what it refuses, what it leaves behind, and what it checks when it saves."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed import run_distributed, start_process
from tiny_fit import STAGE, finish, job, left, make_source, rows, train

from megatron_bar.errors import BarError
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.training.checkpoint import Checkpoints
from megatron_bar.training.fit import checkpoints_of, fit, remove_leftovers
from megatron_bar.training.trainer import Trainer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("source") / "two")


def test_a_finished_folder_is_refused_before_anything_is_trained(source, tmp_path):
    folder = tmp_path / "run"
    assert finish(source, folder)[0] == 0
    before = left(folder)
    status, said = finish(source, folder)
    assert status == 1
    assert (
        f"error: {folder}/out: expected a new or empty folder to write to, got one that is not empty" in said
    )
    assert left(folder) == before
    # A kill between the folder's appearance and the removal of its checkpoints.
    (checkpoints_of(folder / "out") / "step-00000001").mkdir(parents=True)
    remove_leftovers(folder / "out")
    assert left(folder) == before


def goes_on(source: Path, folder: Path) -> int:
    """Other processes, batches and habits than those that the checkpoint was written with."""
    changes = {
        "parallel": ParallelConfig(expert=2),
        "micro_batch": 1,
        "recompute": True,
        "save_every": 2,
        "spike": 0.0,
    }
    trainer = Trainer(source, replace(STAGE, **changes), steps=6)
    checkpoints = Checkpoints(trainer, folder, name="x", origin={"data": "x"})
    assert checkpoints.resume() == {"seen": 2}
    return trainer.done


def write(source: Path, folder: Path) -> None:
    trainer = Trainer(source, replace(STAGE, micro_batch=2), steps=6)
    trainer.resume_at(2, 2)
    checkpoints = Checkpoints(trainer, folder, name="x", origin={"data": "x"})
    checkpoints.save(2, {"seen": 2})
    checkpoints.wait()


def refused(source: Path, folder: Path, steps: int, origin: str, changes: dict) -> str:
    trainer = Trainer(source, replace(STAGE, micro_batch=2, **changes), steps=steps)
    with pytest.raises(BarError) as error:
        Checkpoints(trainer, folder, name="x", origin={"data": origin}).resume()
    return str(error.value)


def test_what_changes_no_number_of_a_step_may_differ_and_the_rest_may_not(source, tmp_path):
    folder = tmp_path / "checkpoints"
    run_distributed(write, 1, source, folder)
    assert run_distributed(goes_on, 2, source, folder) == [2, 2]
    optim = replace(STAGE.optim, lr=0.5)
    for steps, origin, changes, difference in (
        (6, "x", {"policy": "sft"}, 'policy: "midtrain" -> "sft"'),
        (6, "x", {"optim": optim}, "optim.lr: 0.01 -> 0.5"),
        (6, "x", {"batch": 4}, "batch: 2 -> 4"),
        (7, "x", {}, "steps: 6 -> 7"),
        (6, "y", {}, "another data"),
    ):
        (line,) = run_distributed(refused, 1, source, folder, steps, origin, changes)
        path = folder / "step-00000002"
        assert (
            line
            == f"{path}: was written by another run of this stage ({difference}); remove {folder} to start "
            f"anew"
        )


def frozen_moves(source: Path, folder: Path) -> list[str]:
    """A tensor that no step may move changes on one rank."""
    trainer = Trainer(source, STAGE, steps=6)
    checkpoints = Checkpoints(trainer, folder, name="x", origin={})
    checkpoints.save(1, {})
    checkpoints.wait()
    if dist.get_rank() == 1:
        with torch.no_grad():
            trainer.model.decoder.final_layernorm.weight[3] += 1e-6
    trainer.resume_at(2, 2)
    checkpoints.save(2, {})
    with pytest.raises(BarError, match=r"frozen tensor 'model\.norm\.weight' changed during training"):
        checkpoints.wait()
    return sorted(path.name for path in folder.iterdir())


def test_a_frozen_tensor_that_changed_is_no_checkpoint(source, tmp_path):
    found = run_distributed(frozen_moves, 2, source, tmp_path / "checkpoints")
    assert found[0] == ["step-00000001"]


def keeps(source: Path, folder: Path) -> list[list[str]]:
    """What is there after each step, and at the end."""
    trainer = Trainer(source, STAGE, steps=6)
    checkpoints = Checkpoints(trainer, folder, name="x", origin={})
    found = []
    for step in range(1, 5):
        trainer.done = step
        checkpoints.after(step, dict, last=step == 4)
        checkpoints.wait()
        found.append(sorted(path.name for path in folder.iterdir()))
    return found


def test_the_newest_two_are_kept(source, tmp_path):
    (found,) = run_distributed(keeps, 1, source, tmp_path / "checkpoints")
    assert found == [[f"step-{n:08d}" for n in range(max(1, step - 1), step + 1)] for step in (1, 2, 3, 3)]


def test_leftovers_of_a_kill_are_removed(source, tmp_path):
    folder, hidden = tmp_path / "run", tmp_path / "run/.out.checkpoints"
    folder.mkdir()
    process = start_process(train, source, folder, replace(STAGE, steps=2000), output=tmp_path / "output")
    while not (hidden / "step-00000002").exists():
        assert process.is_alive()
        time.sleep(0.001)
    process.kill()
    process.join()
    (hidden / ".step-00000009.partial").mkdir()
    (hidden / ".step-00000001.old").mkdir(exist_ok=True)
    run_distributed(list_after_resume, 1, source, folder)


def list_after_resume(source: Path, folder: Path) -> None:
    wanted = replace(STAGE, steps=2000)
    trainer = Trainer(source, wanted, steps=2000)
    with pytest.raises(BarError, match="another data"):
        Checkpoints(trainer, checkpoints_of(folder / "out"), name="x", origin={"data": "y"}).resume()
    assert not list(checkpoints_of(folder / "out").glob(".*"))
    with pytest.raises(BarError, match="steps: 2000 -> 3"):
        fit(job(source, folder), replace(wanted, steps=3), [rows()])
