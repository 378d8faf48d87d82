"""Writes a Hugging Face folder that appears only when it is whole, and goes on after a kill.

Everything goes into a hidden folder beside the target (locks.py), is fsynced, read back from the disk, and
renamed as the last act. (In-place writers lose checkpoints to a kill; write, fsync, rename loses none.)

In one process: `write_folder`. In a distributed saver: rank 0 locks the place (`locks.lock_output`), rank r
calls `write_shard(k, ...)` for the shards it owns, all meet at a barrier, rank 0 calls `finish`; whoever
fails sees to it that rank 0 aborts it. The split into files is `plan_shards`, a pure function of the config,
so that all ranks agree without talking.
"""

import dataclasses
import math
import os
import re
import shutil
from collections.abc import Callable, Container, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import megatron_bar
from megatron_bar.errors import BarError, writing
from megatron_bar.weights.card import write_card
from megatron_bar.weights.folder import INDEX, SINGLE, Folder, Progress, companions, silent
from megatron_bar.weights.hashes import Units, config_hash, hash_units, hashed, require_units
from megatron_bar.weights.hf_config import ModelConfig, tensor_shapes, zeros_beside
from megatron_bar.weights.locks import OutputLock, locked_output
from megatron_bar.weights.manifest import Manifest
from megatron_bar.weights.safetensors_io import ITEMSIZE, TORCH_DTYPES, Tensors, write_file
from megatron_bar.weights.whole import write_json

Plan = list[list[str]]
"""The names of file k, in order."""
Verify = Literal["none", "weights"]

DEFAULT_SHARD_BYTES = 5 * 10**9
"""5GB, as transformers splits."""


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How a folder is written, whatever it is made of."""

    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    """Bytes of a file at most, unless a single tensor is larger."""
    verify: Verify = "weights"
    """What is checked; weights: values must be finite as they are read, and all is read back from disk."""
    progress: Progress = silent

    @property
    def verifies(self) -> bool:
        return self.verify != "none"


USUAL = WriteOptions()
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Returns the bytes in '5GB' (decimal, as transformers reads it), '512MiB' or '1000'."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text.strip(), re.ASCII)
    if not match or match[2].upper() not in _UNITS:
        raise BarError(f"size expected like 5GB, 512MiB or 1000 (bytes), got {text!r}")
    whole, _, fraction = match[1].partition(".")
    size = int(whole + fraction) * _UNITS[match[2].upper()] // 10 ** len(fraction)
    if size < 1:
        raise BarError(f"size expected at least one byte, got {text!r}")
    return size


def plan_shards(
    config: ModelConfig,
    dtype: str,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    *,
    only: Container[str] | None = None,
) -> Plan:
    """Returns the tensors of each file, in `tensor_shapes`' order; a new one where the next would not fit.

    ``only``: plans these tensors; None: all.
    """
    shapes = {name: s for name, s in tensor_shapes(config).items() if only is None or name in only}
    sizes = {name: math.prod(shape) * ITEMSIZE[dtype] for name, shape in shapes.items()}
    return plan_files(sizes, max_shard_bytes)


def plan_files(sizes: dict[str, int], max_file_bytes: int) -> Plan:
    """Returns the names of each file, in order; a new one where the next of ``sizes``, in bytes, would not
    fit."""
    plan: Plan = []
    room = 0
    for name, size in sizes.items():
        if size > room:
            plan.append([])
            room = max(size, max_file_bytes)
        plan[-1].append(name)
        room -= size
    return plan


def shard_name(k: int, plan: Plan) -> str:
    return SINGLE if len(plan) == 1 else f"model-{k + 1:05d}-of-{len(plan):05d}.safetensors"


def write_shard(folder: Path, config: ModelConfig, plan: Plan, k: int, tensors: Tensors) -> Units:
    """Writes file k of ``folder`` from tensors in the plan's order, as blocks of rows; returns their hashes
    for `finish`."""
    shapes = tensor_shapes(config)
    units = {}

    def stream() -> Tensors:
        for name, blocks in tensors:
            yield config.form.file_name(name), hashed(name, config.dtype, shapes[name], blocks, units)
            for zero, shape in zeros_beside(config, name).items():
                yield zero, [torch.zeros(shape, dtype=TORCH_DTYPES[config.dtype])]

    layout = _file_layout(config, shapes, plan[k])
    write_file(folder / shard_name(k, plan), layout, config.dtype, stream())
    return units


def _file_layout(
    config: ModelConfig, shapes: dict[str, tuple[int, ...]], names: list[str]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of what a file of ``names`` holds, by the names there, in order."""
    layout = {}
    for name in names:
        layout[config.form.file_name(name)] = shapes[name]
        layout |= zeros_beside(config, name)
    return layout


