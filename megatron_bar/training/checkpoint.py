"""Checkpoints inside a stage: a folder per step that is whole or absent, written while training goes on, read
on any layout.

Between stages everything is a Hugging Face folder; this holds what such a folder cannot (see pieces.py): one
safetensors file per rank, and state.json with the hash of each. ``save`` copies this rank's pieces to the
CPU; a thread writes them into a hidden folder. Once all ranks are through, rank 0 adds state.json, has
everything on the disk and renames the folder. A kill at any moment leaves whole checkpoints and hidden
leftovers, which the next start removes. So a checkpoint under its own name that is not whole was damaged by
something else, and is never passed over in silence.

No generator's state is kept: nothing in training draws from one. Dropout is refused, the data's order depends
on the step's number and the sampler's draws on the round's.
"""

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from megatron_bar.config import diff, from_json, to_json
from megatron_bar.errors import BarError
from megatron_bar.parallel.state import (
    ParallelConfig,
    any_rank,
    gather_objects,
    is_rank_zero,
    on_all_ranks,
    on_rank_zero,
    share_error,
)
from megatron_bar.training import pieces, stored
from megatron_bar.training.freeze import check_unmoved
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.safetensors_io import write_file
from megatron_bar.weights.whole import publish


class Checkpoints:
    """The checkpoints of one stage, in ``folder``. All methods are collective.

    ``name``: the stage's, and ``unit``: what it counts, for messages. ``origin``: hashes of what it learns
    from.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: Path,
        *,
        name: str,
        origin: dict[str, str],
        unit: str = "step",
        keep: int = 2,
    ):
        self.trainer = trainer
        self.folder = folder
        self.name = name
        self.origin = origin
        self.unit = unit
        self.keep = keep
        self._writing: _Writing | None = None

    def after(self, number: int, extra: Callable[[], dict], *, last: bool) -> None:
        """Saves after step ``number`` where a checkpoint is due; leaves where the stage was asked to stop."""
        self._poll()
        every = self.trainer.stage.save_every
        if self.trainer.stop.agreed:
            self.save(number, extra())
            self.wait()
            self.trainer.stop.leave(f"{self.unit} {number} of {self.name}")
        if every and number % every == 0 and not last:
            self.save(number, extra())

    def save(self, number: int, extra: dict) -> None:
        """Begins ``step-NUMBER``; ``extra`` is JSON that the stage's own loop wants back."""
        self.wait()
        trainer = self.trainer
        target = self.folder / f"step-{number:08d}"
        partial = target.with_name(f".{target.name}.partial")

        def start() -> bool:
            if target.exists():  # a stop right behind a save
                return False
            try:
                partial.mkdir(parents=True)
            except OSError as error:
                raise BarError(f"{partial}: could not be made: {error.strerror}") from None
            return True

        if not on_rank_zero(start):
            return
        state = {
            "stage": to_json(trainer.stage),
            "steps": trainer.steps,
            "number": number,
            "step": trainer.done,
            "updates": trainer.updates,
            "origin": self.origin,
            "spent": trainer.meter.saved(),
            "extra": extra,
        }
        # Copies, so that the next step may overwrite what is being written.
        listed, tensors = pieces.snapshot(trainer)
        self._writing = _Writing(trainer, target, partial, state, listed, tensors)
        self._writing.start()

    def _poll(self) -> None:
        """Makes the checkpoint that is being written appear if every rank is through."""
        if self._writing is not None and not any_rank(self._writing.is_alive()):
            self.wait()

    def wait(self) -> None:
        """Waits until the checkpoint being written has appeared; every rank raises when one cannot write."""
        writing = self._writing
        if writing is None:
            return
        self._writing = None
        writing.join()
        try:
            share_error(writing.error)
            files = gather_objects(writing.file)
            on_rank_zero(lambda: self._publish(writing, files))
        except BaseException:
            if is_rank_zero():
                shutil.rmtree(writing.partial, ignore_errors=True)
            raise

    def _publish(self, writing: "_Writing", files: list[dict]) -> None:
        # Raises unless every parameter is there from end to end.
        pieces.arrange([file["pieces"] for file in files])
        state = writing.state | {"files": files}
        stored.write_state(writing.partial, state)
        publish(writing.partial, writing.target)
        for old in stored.whole_ones(self.folder)[: -self.keep]:
            # Under a name that is no checkpoint's, so that a kill in between leaves no damaged one.
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.old")))

    def resume(self) -> dict | None:
        """Puts the newest checkpoint back and returns its ``extra``; None where there is none.

        One of another stage or ``origin`` is refused, and so is a damaged one; another layout is none of its
        business.
        """
        on_rank_zero(lambda: stored.remove_partial(self.folder))
        checkpoints = on_rank_zero(lambda: stored.whole_ones(self.folder))
        if not checkpoints:
            return None
        path = checkpoints[-1]
        try:
            state = on_rank_zero(lambda: stored.read_state(path))
            files = [path / stored.file_name(number) for number in range(len(state["files"]))]
            on_all_ranks(lambda: stored.check_files(files, state["files"]))
        except BarError as error:
            onward = f"to go on from {checkpoints[-2].name}" if checkpoints[1:] else "to start the stage anew"
            raise BarError(f"{error}; remove {path} {onward}") from None
        # Whole first, then ours: of a damaged one nothing that it says is to be trusted.
        on_rank_zero(lambda: self._compare(path, state))
        arranged = pieces.arrange([file["pieces"] for file in state["files"]])
        on_all_ranks(lambda: pieces.restore(self.trainer, files, arranged, state["updates"]))
        self.trainer.resume_at(state["step"], state["updates"])
        self.trainer.meter.restore(state["spent"])
        return state["extra"]

    def _compare(self, path: Path, state: dict) -> None:
        """Raises unless it is of the same run of the same stage, but for what changes no number of a step."""
        changed = diff(_definition(from_json(Stage, state["stage"])), _definition(self.trainer.stage))
        if state["steps"] != self.trainer.steps:
            changed.append(f"steps: {state['steps']} -> {self.trainer.steps}")
        changed += [
            f"another {name}" for name, digest in self.origin.items() if state["origin"].get(name) != digest
        ]
        if changed:
            raise BarError(
                f"{path}: was written by another run of this stage ({'; '.join(changed)}); "
                f"remove {self.folder} to start anew"
            )

    def remove(self) -> None:
        """Removes all of them, once the stage's folder is whole."""
        if is_rank_zero():
            shutil.rmtree(self.folder, ignore_errors=True)


