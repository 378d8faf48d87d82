"""Writes a Hugging Face folder that appears only when it is whole.

Everything goes into `.<name>.partial-<host>-<pid>` beside the target, is fsynced, read back, and renamed as the last act.
(In-place writers lose checkpoints to a kill; write, fsync, rename loses none.)

In one process: `write_folder`. In a distributed saver: rank 0 `start`s, rank r calls `write_shard(k, ...)` for the shards it
owns, all meet at a barrier, rank 0 calls `finish`; whoever fails sees to it that rank 0 calls `abort`.
The split into files is `plan_shards`, a pure function of the config, so that all ranks agree without talking.
"""

import json
import math
import os
import re
import shutil
import socket
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import psutil
import torch

from megatron_bar.errors import BarError
from megatron_bar.weights.folder import INDEX, SINGLE, Folder, Progress, companions, silent
from megatron_bar.weights.hashes import hash_tensor, tensor_hash
from megatron_bar.weights.hf_config import ModelConfig, tensor_shapes
from megatron_bar.weights.manifest import Manifest
from megatron_bar.weights.safetensors_io import ITEMSIZE, write_file

Plan = list[list[str]]
"""The names of file k, in order."""
Verify = Literal["none", "weights"]

DEFAULT_SHARD_BYTES = 5 * 10**9
"""5GB, as transformers splits."""
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes in '5GB' (decimal, as transformers reads it), '512MiB' or '1000'."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text.strip(), re.ASCII)
    if not match or match[2].upper() not in _UNITS:
        raise BarError(f"size expected like 5GB, 512MiB or 1000 (bytes), got {text!r}")
    whole, _, fraction = match[1].partition(".")
    size = int(whole + fraction) * _UNITS[match[2].upper()] // 10 ** len(fraction)
    if size < 1:
        raise BarError(f"size expected at least one byte, got {text!r}")
    return size


