"""A checkpoint's folder on the disk: its names, its hashes, and whether it is whole."""

import json
import re
import shutil
from pathlib import Path

import torch.distributed as dist
from blake3 import blake3

from megatron_bar.errors import BarError
from megatron_bar.weights.json_file import read_object

STATE = "state.json"
_NUMBER = re.compile(r"step-(\d+)")


def file_name(rank: int) -> str:
    """Returns the name of a rank's file."""
    return f"rank-{rank:05d}.safetensors"


def measured(path: Path) -> dict:
    """Returns the size and the hash of a file, as state.json has them."""
    return {
        "bytes": path.stat().st_size,
        "blake3": blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest(),
    }


def digest(state: dict) -> str:
    """Returns the hash of a state, whatever the order of its keys."""
    return blake3(json.dumps(state, sort_keys=True).encode()).hexdigest()


def whole_ones(folder: Path) -> list[Path]:
    """Returns the checkpoints in ``folder``, the newest last."""
    numbered = [
        (int(match[1]), path) for path in folder.glob("step-*") if (match := _NUMBER.fullmatch(path.name))
    ]
    return [path for _, path in sorted(numbered)]


def remove_partial(folder: Path) -> None:
    """Removes what killed runs left: checkpoints that were being written, or removed."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left)


def write_state(path: Path, state: dict) -> None:
    """Writes the state with its own hash."""
    file = path / STATE
    text = json.dumps({"blake3": digest(state), "state": state})
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BarError(f"{file}: could not write {len(text)} bytes: {error.strerror}") from None


def read_state(path: Path) -> dict:
    """Returns a checkpoint's state; raises unless it is unchanged and of the step in the folder's name."""
    file = path / STATE
    content = read_object(file, expected="the state of a checkpoint")
    state = content.get("state")
    if content.keys() != {"blake3", "state"} or not isinstance(state, dict):
        keys = ", ".join(content) or "none"
        raise BarError(f"{file}: expected the state of a checkpoint with its hash, got the keys {keys}")
    if digest(state) != content["blake3"]:
        raise BarError(
            f"{file}: changed since it was written: "
            f"expected BLAKE3 {content['blake3']!s:.16}, got {digest(state):.16}"
        )
    name = f"step-{state['number']:08d}"
    if path.name != name:
        raise BarError(f"{file}: expected the state of {path.name}, got that of {name}")
    return state


def check_files(paths: list[Path], expected: list[dict]) -> None:
    """Compares this rank's share of the files, byte for byte; raises where one is missing or other."""
    # By rank modulo the processes, whoever wrote them: every rank may see every file.
    for number in range(dist.get_rank(), len(paths), dist.get_world_size()):
        path = paths[number]
        wanted = expected[number]
        if not path.is_file():
            raise BarError(f"{path}: expected a file of {wanted['bytes']} bytes, got none")
        if (size := path.stat().st_size) != wanted["bytes"]:
            raise BarError(f"{path}: expected {wanted['bytes']} bytes, got {size}")
        if (digest := measured(path)["blake3"]) != wanted["blake3"]:
            raise BarError(
                f"{path}: changed since it was written: "
                f"expected BLAKE3 {wanted['blake3']:.16}, got {digest:.16}"
            )
