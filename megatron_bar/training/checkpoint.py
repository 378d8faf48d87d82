"""Checkpoints inside a stage: a folder per step that appears when it is whole, one safetensors file per rank.

Between stages everything is a Hugging Face folder; this holds what such a folder cannot (fp32 master weights, Adam's
moments, the position in the data). A checkpoint belongs to one stage on one layout: anything else is refused with the
difference. Another layout needs Megatron's reshardable optimizer format, which with torch's Adam loses the moments
(seen in megatron-core 0.19.2).
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_bar.config import diff, from_json, to_json
from megatron_bar.errors import BarError
from megatron_bar.parallel.state import is_rank_zero, on_rank_zero, share_error
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer

_STEP = re.compile(r"step-(\d+)")
STATE = "state.json"


def _tensors(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    """Everything this rank must have back, by a name that depends on the layout alone."""
    for name, param in trainer.model.named_parameters():
        yield f"model.{name}", param.data
    for number, part in enumerate(trainer.optimizer_parts):
        for place, param in enumerate(p for group in part.optimizer.param_groups for p in group["params"]):
            yield f"optimizer.{number}.{place}.main", param.data
            for key in ("exp_avg", "exp_avg_sq", "step"):
                yield f"optimizer.{number}.{place}.{key}", part.optimizer.state[param][key]


def save(trainer: Trainer, folder: Path, *, extra: dict, origin: dict[str, str], keep: int = 1) -> None:
    """Writes ``folder/step-N`` and removes older ones but the last ``keep``. Collective.

    ``extra`` is JSON that the stage's own loop wants back; ``origin`` names the hashes of what the stage learns from.
    """
    target = folder / f"step-{trainer.done:08d}"
    partial = folder / f".{target.name}.partial"

    def start():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def finish():
        state = {
            "stage": to_json(trainer.stage),
            "steps": trainer.steps,
            "step": trainer.done,
            "world_size": dist.get_world_size(),
            "origin": origin,
        }
        with (partial / STATE).open("w", encoding="utf-8") as file:
            json.dump(state | {"extra": extra}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)
        for old in _found(folder)[:-keep]:
            shutil.rmtree(old)

    on_rank_zero(start)
    error = None
    try:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _tensors(trainer)}
        path = partial / _rank_file()
        save_file(tensors, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as problem:
        error = BarError(f"{partial}: checkpoint could not be written: {problem}")
    share_error(error)
    on_rank_zero(finish)


def _rank_file() -> str:
    return f"rank-{dist.get_rank():05d}.safetensors"


def _found(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if _STEP.fullmatch(path.name))


def resume(trainer: Trainer, folder: Path, *, origin: dict[str, str]) -> dict | None:
    """Puts the newest checkpoint of ``folder`` back and returns its ``extra``; None where there is none. Collective.

    A checkpoint of another stage, layout or ``origin`` is refused.
    """
    found = on_rank_zero(lambda: [str(path) for path in _found(folder)])
    if not found:
        return None
    path = Path(found[-1])
    state = on_rank_zero(lambda: _read_state(path, trainer, origin))
    trainer.prepare_optimizer_state()
    error = None
    try:
        with safe_open(path / _rank_file(), framework="pt") as file:
            expected = dict(_tensors(trainer))
            if set(file.keys()) != set(expected):
                raise BarError(f"{path / _rank_file()}: its tensors are not those of this stage on this layout")
            with torch.no_grad():
                for name, tensor in expected.items():
                    tensor.copy_(file.get_tensor(name))
    except (OSError, SafetensorError, RuntimeError, BarError) as problem:
        error = problem if isinstance(problem, BarError) else BarError(f"{path / _rank_file()}: not readable: {problem}")
    share_error(error)
    trainer.resume_at(state["step"])
    return state["extra"]


def _read_state(path: Path, trainer: Trainer, origin: dict[str, str]) -> dict:
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        then, world_size, steps = from_json(Stage, state["stage"]), state["world_size"], state["steps"]
        assert isinstance(state["step"], int) and isinstance(state["extra"], dict)
        learnt_from = dict(state["origin"])
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as problem:
        raise BarError(f"{path / STATE}: not a readable checkpoint state: {problem}") from None
    changed = diff(then, trainer.stage)
    if world_size != dist.get_world_size():
        changed.append(f"processes: {world_size} -> {dist.get_world_size()}")
    if steps != trainer.steps:
        changed.append(f"steps: {steps} -> {trainer.steps}")
    changed += [f"another {name}" for name, digest in origin.items() if learnt_from.get(name) != digest]
    if changed:
        raise BarError(f"{path}: was written by another run of this stage ({'; '.join(changed)}); delete it to start anew")
    return state


def remove(folder: Path) -> None:
    """Called when the stage's folder is whole."""
    if is_rank_zero():
        shutil.rmtree(folder, ignore_errors=True)