def finish(
    lock: OutputLock,
    *,
    config: ModelConfig,
    plan: Plan,
    companions_from: Path | str,
    manifest: Callable[[Folder, Units], Manifest],
    units: Units,
    options: WriteOptions = USUAL,
) -> Folder:
    """Writes index, config, companions, manifest and card; reads the folder back, then renames it into place.

    ``manifest`` is given the opened result and ``units``, those of every `write_shard`, which it need not put
    in. What is verified is read back from the disk and hashed again.
    """
    with writing(lock.out):
        _write_small_files(lock.path, config, plan, Path(companions_from))
        written = Folder.open(lock.path)
        assert {name.partition("[")[0] for name in units} == written.tensors.keys()
        if options.verifies:
            verify_units(written, units, options.progress)
        made = manifest(written, units)
        receipt = dataclasses.replace(
            made,
            tensors=units,
            config_hash=config_hash(config),
            experts_per_layer=config.experts_per_layer,
        )
        receipt.write(lock.path)
        write_card(lock.path, config, receipt, companions_from)
    lock.publish()
    return Folder.open(lock.out)


def write_folder(
    out: Path | str,
    config: ModelConfig,
    produce: Callable[[str], Iterable[torch.Tensor]],
    *,
    companions_from: Path | str,
    manifest: Callable[[Folder, Units], Manifest],
    job: dict | None = None,
    options: WriteOptions = USUAL,
) -> Folder:
    """Writes a folder from a function of tensor names that gives blocks of rows, in the memory of one.

    ``job``: what ``produce`` depends on, as JSON. After a kill the same job keeps the files that were
    finished.
    """
    plan = plan_shards(config, config.dtype, options.max_shard_bytes)
    with lock_files(out, config, plan, job=job) as lock:
        units = write_files(lock, config, plan, produce, progress=options.progress)
        rest = {"config": config, "plan": plan, "companions_from": companions_from, "manifest": manifest}
        return finish(lock, **rest, units=units, options=options)


def lock_files(
    out: Path | str, config: ModelConfig, plan: Plan, *, job: dict | None
) -> AbstractContextManager[OutputLock]:
    """Calls `locked_output` for the files of ``plan``."""
    if job is not None:
        job = {"job": job, "config": config.to_hf(), "plan": plan, "version": megatron_bar.__version__}
    return locked_output(out, sum(_nbytes(config, plan).values()), job=job)


def _nbytes(config: ModelConfig, plan: Plan) -> dict[str, int]:
    shapes = tensor_shapes(config)
    return {name: math.prod(shapes[name]) * ITEMSIZE[config.dtype] for names in plan for name in names}


def write_files(
    lock: OutputLock,
    config: ModelConfig,
    plan: Plan,
    produce: Callable[[str], Iterable[torch.Tensor]],
    *,
    progress: Progress = silent,
) -> Units:
    """Writes the files of ``plan``, but those that an earlier run of the same job finished; returns the
    hashes of all their tensors."""
    units = {}
    nbytes = _nbytes(config, plan)
    with progress(f"writing {lock.out.name}", sum(nbytes.values())) as advance:
        for k, names in enumerate(plan):
            file = shard_name(k, plan)
            hashes = lock.finished(file)
            if hashes is None:
                hashes = write_shard(lock.path, config, plan, k, _watched(produce, names, advance))
                lock.record(file, hashes)
            else:
                advance(sum(nbytes[name] for name in names))
            units |= hashes
    return units


def _watched(
    produce: Callable[[str], Iterable[torch.Tensor]], names: list[str], advance: Callable[[int], None]
) -> Tensors:
    def blocks(name: str) -> Iterable[torch.Tensor]:
        for block in produce(name):
            yield block
            advance(block.nbytes)

    return ((name, blocks(name)) for name in names)


def _write_small_files(partial: Path, config: ModelConfig, plan: Plan, source: Path) -> None:
    write_index(partial, config, plan)
    hf = config.to_hf()
    write_json(partial / "config.json", hf)
    copy_companions(source, partial)
    generation = partial / "generation_config.json"
    if not generation.exists():
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        write_json(generation, {key: hf[key] for key in tokens if hf[key] is not None})


def write_index(folder: Path, config: ModelConfig, plan: Plan) -> None:
    """Writes the index, which a folder of more than one file has."""
    if len(plan) > 1:
        shapes = tensor_shapes(config)
        files = [_file_layout(config, shapes, names) for names in plan]
        weight_map = {name: shard_name(k, plan) for k, held in enumerate(files) for name in held}
        total = sum(math.prod(shape) for held in files for shape in held.values()) * ITEMSIZE[config.dtype]
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def copy_companions(source: Path, target: Path) -> None:
    for file in companions(source):
        shutil.copyfile(file, target / file.name)


def verify_units(folder: Folder, units: Units, progress: Progress) -> None:
    """Reads every tensor of ``units`` back from the disk."""
    for file in {info.file for info in folder.tensors.values()}:
        with file.open("rb") as opened:  # what is still in memory says nothing about the disk
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    names = list(dict.fromkeys(name.partition("[")[0] for name in units))
    found = hash_units(folder, names, progress=progress)
    for name in names:
        require_units(folder, name, found, units, "it was written")
