"""Where tokens go: the mean weight each expert gets on each domain's texts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist

from megatron_bar.data.indexed import Tokens
from megatron_bar.data.packing import CutRows
from megatron_bar.models.build import LanguageModel
from megatron_bar.models.moe import Watch
from megatron_bar.parallel import cpu


@contextmanager
def watching(model: LanguageModel, watch: Watch) -> Iterator[None]:
    """Has every router of this rank's layers call ``watch(layer number, probabilities [t, E])``; layers are
    counted from 1."""
    before = model.routing
    model.route(replace(before, watch=watch))
    try:
        yield
    finally:
        model.route(before)


@torch.no_grad()
def expert_shares(
    model: LanguageModel, tokens: Tokens, *, length: int, most: int = 4096
) -> list[list[float]]:
    """Returns the mean router probability ``[layers][experts]`` over rows of at most ``length`` tokens: a row
    at least, and then no more than ``most`` tokens. Collective.

    Texts follow each other without padding, so that no padding token is counted. The model must not be spread
    over pipeline ranks.
    """
    shape = (model.shape.num_layers, model.shape.num_experts)
    total = torch.zeros(shape, dtype=torch.float64, device=cpu.device())
    count = torch.zeros(1, dtype=torch.float64, device=cpu.device())

    def watch(layer_number: int, probs: torch.Tensor) -> None:
        total[layer_number - 1] += probs.double().sum(0)
        count.add_(len(probs) / model.shape.num_layers)

    packed = CutRows("texts", tokens, min(length, len(tokens.ids) - 1))
    rows = min(max(1, most // length), len(packed))
    with watching(model, watch):
        for start in range(0, rows, 8):
            batch = packed.take(range(start, min(start + 8, rows))).to(cpu.device())
            model(batch.ids, batch.positions, labels=batch.labels)
    dist.all_reduce(total)
    dist.all_reduce(count)
    return (total / count).tolist()
