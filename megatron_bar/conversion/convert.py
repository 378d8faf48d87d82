"""A Hugging Face folder to Megatron's torch_dist format and back, bit for bit: tensor by tensor, in one
process.

A checkpoint lies in one folder: Megatron's data, manifest.json with the folder's config in it, tokenizer and
generation config, so that the way back needs nothing else. Converting moves no weight, so the manifest's
lineage stays as it is. What is written appears when it is whole and read back, and a failure leaves nothing.
Any layout's checkpoint is read; what is written has whole tensors, the vocabulary padded as for one rank,
which every layout loads.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

import megatron_bar
from megatron_bar.conversion.dist_files import (
    Checkpoint,
    Items,
    checkpoint_ops,
    checkpoint_shapes,
    data_file,
    require_dtype,
    write_description,
    write_items,
)
from megatron_bar.conversion.parameters import DTYPES
from megatron_bar.errors import BarError
from megatron_bar.weights import writer
from megatron_bar.weights.card import CARD, LONGEST_CARD
from megatron_bar.weights.describe import checkpoint_config
from megatron_bar.weights.folder import Folder, Progress, require_tokenizer, silent
from megatron_bar.weights.hashes import Units, config_hash, hashed, require_units, units_of
from megatron_bar.weights.hf_config import ModelConfig, num_parameters, tensor_shapes
from megatron_bar.weights.locks import OutputLock, check_out, locked_output
from megatron_bar.weights.manifest import MANIFEST, Manifest, has_manifest, read_manifest
from megatron_bar.weights.receipts import Proven
from megatron_bar.weights.regular import read_regular, require_inside
from megatron_bar.weights.safetensors_io import ITEMSIZE

LogitsCheck = Callable[[Path, ModelConfig, Folder, Path], float]
"""Type of `models.logits.compare_logits`, which needs Megatron and transformers. Given a checkpoint, its
config, the folder written and the name that it will have, it returns the largest difference of the logits
over max(1, max|logit|)."""


def import_folder(
    source: Path,
    out: Path,
    *,
    max_file_bytes: int = writer.DEFAULT_SHARD_BYTES,
    verify: writer.Verify = "weights",
    progress: Progress = silent,
) -> ModelConfig:
    """Writes ``source`` as the checkpoint ``out``, and by ``verify`` reads it back; returns its config.

    Started again after a kill, it keeps the data files that were finished.
    """
    source = Path(source)
    out = Path(out)
    check_out(out)
    folder = Folder.open(source)
    config = folder.config
    require_dtype(config, source)
    require_tokenizer(source, config.vocab_size)
    manifest = _manifest(folder)
    units = Proven.open(folder, finite=verify != "none").prove(progress)
    sizes = {key: shape.numel() * ITEMSIZE[config.dtype] for key, shape in checkpoint_shapes(config).items()}
    plan = writer.plan_files(sizes, max_file_bytes)
    job = {"import": folder.fingerprint(), "plan": plan, "version": megatron_bar.__version__}
    with locked_output(out, folder.nbytes, job=job) as lock:
        write_description(lock.path, config, _write_files(lock, folder, plan, sizes, progress))
        if verify == "weights":
            _compare(lock.path, out, config, units, progress)
        writer.copy_companions(source, lock.path)
        if (source / CARD).is_file():  # the licence and the like of what is exported again
            require_inside(source / CARD)
            (lock.path / CARD).write_bytes(read_regular(source / CARD, LONGEST_CARD))
        receipt = {"tensors": units, "config_hash": config_hash(config)}
        replace(manifest, config=config.to_hf(), **receipt).write(lock.path)
        lock.publish()
    return config


def _write_files(
    lock: OutputLock, folder: Folder, plan: writer.Plan, sizes: dict[str, int], progress: Progress
) -> dict[str, Items]:
    """Writes the data files, but those that an earlier run finished; returns the items of each."""
    ops = checkpoint_ops(folder.config)
    files = {}
    with progress(f"writing {lock.out.name}", folder.nbytes) as advance:

        def cut(keys: list[str]) -> Iterator[tuple[str, Tensor]]:
            for key in keys:
                yield key, ops[key].cut(folder.slice, 0, 1)
                advance(sizes[key])

        for k, keys in enumerate(plan):
            name = data_file(k)
            items = lock.finished(name)
            if items is None:
                items = write_items(lock.path / name, cut(keys), common=k == 0)
                lock.record(name, items)
            else:
                advance(sum(sizes[key] for key in keys))
            files[name] = items
    return files


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    dtype: str | None = None,
    check: LogitsCheck | None = None,
    options: writer.WriteOptions = writer.USUAL,
) -> tuple[ModelConfig, float | None]:
    """Writes the checkpoint as a Hugging Face folder, in its dtype unless told; returns the config.

    With ``check`` it also returns what that returned for the folder, before it got its name.
    """
    checkpoint = Path(checkpoint)
    out = Path(out)
    check_out(out)
    manifest = read_manifest(checkpoint)
    config = checkpoint_config(checkpoint, manifest)
    require_tokenizer(checkpoint, config.vocab_size)
    weights = Checkpoint(checkpoint, config)
    written_as = replace(config, dtype=dtype or config.dtype)
    figure = None

    def produce(name: str) -> Iterator[Tensor]:
        return (block.to(DTYPES[written_as.dtype]) for block in weights.blocks(name, finite=options.verifies))

    def checked(written: Folder, units: Units) -> Manifest:
        """Checks the written folder before it gets its name; returns its manifest."""
        nonlocal figure
        if manifest.tensors and written_as == config:
            for name in written.tensors:
                require_units(written, name, units, manifest.tensors, f"{checkpoint / MANIFEST} was written")
        if check is not None:
            figure = check(checkpoint, config, written, out)
        return replace(manifest, config=None)

    writer.write_folder(
        out,
        written_as,
        produce,
        companions_from=checkpoint,
        manifest=checked,
        job={"export": weights.fingerprint()},
        options=options,
    )
    return written_as, figure


def _manifest(folder: Folder) -> Manifest:
    if has_manifest(folder.path):
        return read_manifest(folder.path)
    config = folder.config
    notes = ("imported from a folder without a manifest: lineage unknown", *folder.notes)
    return Manifest(family=config.model_type, kind="routed" if config.num_experts else "dense", notes=notes)


def _compare(partial: Path, out: Path, config: ModelConfig, units: Units, progress: Progress) -> None:
    """Raises unless the checkpoint gives the source's tensors back, by hash."""
    written = Checkpoint(partial, config)
    found = {}
    with progress(f"verifying {out.name}", num_parameters(config) * ITEMSIZE[config.dtype]) as advance:
        for name, shape in tensor_shapes(config).items():
            for block in hashed(name, config.dtype, shape, written.blocks(name), found):
                advance(block.nbytes)
            for unit in units_of(name, shape):
                if found[unit] != units[unit]:
                    got = f"expected hash {units[unit]}, got {found[unit]}"
                    raise BarError(f"{out}: tensor {unit!r} read back differs: {got}")
