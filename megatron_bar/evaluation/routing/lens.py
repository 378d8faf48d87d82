"""The routing lens: the router's weights for every token of a text, and their compact form that the report
holds."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

from megatron_bar.errors import BarError
from megatron_bar.evaluation.routing.shares import watching
from megatron_bar.models.build import LanguageModel
from megatron_bar.parallel import cpu
from megatron_bar.report.report import DIGITS, Lens, LensText
from megatron_bar.weights.manifest import has_manifest, read_manifest

MOST_DIGITS = 2_000_000
"""Most digits of single layers in a lens, so that the page stays below 3 MB."""
CONTEXT = 8
"""Tokens before one that its text may depend on (a word's leading space, the bytes of one character)."""


@torch.no_grad()
def token_weights(model: LanguageModel, ids: Sequence[int]) -> torch.Tensor:
    """Returns the router's probabilities ``[tokens, layers, experts]`` (fp32, on the CPU) for one text,
    before any are left out. Collective.

    Every rank of the model brings the same ``ids`` and gets the whole. Raises BarError for a dense model, one
    that is spread over pipeline ranks, no token, or more tokens than the model has positions.
    """
    shape = model.shape
    tensor = model.layout.tensor
    if not shape.num_experts:
        raise BarError("routing: expected a model with experts, got a dense one")
    if model.layout.pipeline > 1:
        raise BarError(f"routing: expected a model on 1 pipeline rank, got {model.layout.pipeline}")
    # Sequence parallelism cuts the text evenly; what is appended is behind every token that is asked for.
    padded = [*ids, *[0] * (-len(ids) % tensor)]
    if not ids or len(ids) > shape.max_positions:
        raise BarError(
            f"text: expected 1 to {shape.max_positions} tokens (the model's positions), got {len(ids)}"
        )
    seen: dict[int, torch.Tensor] = {}

    def watch(layer_number: int, probs: torch.Tensor) -> None:
        whole = (
            gather_from_sequence_parallel_region(probs, group=model.pg_collection.tp) if tensor > 1 else probs
        )
        seen[layer_number] = whole[: len(ids)].float().cpu()

    batch = torch.tensor([padded], device=cpu.device())
    positions = torch.arange(len(padded), device=cpu.device())[None]
    first = torch.zeros(1, dtype=torch.long, device=cpu.device())
    with watching(model, watch):
        model(batch, positions, keep=first)  # no logits are wanted, and one position's is the least
    return torch.stack([seen[layer] for layer in sorted(seen)], dim=1)


def show(
    model: LanguageModel,
    texts: Iterable[tuple[str, Sequence[int]]],
    tokenizer,
    experts: Sequence[str],
    *,
    most_digits: int = MOST_DIGITS,
) -> Lens:
    """Returns a lens on ``texts``, (domain, ids) each; ``experts``: their names in slot order. Collective,
    like `token_weights`.

    Single layers that would take more than ``most_digits`` are left out.
    """
    routed = [(domain, ids, token_weights(model, ids)) for domain, ids in texts]
    layered = sum(weights.numel() for _, _, weights in routed) <= most_digits
    return Lens(
        experts=tuple(experts),
        layers=model.shape.num_layers,
        texts=tuple(
            LensText(
                domain=domain,
                tokens=token_texts(tokenizer, ids),
                weights=digits(weights.mean(1), 2),
                by_layer=digits(weights, 1) if layered else "",
            )
            for domain, ids, weights in routed
        ),
    )


def digits(weights: torch.Tensor, places: int) -> str:
    """Returns fractions, flattened and rounded, as numbers of ``places`` digits in base 64
    (report.DIGITS)."""
    values = np.rint(weights.double().flatten().numpy() * (64**places - 1)).astype(np.int64)
    columns = [values // 64**place % 64 for place in reversed(range(places))]
    return np.frombuffer(DIGITS.encode(), np.uint8)[np.stack(columns, 1)].tobytes().decode()


def token_texts(tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    """Returns what each token adds to the text, and the name of a special token. Where several tokens spell
    one character, all but the last add nothing."""
    names = {number: name for name, number in tokenizer.special.items()}
    texts = []
    before = []
    open_ = []
    for number in ids:
        if number in names:
            texts.append(names[number])
            before = []
            open_ = []
            continue
        open_.append(number)
        text = tokenizer.decode(before + open_)
        if text.endswith("\ufffd") and len(open_) < 4:  # the bytes of a character in UTF-8
            texts.append("")
            continue
        texts.append(text[len(tokenizer.decode(before)) :])
        before = [*before, *open_][-CONTEXT:]
        open_ = []
    return tuple(texts)


def expert_names(folder: Path, experts: int) -> tuple[str, ...]:
    """Returns the names of a model folder's ``experts``, from its manifest; numbers where it has none."""
    names = tuple(expert.name for expert in read_manifest(folder).experts) if has_manifest(folder) else ()
    return names if len(names) == experts else tuple(f"expert {number}" for number in range(experts))
