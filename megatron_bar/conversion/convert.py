"""A Hugging Face folder to Megatron's torch_dist format and back, bit for bit: tensor by tensor, in one process.

A checkpoint lies in one folder: Megatron's data, manifest.json with the folder's config in it, tokenizer and generation
config, so that the way back needs nothing else. Converting moves no weight, so the manifest's lineage stays as it is.
What is written appears when it is whole and read back, and a failure leaves nothing. Any layout's checkpoint is read; what
is written has whole tensors and the true vocabulary, which every layout loads.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from megatron_bar.conversion.dist_files import Checkpoint, checkpoint_ops, require_dtype, write_checkpoint
from megatron_bar.conversion.parameters import DTYPES
from megatron_bar.errors import BarError
from megatron_bar.weights import writer
from megatron_bar.weights.claim import check_out
from megatron_bar.weights.describe import checkpoint_config
from megatron_bar.weights.folder import Folder, Progress, require_tokenizer, silent
from megatron_bar.weights.hashes import Units, config_hash, hashed, require_units, units_of
from megatron_bar.weights.hf_config import MOE, ModelConfig, num_parameters, tensor_shapes
from megatron_bar.weights.manifest import MANIFEST, Manifest, has_manifest, read_manifest
from megatron_bar.weights.receipts import Proven
from megatron_bar.weights.safetensors_io import ITEMSIZE

LogitsCheck = Callable[[Path, ModelConfig, Folder, Path], float]
"""`models.logits.compare_logits`, which needs Megatron and transformers: of a checkpoint, its config, the folder written and
the name that it will have, the largest difference of the logits over max(1, max|logit|)."""


def import_folder(source: Path, out: Path, *, verify: writer.Verify = "weights", progress: Progress = silent) -> ModelConfig:
    """Writes ``source`` as the checkpoint ``out``, and by ``verify`` reads it back; returns what it holds."""
    source, out = Path(source), Path(out)
    check_out(out)
    folder = Folder.open(source)
    require_dtype(folder.config, source)
    require_tokenizer(source, folder.config.vocab_size)
    manifest, units = _manifest(folder), Proven.open(folder).prove(progress)
    claim = writer.start(out, folder.nbytes)
    try:
        write_checkpoint(claim.path, _cut(folder, out, progress))
        if verify == "weights":
            _compare(claim.path, out, folder.config, units, progress)
        writer.copy_companions(source, claim.path)
        config = folder.config
        replace(manifest, config=config.to_hf(), tensors=units, config_hash=config_hash(config)).write(claim.path)
        claim.publish()
    except BaseException:
        claim.abort()
        raise
    return folder.config


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = writer.DEFAULT_SHARD_BYTES,
    verify: writer.Verify = "weights",
    check: LogitsCheck | None = None,
    progress: Progress = silent,
) -> tuple[ModelConfig, float | None]:
    """Writes the checkpoint as a Hugging Face folder, in the checkpoint's dtype unless told; returns what it holds.

    With ``check`` also what that returned of the folder, before it got its name.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    check_out(out)
    manifest = read_manifest(checkpoint)
    config = checkpoint_config(checkpoint, manifest)
    require_tokenizer(checkpoint, config.vocab_size)
    weights = Checkpoint(checkpoint, config)
    written_as = replace(config, dtype=dtype or config.dtype)
    figure = None

    def produce(name: str) -> Iterator[Tensor]:
        return (block.to(DTYPES[written_as.dtype]) for block in weights.blocks(name, finite=verify != "none"))

    def checked(written: Folder, units: Units) -> Manifest:
        """Called before the folder gets its name."""
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
        max_shard_bytes=max_shard_bytes,
        verify=verify,
        progress=progress,
    )
    return written_as, figure


def _manifest(folder: Folder) -> Manifest:
    if has_manifest(folder.path):
        return read_manifest(folder.path)
    kind = "routed" if folder.config.family == MOE else "dense"
    return Manifest(family=folder.config.family, kind=kind, notes=("imported from a folder without a manifest: lineage unknown",))


def _cut(folder: Folder, out: Path, progress: Progress) -> Iterator[tuple[str, Tensor]]:
    """Every key with its tensor."""
    with progress(f"writing {out.name}", folder.nbytes) as advance:
        for key, op in checkpoint_ops(folder.config).items():
            tensor = op.cut(folder.slice, 0, 1)
            yield key, tensor
            advance(tensor.nbytes)


def _compare(partial: Path, out: Path, config: ModelConfig, units: Units, progress: Progress) -> None:
    """The checkpoint gives the source's tensors back, by hash."""
    written, found = Checkpoint(partial, config), {}
    with progress(f"verifying {out.name}", num_parameters(config) * ITEMSIZE[config.dtype]) as advance:
        for name, shape in tensor_shapes(config).items():
            for block in hashed(name, config.dtype, shape, written.blocks(name), found):
                advance(block.nbytes)
            for unit in units_of(name, shape):
                if found[unit] != units[unit]:
                    raise BarError(f"{out}: tensor {unit!r} read back differs: expected hash {units[unit]}, got {found[unit]}")
