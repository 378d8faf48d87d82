"""A Hugging Face folder to Megatron's torch_dist format and back, bit for bit, on any layout.

A checkpoint lies in one folder: Megatron's data, manifest.json with the folder's config in it, tokenizer and generation
config, so that the way back needs nothing else. Converting moves no weight, so the manifest's lineage stays as it is.
Every function is collective; what it writes appears when it is whole and read back, and a failure leaves nothing.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from blake3 import blake3
from megatron.core import parallel_state

from megatron_bar.errors import BarError
from megatron_bar.models import torch_dist
from megatron_bar.models.build import LanguageModel, build_model
from megatron_bar.models.olmo2 import DTYPES
from megatron_bar.models.shards import load_folder, save_folder
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import ParallelConfig, is_rank_zero, on_rank_zero, set_layout, share_error
from megatron_bar.weights import writer
from megatron_bar.weights.describe import checkpoint_config
from megatron_bar.weights.folder import Folder, Progress, require_tokenizer, silent
from megatron_bar.weights.hf_config import MOE, ModelConfig
from megatron_bar.weights.manifest import Manifest, has_manifest, read_manifest
from megatron_bar.weights.safetensors_io import tensor_bytes

Verify = Literal["none", "weights", "logits"]
LOGITS_TOLERANCE = 1e-5
"""Times max(1, max|logit|). Both models compute in fp32 from the weights as written, so it holds for bfloat16 folders too."""


def import_folder(source: Path, out: Path, *, layout: ParallelConfig, progress: Progress = silent) -> None:
    """Writes ``source`` as the checkpoint ``out``, and reads it back."""
    source, out = Path(source), Path(out)
    on_rank_zero(partial(_check_source, source, out, progress))
    folder = Folder.open(source)
    model = _new_model(folder.config, layout)
    load_folder(model, folder)
    beside = on_rank_zero(partial(writer.start, out, folder.nbytes))
    try:
        before = _hashes(model)
        torch_dist.save_weights(model, beside)
        torch_dist.load_weights(model, beside)
        share_error(_difference(before, _hashes(model), out))
        on_rank_zero(partial(_publish_checkpoint, beside, out, folder))
    except BaseException:
        if is_rank_zero():
            writer.abort(beside)
        raise


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    layout: ParallelConfig,
    dtype: str | None = None,
    max_shard_bytes: int = writer.DEFAULT_SHARD_BYTES,
    verify: Verify = "weights",
    progress: Progress = silent,
) -> float | None:
    """Writes the checkpoint as a Hugging Face folder, in the checkpoint's dtype unless told.

    With ``verify`` "logits": the largest difference from transformers' logits over max(1, max|logit|), on rank 0.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    manifest, config = on_rank_zero(partial(_read_checkpoint, checkpoint, out))
    model = _new_model(config, layout)
    torch_dist.load_weights(model, checkpoint)
    dtype, figure, logits = dtype or config.dtype, None, None
    if verify == "logits":
        ids = torch.randint(config.vocab_size, (3, 16 * layout.tensor), generator=torch.Generator().manual_seed(0))
        logits = _logits(_as_written(model, dtype), ids.to(cpu.device()))

    def checked(written: Folder) -> Manifest:
        """Called on rank 0 before the folder gets its name."""
        nonlocal figure
        if logits is not None:
            figure = _compare_logits(written, out, ids, logits.cpu())
        return replace(manifest, config=None)

    save_folder(
        model,
        out,
        companions_from=checkpoint,
        manifest=checked,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        verify="none" if verify == "none" else "weights",
        progress=progress if is_rank_zero() else silent,
    )
    return figure


def _check_source(source: Path, out: Path, progress: Progress) -> None:
    """Everything that can be refused before anything is written."""
    writer.check_out(out)
    folder = Folder.open(source)
    require_tokenizer(source, folder.config.vocab_size)
    if has_manifest(source):
        read_manifest(source)
    folder.check_finite(progress)


def _publish_checkpoint(beside: Path, out: Path, folder: Folder) -> None:
    writer.copy_companions(folder.path, beside)
    replace(_manifest(folder), config=folder.config.to_hf()).write(beside)
    writer.publish(beside, out.resolve())


def _manifest(folder: Folder) -> Manifest:
    if has_manifest(folder.path):
        return read_manifest(folder.path)
    kind = "routed" if folder.config.family == MOE else "dense"
    return Manifest(family=folder.config.family, kind=kind, notes=("imported from a folder without a manifest: lineage unknown",))


def _read_checkpoint(checkpoint: Path, out: Path) -> tuple[Manifest, ModelConfig]:
    writer.check_out(out)
    manifest = read_manifest(checkpoint)
    config = checkpoint_config(checkpoint, manifest)
    require_tokenizer(checkpoint, config.vocab_size)
    torch_dist.read_metadata(checkpoint)
    return manifest, config


def _new_model(config: ModelConfig, layout: ParallelConfig) -> LanguageModel:
    layout.check(config, dist.get_world_size())
    set_layout(layout, seed=0)
    return build_model(config, layout).eval()


def _hashes(model: LanguageModel) -> dict[str, str]:
    """Of every parameter of this rank, by its folder names."""
    pairs = zip(model.parameters(), model.weight_ops().values(), strict=True)
    return {", ".join(op.names): blake3(tensor_bytes(param)).hexdigest() for param, op in pairs}


def _difference(before: dict[str, str], after: dict[str, str], out: Path) -> BarError | None:
    for name, digest in before.items():
        if after[name] != digest:
            return BarError(f"{out}: tensor {name} read back differs: expected hash {digest}, got {after[name]}")
    return None


def _as_written(model: LanguageModel, dtype: str) -> LanguageModel:
    """A model that computes in fp32 with the values that a folder of ``dtype`` holds."""
    twin = build_model(replace(model.shape, dtype="float32"), model.layout).eval()
    with torch.no_grad():
        for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            ours.copy_(theirs.to(DTYPES[dtype]))
    return twin


@torch.no_grad()
def _logits(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    """``[b, s, vocab_size]`` on every rank."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    if not model.pre_process:
        hidden = torch.empty(ids.shape[1] // model.layout.tensor, len(ids), model.shape.hidden_size, device=ids.device)
        dist.recv(hidden, src=parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(hidden)
    out = model(ids, positions)
    if not model.post_process:
        dist.send(out.contiguous(), dst=parallel_state.get_pipeline_model_parallel_next_rank())
        out = torch.empty(*ids.shape, model.shape.vocab_size, device=ids.device)
    out = out.contiguous()
    dist.broadcast(out, src=dist.get_world_size() - 1)  # Megatron counts pipeline ranks slowest: it is on the last one
    return out


def _compare_logits(written: Folder, out: Path, ids: torch.Tensor, logits: torch.Tensor) -> float:
    import transformers  # here: only this check needs the library, and importing it takes seconds

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        written.path, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    with torch.no_grad():
        expected = model(ids).logits
    scale = max(1.0, float(expected.abs().max()))
    figure = float((expected - logits).abs().max()) / scale
    if not figure <= LOGITS_TOLERANCE:
        raise BarError(
            f"{out}: logits expected within {LOGITS_TOLERANCE:g} of those of transformers (relative to {scale:.3g}, in fp32),"
            f" got {figure:.2g}"
        )
    return figure
