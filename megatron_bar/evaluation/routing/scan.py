"""Which layers need how many experts: how far a layer with fewer active ones moves the answers, without
training.

Measures, on held-out chats with one layer changed at a time, the Kullback-Leibler divergence of the next
token's distribution from that of all experts; then layer by layer the cheapest experts go, as long as the sum
of these stays within a tolerance, and the numbers so found are measured together. Where a model is right
about its data this is what the loss grows by on average, without the noise of the tokens that happened to
come.

Legend: n tokens of answers in a row, v vocabulary.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import read_indexed
from megatron_bar.data.mixture import prepare
from megatron_bar.data.packing import Batch, PackedRows
from megatron_bar.data.sources import Source, check
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import load_model
from megatron_bar.evaluation.validation import answers_in, held_out_rows
from megatron_bar.models.build import LanguageModel, from_layer, inputs_of_layers
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import ParallelConfig, distributed
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hf_config import show_active


@dataclass(frozen=True, kw_only=True)
class Scan:
    """In nats per token of the answers, means over the domains."""

    costs: tuple[tuple[float, ...], ...]
    """``[layers][k - 1]``: how far the distribution moves with k experts active in that layer and all in the
    others; 0 where k is all of them."""
    chosen: tuple[int, ...]
    """Number of active experts of each layer, within the tolerance."""
    together: float
    """How far it moves with the chosen numbers."""
    losses: tuple[float, float]
    """The loss with all experts active, and with the chosen numbers."""


def scan(
    model: LanguageModel,
    held_out: Sequence[PackedRows],
    *,
    tolerance: float = math.inf,
    mean: float = 1.0,
    say: Callable[[str], None] = lambda line: None,
) -> Scan:
    """Scans a model that is built with all experts active, and leaves it so; ``tolerance`` (nats per token)
    and ``mean`` as `fewest` takes them. The model must not be spread over pipeline ranks; data-parallel
    ranks share the rows out. Collective."""
    if not held_out:
        raise BarError("scan: expected held-out chats, got none")
    layers, experts = model.shape.num_layers, model.shape.num_experts
    everything = (experts,) * layers
    fewer = [
        (layer, (*everything[:layer], k, *everything[layer + 1 :]))
        for layer in range(layers)
        for k in range(1, experts)
    ]
    (_, base), *measured = _measure(model, held_out, fewer, say)
    say(f"all {experts} experts active: loss {base:.4f}")
    moved = iter(measured)
    costs = tuple((*(next(moved)[0] for _ in range(1, experts)), 0.0) for _ in range(layers))
    for layer, row in enumerate(costs, 1):
        told = ", ".join(f"{k} active {cost:.4f}" for k, cost in enumerate(row[:-1], 1))
        say(f"layer {layer} of {layers}: {told}")
    chosen = fewest(costs, tolerance=tolerance, mean=mean)
    _, (together, loss) = _measure(model, held_out, [(0, chosen)], lambda line: None)
    return Scan(costs=costs, chosen=chosen, together=together, losses=(base, loss))


def _measure(
    model: LanguageModel,
    held_out: Sequence[PackedRows],
    fewer: Sequence[tuple[int, tuple[int, ...]]],
    say: Callable[[str], None],
) -> list[tuple[float, float]]:
    """Returns divergence and loss with all experts active, then of each of ``fewer``: the first layer with
    fewer, and the numbers of active experts by layer."""
    routing = model.routing
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    rows = [(domain, number) for domain, packed in enumerate(held_out) for number in range(len(packed))]
    answers = torch.tensor([[[answers_in(packed)]] for packed in held_out], device=cpu.device())
    sums = torch.zeros(len(held_out), 1 + len(fewer), 2, dtype=torch.float64, device=cpu.device())
    for done, (domain, number) in enumerate(rows[rank::size]):
        batch = held_out[domain].take([number]).to(cpu.device())
        places = (batch.labels[0] >= 0).nonzero()[:, 0]
        labels_n1 = batch.labels[0, places, None]
        with inputs_of_layers(model) as inputs:
            all_nv = _log_probs(model, batch, places)
        likely_nv = all_nv.exp()
        sums[domain, 0, 1] -= all_nv.gather(1, labels_n1).double().sum()
        for place, (layer, active) in enumerate(fewer, 1):
            # What the layers below make of the row is the same for every number of experts.
            model.route(replace(routing, active=active))
            with from_layer(model, layer, inputs[layer]):
                fewer_nv = _log_probs(model, batch, places)
            sums[domain, place, 1] -= fewer_nv.gather(1, labels_n1).double().sum()
            sums[domain, place, 0] += (likely_nv * (all_nv - fewer_nv)).sum(dtype=torch.float64)
        model.route(routing)
        say(f"row {done * size + 1} of {len(rows)}")
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    return [(moved, loss) for moved, loss in (sums / answers).mean(0).tolist()]


@torch.no_grad()
def _log_probs(model: LanguageModel, batch: Batch, places: Tensor) -> Tensor:
    """Returns the log-probabilities ``[n, v]`` (fp32) of what follows these places of a row."""
    logits_nv = model(batch.ids, batch.positions, documents=batch.documents, keep=places).squeeze(0)
    return logits_nv.log_softmax(-1, torch.float32)


def scan_folder(
    folder: Path,
    files: Sequence[Path],
    *,
    template: str,
    tolerance: float = math.inf,
    mean: float = 1.0,
    say: Callable[[str], None],
) -> Scan:
    """Scans (`scan`) the model in ``folder`` on the chats of ``files``, a domain each, laid out by
    ``template``."""
    opened = Folder.open(folder)
    opened.with_active(max(1, opened.config.num_experts))  # a dense model has none
    if not tolerance >= 0:
        raise BarError(f"tolerance: expected nats per token, at least 0, got {tolerance}")
    if not 1 <= mean <= max(1, opened.config.num_experts):
        raise BarError(f"mean: expected 1 to {opened.config.num_experts} experts a layer, got {mean}")
    sources = [Source(path=file, kind="chat") for file in files]
    for source in sources:
        check(source, Path())
    chats = ChatFormat(load_tokenizer(folder), template)
    length = min(1024, opened.config.max_positions)
    with distributed(), tempfile.TemporaryDirectory() as cache:
        held_out = []
        for source in sources:
            tokens = read_indexed(prepare(source, Path(), chats, Path(cache), seed=0, say=say))
            held_out.append(held_out_rows(source.name, tokens, length, pad_id=chats.tokenizer.pad_id))
        model = load_model(folder, ParallelConfig(), active_experts=opened.config.num_experts)
        return scan(model, held_out, tolerance=tolerance, mean=mean, say=say)


def lines(scanned: Scan, tolerance: float) -> list[str]:
    """Returns lines that say what was chosen; ``tolerance``: infinite, if it was not chosen by that."""
    experts = len(scanned.costs[0])
    chosen = show_active(scanned.chosen)
    mean = sum(scanned.chosen) / len(scanned.chosen)
    within = f"at most {tolerance:g} nats per token by the sum: " if tolerance < math.inf else ""
    before, after = scanned.losses
    said = [
        f"{within}{chosen} (mean {mean:.2f} of {experts})",
        f"measured together: {scanned.together:.4f} nats per token; loss {after:.4f}, {after - before:+.4f}",
    ]
    if scanned.together > tolerance:
        said.append(
            "that is more than the tolerance: layers cost more together than one by one; "
            "try a smaller one, and evaluate"
        )
    return said


def fewest(
    costs: Sequence[Sequence[float]], *, tolerance: float = math.inf, mean: float = 1.0
) -> tuple[int, ...]:
    """Returns the number of active experts of each layer. Of all ways to lower a layer's number it takes the
    one that costs least per expert saved, until the sum of the costs would exceed ``tolerance`` or the mean
    of the numbers fall below ``mean``."""
    chosen = [len(row) for row in costs]
    while True:
        now = sum(row[k - 1] for row, k in zip(costs, chosen, strict=True))
        spare = sum(chosen) - mean * len(chosen)
        steps = [
            ((row[fewer - 1] - row[k - 1]) / (k - fewer), layer, fewer)
            for layer, (row, k) in enumerate(zip(costs, chosen, strict=True))
            for fewer in range(1, k)
            if now + row[fewer - 1] - row[k - 1] <= tolerance and k - fewer <= spare
        ]
        if not steps:
            return tuple(chosen)
        _, layer, fewer = min(steps)
        chosen[layer] = fewer