class _Writing(threading.Thread):
    """One rank's file on its way to the disk: ``file`` describes it, or ``error`` says why there is none."""

    def __init__(
        self,
        trainer: Trainer,
        target: Path,
        partial: Path,
        state: dict,
        listed: list[pieces.Piece],
        tensors: dict[str, Tensor],
    ):
        super().__init__(name="checkpoint")
        self.trainer = trainer
        self.target = target
        self.partial = partial
        self.state = state
        self._listed = listed
        self._tensors = tensors
        self.file: dict | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Looks at what is frozen and writes the file, in the thread."""
        try:
            check_unmoved(self.trainer.frozen, self.trainer.frozen_marks)
            path = self.partial / stored.file_name(dist.get_rank())
            layout = {key: tuple(tensor.shape) for key, tensor in self._tensors.items()}
            write_file(path, layout, "float32", ((key, [tensor]) for key, tensor in self._tensors.items()))
            self.file = stored.measured(path) | {"pieces": pieces.to_json(self._listed)}
        except Exception as error:  # noqa: BLE001  raised where it is waited for
            self.error = error
        self._tensors = {}  # copies of all that trains here, three times over: gone as soon as they can be


def _definition(stage: Stage) -> Stage:
    """Without what changes no number of a step but by rounding."""
    how = {"parallel": ParallelConfig(), "micro_batch": 1, "recompute": False, "attention": "torch"}
    return replace(stage, save_every=0, max_skipped=1, spike=0.0, **how)