def plan_shards(config: ModelConfig, dtype: str, max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> Plan:
    """Which tensors file k holds: in the order of `tensor_shapes`, a new file when the next tensor would not fit."""
    plan: Plan = []
    room = 0
    for name, shape in tensor_shapes(config).items():
        size = math.prod(shape) * ITEMSIZE[dtype]
        if size > room:
            plan.append([])
            room = max(size, max_shard_bytes)
        plan[-1].append(name)
        room -= size
    return plan


def shard_name(k: int, plan: Plan) -> str:
    return SINGLE if len(plan) == 1 else f"model-{k + 1:05d}-of-{len(plan):05d}.safetensors"


def check_out(out: Path | str) -> None:
    """Refuses a target that would be overwritten; called before anything expensive."""
    expected = f"{out}: expected a new or empty folder to write to"
    try:
        is_folder = stat.S_ISDIR(Path(out).lstat().st_mode)
        is_full = is_folder and any(Path(out).iterdir())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # a name too long or with a NUL, a file as parent, no permission
        raise BarError(f"{expected}, got {error}") from None
    if not is_folder:
        raise BarError(f"{expected}, got a file or link")
    if is_full:
        raise BarError(f"{expected}, got one that is not empty")


def _partial_prefix(out: Path) -> str:
    return f".{out.name}.partial-{socket.gethostname()}-"


def _remove_leftovers(out: Path) -> None:
    """What a killed writer of the same target left on this host; a living one's folder stays.

    One with our own id is left by another process too: a container that starts again has the same host name and ids.
    """
    prefix = _partial_prefix(out)
    for left in out.parent.iterdir():
        pid = left.name.removeprefix(prefix)
        if not left.name.startswith(prefix) or not pid.isdigit():
            continue
        if int(pid) == os.getpid() or not psutil.pid_exists(int(pid)):
            shutil.rmtree(left)


def start(out: Path | str, nbytes: int = 0) -> Path:
    """Makes and returns the partial folder, on the target's file system; ``nbytes`` must fit there."""
    check_out(out)
    out = Path(out).resolve()
    partial = out.parent / f"{_partial_prefix(out)}{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        free = shutil.disk_usage(out.parent).free
        if nbytes > free:
            raise BarError(f"{out}: not enough space: expected {nbytes} bytes free, got {free}")
        partial.mkdir()
    except OSError as error:
        raise BarError(f"{partial}: could not be made: {error.strerror}") from None
    return partial


def write_shard(
    partial: Path, config: ModelConfig, plan: Plan, k: int, tensors: Iterable[tuple[str, torch.Tensor]]
) -> dict[str, str]:
    """Writes file k from (name, tensor) pairs in the plan's order, held one at a time; returns their hashes for `finish`."""
    shapes = tensor_shapes(config)
    hashes = {}

    def hashed():
        for name, tensor in tensors:
            hashes[name] = hash_tensor(name, config.dtype, tensor.shape, [tensor])
            yield name, tensor

    write_file(partial / shard_name(k, plan), {name: shapes[name] for name in plan[k]}, config.dtype, hashed())
    return hashes


def finish(
    partial: Path,
    out: Path | str,
    *,
    config: ModelConfig,
    plan: Plan,
    companions_from: Path | str,
    manifest: Callable[[Folder], Manifest],
    hashes: dict[str, str] | None = None,
    progress: Progress = silent,
) -> Folder:
    """Index, config, companions and manifest; reads the folder back, then renames it into place.

    ``manifest`` is given the opened result, so that it can hash it. ``hashes`` (all of `write_shard`'s) makes the reading back
    compare every tensor too.
    """
    out = Path(out).resolve()
    try:
        _write_small_files(partial, config, plan, Path(companions_from))
        written = Folder.open(partial)
        if hashes is not None:
            _compare_hashes(written, hashes, progress)
        manifest(written).write(partial)
    except OSError as error:
        raise BarError(f"{error.filename or out}: could not be written: {error.strerror}") from None
    publish(partial, out)
    return Folder.open(out)


def publish(partial: Path, out: Path) -> None:
    """The last act: everything on disk, then the folder under its own name."""
    try:
        for file in (*partial.iterdir(), partial):
            _fsync(file)
        partial.rename(out)  # replaces an empty folder, fails on any other
        _fsync(out.parent)
    except OSError as error:
        raise BarError(f"{error.filename or out}: could not be written: {error.strerror}") from None


def abort(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)


def write_folder(
    out: Path | str,
    config: ModelConfig,
    produce: Callable[[str], torch.Tensor],
    *,
    companions_from: Path | str,
    manifest: Callable[[Folder], Manifest],
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    verify: Verify = "weights",
    progress: Progress = silent,
) -> Folder:
    """A whole folder from a function of tensor names, in the memory of one tensor."""
    plan = plan_shards(config, config.dtype, max_shard_bytes)
    total = sum(math.prod(shape) for shape in tensor_shapes(config).values()) * ITEMSIZE[config.dtype]
    partial = start(out, total)
    try:
        with progress(f"writing {Path(out).name}", total) as advance:

            def tensors(names):
                for name in names:
                    tensor = produce(name)
                    yield name, tensor
                    advance(tensor.nbytes)

            hashes = {}
            for k, names in enumerate(plan):
                hashes |= write_shard(partial, config, plan, k, tensors(names))
        return finish(
            partial,
            out,
            config=config,
            plan=plan,
            companions_from=companions_from,
            manifest=manifest,
            hashes=hashes if verify == "weights" else None,
            progress=progress,
        )
    except BaseException:
        abort(partial)
        raise


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_small_files(partial: Path, config: ModelConfig, plan: Plan, source: Path) -> None:
    if len(plan) > 1:
        total = sum(math.prod(shape) for shape in tensor_shapes(config).values()) * ITEMSIZE[config.dtype]
        weight_map = {name: shard_name(k, plan) for k, names in enumerate(plan) for name in names}
        _write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    hf = config.to_hf()
    _write_json(partial / "config.json", hf)
    copy_companions(source, partial)
    generation = partial / "generation_config.json"
    if not generation.exists():
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        _write_json(generation, {key: hf[key] for key in tokens if hf[key] is not None})


def copy_companions(source: Path, target: Path) -> None:
    for file in companions(source):
        shutil.copyfile(file, target / file.name)


def _compare_hashes(folder: Folder, hashes: dict[str, str], progress: Progress) -> None:
    with progress(f"verifying {folder.nbytes} bytes", folder.nbytes) as advance:
        assert hashes.keys() == folder.tensors.keys()
        for name, info in folder.tensors.items():
            found = tensor_hash(folder, name)
            if found != hashes[name]:
                raise BarError(f"{info.file}: tensor {name!r} read back differs: expected hash {hashes[name]}, got {found}")
            advance(info.nbytes)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
