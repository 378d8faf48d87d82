"""A checkpoint's Megatron model and the folder made of it in transformers: the same logits, or the first
block that differs.

Both compute in fp32 from the values that the folder holds, so one tolerance holds for bfloat16 folders too.

Legend: b batch, s sequence.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from megatron_bar.conversion.parameters import DTYPES
from megatron_bar.errors import BarError
from megatron_bar.models import torch_dist
from megatron_bar.models.build import build_model
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import ParallelConfig, distributed, set_layout
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hf_config import ModelConfig

LOGITS_TOLERANCE = 1e-5
"""Largest difference over max(1, max|logit|), and so for the output of every block."""
_ROWS = 3
_LENGTH = 16


def compare_logits(
    checkpoint: Path, config: ModelConfig, written: Folder, out: Path, *, tolerance: float = LOGITS_TOLERANCE
) -> float:
    """Returns the largest difference of the logits, relative to max(1, max|logit|); raises above
    ``tolerance``.

    ``out`` is the folder's name to be.
    """
    ids_bs = torch.randint(config.vocab_size, (_ROWS, _LENGTH), generator=torch.Generator().manual_seed(0))
    ours = _ours(checkpoint, config, written.dtype, ids_bs)
    theirs = _theirs(written.path, ids_bs)
    assert ours.keys() == theirs.keys(), (list(ours), list(theirs))
    figures = {
        block: float((theirs[block] - ours[block]).abs().max()) / _scale(theirs[block]) for block in theirs
    }
    # Only the logits decide; the other blocks say where the difference begins.
    figure = figures["lm_head"]
    if not figure <= tolerance:
        first = next(block for block, difference in figures.items() if not difference <= tolerance)
        raise BarError(
            f"{out}: logits expected within {tolerance:g} of those of transformers (relative to"
            f" {_scale(theirs['lm_head']):.3g}, in fp32), got {figure:.2g};"
            f" the first block that differs is {first}"
            f" ({figures[first]:.2g})"
        )
    return figure


def _scale(expected: Tensor) -> float:
    return max(1.0, float(expected.abs().max()))


def _watch(seen: dict[str, Tensor], blocks: dict[str, nn.Module], *, sequence_first: bool) -> None:
    """Notes the output ``[b, s, ...]`` of every block in ``seen``, in the order of the forward pass."""

    def hook(block: str):
        def note(_, __, output):
            hidden = output[0] if isinstance(output, tuple) else output
            seen[block] = (hidden.transpose(0, 1) if sequence_first else hidden).detach().cpu()

        return note

    for block, module in blocks.items():
        module.register_forward_hook(hook(block))


@torch.no_grad()
def _ours(checkpoint: Path, config: ModelConfig, dtype: str, ids_bs: Tensor) -> dict[str, Tensor]:
    layout = ParallelConfig()
    seen = {}
    with distributed():
        set_layout(layout, config, seed=0)
        loaded = build_model(config, layout)
        torch_dist.load_weights(loaded, checkpoint)
        model = build_model(replace(config, dtype="float32"), layout).eval()
        # The folder's dtype rounds first: what is compared are the values that the folder holds.
        for param, as_saved in zip(model.parameters(), loaded.parameters(), strict=True):
            # In 16 bit the vocabulary may be padded by more rows.
            param.copy_(as_saved[: len(param)].to(DTYPES[dtype]))
        del loaded
        blocks = {"embedding": model.embedding}
        blocks |= {f"layer {n}": layer for n, layer in enumerate(model.decoder.layers)}
        _watch(seen, blocks | {"final_norm": model.decoder.final_layernorm}, sequence_first=True)
        ids_bs = ids_bs.to(cpu.device())
        logits = model(ids_bs, torch.arange(ids_bs.shape[1], device=ids_bs.device).expand_as(ids_bs))
        return seen | {"lm_head": logits.cpu()}


@torch.no_grad()
def _theirs(folder: Path, ids_bs: Tensor) -> dict[str, Tensor]:
    import transformers  # here: only this check needs the library, and importing it takes seconds

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    seen: dict[str, Tensor] = {}
    blocks = {"embedding": model.model.embed_tokens}
    blocks |= {f"layer {n}": layer for n, layer in enumerate(model.model.layers)}
    _watch(seen, blocks | {"final_norm": model.model.norm, "lm_head": model.lm_head}, sequence_first=False)
    model(ids_bs)
    return seen
