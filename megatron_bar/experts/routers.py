"""Routers that nobody trained, and how many experts a token uses: a folder's experts with other routers or
numbers.

Rows come from the domains' own texts: the mean input embedding (as BAR initialises them, the same in every
layer) or the mean hidden state that each router sees. Softmax ignores what all rows have in common, so only
directions and scale matter; the scale is chosen by held-out text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_bar.data.indexed import Tokens
from megatron_bar.data.packing import CutRows, PackedRows
from megatron_bar.errors import BarError
from megatron_bar.evaluation.validation import mean_over
from megatron_bar.models.build import LanguageModel
from megatron_bar.parallel import cpu
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import ParamGroup, classify
from megatron_bar.weights.hashes import folder_hash
from megatron_bar.weights.hf_config import Active
from megatron_bar.weights.locks import check_out
from megatron_bar.weights.manifest import SourceRecord, has_manifest, read_manifest
from megatron_bar.weights.receipts import Proven
from megatron_bar.weights.writer import USUAL, WriteOptions, write_folder

RouterKind = Literal["zero", "copied", "embedding", "hidden"]
"""Kinds of rows: zeros (every expert alike); as they are in the folder; mean input embeddings; mean hidden
states."""
SCALES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Scales that are tried, of rows with a mean norm of 1."""


@torch.no_grad()
def untrained_rows(
    model: LanguageModel, kind: RouterKind, texts: Sequence[Tokens], *, length: int, rows: int = 64
) -> Tensor:
    """Returns router rows ``[layers, E, h]`` in fp32, of mean norm 1 in every layer (zeros stay). Collective;
    the model must not be spread over pipeline ranks.

    ``texts``: one of each expert's domain, in slot order, read in at most ``rows`` rows of ``length`` tokens.
    """
    weights = torch.stack([router.weight.detach().float() for router in model.routers()])
    if kind == "zero":
        return torch.zeros_like(weights)
    if kind == "embedding" and model.shape.block.norms == "before":
        family = model.shape.family
        raise BarError(
            f"routers: expected hidden, for those of family {family} see no embeddings, got {kind}"
        )
    if kind != "copied":
        if len(texts) != model.shape.num_experts:
            experts = model.shape.num_experts
            raise BarError(f"routers: expected a text for each of the {experts} experts, got {len(texts)}")
        means = [_means(model, text, length, rows) for text in texts]
        wanted = 0 if kind == "embedding" else slice(1, None)
        weights = torch.stack([mean[wanted].expand_as(weights[:, 0]) for mean in means], dim=1)
    return weights / weights.norm(dim=-1).mean(-1)[:, None, None].clamp_min(1e-12)


def _means(model: LanguageModel, text: Tokens, length: int, rows: int) -> Tensor:
    """Returns ``[1 + layers, h]``: on ``text``, the mean input embedding, then the mean input of each
    router."""
    size = (1 + model.shape.num_layers, model.shape.hidden_size)
    total = torch.zeros(size, dtype=torch.float64, device=cpu.device())
    count = torch.zeros(len(total), dtype=torch.float64, device=cpu.device())

    def add(index: int, x: Tensor) -> None:
        total[index] += x.flatten(0, -2).double().sum(0)
        count[index] += x.shape[:-1].numel()

    hooks = [
        router.register_forward_pre_hook(lambda r, given: add(r.layer_number, given[0]))
        for router in model.routers()
    ]
    hooks.append(model.embedding.register_forward_hook(lambda _, __, out: add(0, out)))
    packed = CutRows("texts", text, min(length, len(text.ids) - 1))
    for start in range(0, min(rows, len(packed)), 8):
        batch = packed.take(range(start, min(start + 8, rows, len(packed)))).to(cpu.device())
        model(batch.ids, batch.positions, labels=batch.labels)
    for hook in hooks:
        hook.remove()
    dist.all_reduce(total)
    dist.all_reduce(count)
    return (total / count[:, None]).float()


@torch.no_grad()
def best_scale(
    model: LanguageModel, rows: Tensor, held_out: Iterable[PackedRows], scales: Sequence[float] = SCALES
) -> tuple[float, dict[float, float]]:
    """Returns the scale of ``rows`` with the lowest mean loss over the held-out texts, and the loss of each
    scale. Leaves the model's routers as they were. Collective."""
    kept = [router.weight.clone() for router in model.routers()]
    held_out = list(held_out)
    losses = {}
    if not held_out:
        raise BarError("routers: expected held-out texts to choose the scale by, got none")
    for scale in scales if rows.any() else (0.0,):
        for router, row in zip(model.routers(), rows, strict=True):
            router.weight.copy_(scale * row)
        losses[scale] = mean_over(model, held_out)
    for router, weight in zip(model.routers(), kept, strict=True):
        router.weight.copy_(weight)
    return min(losses, key=losses.get), losses


def rewrite(
    folder: Path,
    out: Path,
    *,
    rows: Tensor | None = None,
    active: Active | None = None,
    note: str,
    options: WriteOptions = USUAL,
) -> Folder:
    """Writes the same experts with routers ``rows`` ``[layers, E, h]`` or ``active`` experts per token;
    ``note`` says how these were chosen."""
    check_out(out)
    opened = Folder.open(folder)
    if active is not None:
        opened = opened.with_active(active)
    if not opened.config.num_experts:
        raise BarError(f"{folder}: expected a model with experts, got a dense one")
    if not has_manifest(folder):
        raise BarError(f"{folder}: expected a folder with a manifest, got none; make one with bar import")
    proven = Proven.open(opened)
    manifest = read_manifest(folder)

    def produce(name: str) -> Iterable[Tensor]:
        if rows is not None and classify(name) is ParamGroup.ROUTER:
            return [rows[int(name.split(".")[2])].to(getattr(torch, opened.config.dtype)).contiguous()]
        return proven.blocks(name)

    def written(_, units):
        read = SourceRecord(role="source", name=Path(folder).resolve().name, hash=folder_hash(proven.units()))
        stale = manifest.router_stale and rows is None
        notes = (*manifest.notes, note)
        return replace(manifest, sources=(read,), notes=notes, frozen=None, router_stale=stale)

    config = opened.config
    return write_folder(out, config, produce, companions_from=folder, manifest=written, options=options)
