"""Where sampling and training part though their weights are the same: the first layer that the cache changes.

Legend: t tokens, h hidden, 1 a batch of one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

from megatron_bar.models.build import LanguageModel, evaluating
from megatron_bar.models.passes import through_stages
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import gather_objects


def union(mine: list) -> list:
    """Returns what any rank brings, each item once, in the order of the ranks. Collective."""
    return list(dict.fromkeys(item for theirs in gather_objects(mine) for item in theirs))


@torch.no_grad()
def worst_layer(model: LanguageModel, ids: list[int]) -> str:
    """Says where a pass token by token through the cache leaves the pass over all of ``ids``. Collective."""
    first = model.decoder.layers[0].layer_number
    with _outputs(model) as seen_th, evaluating(model):
        _pass_whole(model, ids)
        expected_th = [parts.pop()[: len(ids)] for parts in seen_th]
        _pass_by_token(model, ids)
    # Of the rows that fill a pass up the first counts: they are all of the same token.
    found_th = [torch.stack([rows[0] for rows in parts]) for parts in seen_th]
    differences = [
        (first + number - 1, ((found - expected).norm() / expected.norm()).item())
        for number, (found, expected) in enumerate(zip(found_th, expected_th, strict=True))
    ]
    layers = sorted(union(differences))
    rounding = 100 * torch.finfo(model.config.params_dtype).eps
    largest = max(layers, key=lambda pair: pair[1])
    layer, by = next((pair for pair in layers if pair[1] > rounding), largest)
    return f"with the cache, model.layers.{layer} is the first to differ, by {by:.1g} of its output"


@contextmanager
def _outputs(model: LanguageModel) -> Iterator[list[list[Tensor]]]:
    """Collects what each layer of this rank puts out, a tensor ``[t, h]`` for every pass."""
    seen_th: list[list[Tensor]] = [[] for _ in model.decoder.layers]

    def collect(number: int):
        def hook(_, __, out) -> None:
            hidden = out[0] if isinstance(out, tuple) else out
            whole = gather_from_sequence_parallel_region(hidden) if model.config.sequence_parallel else hidden
            seen_th[number].append(whole[:, 0].float())

        return hook

    hooks = [
        layer.register_forward_hook(collect(number)) for number, layer in enumerate(model.decoder.layers)
    ]
    try:
        yield seen_th
    finally:
        for hook in hooks:
            hook.remove()


def _pass_whole(model: LanguageModel, ids: list[int]) -> None:
    # Filled up to what sequence parallelism can cut: attention is causal, so what comes behind changes
    # nothing.
    tensor = parallel_state.get_tensor_model_parallel_world_size()
    ids_1t = torch.tensor([ids + [ids[-1]] * (-len(ids) % tensor)], device=cpu.device())
    through_stages(model, ids_1t, torch.arange(ids_1t.shape[1], device=cpu.device())[None])


def _pass_by_token(model: LanguageModel, ids: list[int]) -> None:
    # For the same reason each token is as many rows as there are tensor ranks.
    tensor = parallel_state.get_tensor_model_parallel_world_size()
    cache = model.new_cache(rows=tensor, max_length=len(ids))
    for position, token in enumerate(ids):
        ids_1t = torch.full((1, tensor), token, device=cpu.device())
        through_stages(model, ids_1t, torch.full((1, tensor), position, device=cpu.device()), cache=cache)
