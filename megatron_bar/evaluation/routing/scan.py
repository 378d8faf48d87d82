"""Which layers need how many experts: what each layer loses with fewer active ones, without training.

Measures the loss on held-out chats with one layer changed at a time; then layer by layer the cheapest experts
go, as long as the sum of what they cost stays within a tolerance, and the numbers so found are measured
together.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import read_indexed
from megatron_bar.data.mixture import prepare
from megatron_bar.data.packing import PackedRows
from megatron_bar.data.sources import Source, check
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import load_model
from megatron_bar.evaluation.validation import answers_in, held_out_rows, mean_over, summed_loss
from megatron_bar.models.build import LanguageModel, from_layer, inputs_of_layers
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import ParallelConfig, distributed
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hf_config import show_active


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Losses in nats per token, means over the domains."""

    all_active: float
    """Loss with all experts active."""
    costs: tuple[tuple[float, ...], ...]
    """``[layers][k - 1]``: what is lost with k experts active in that layer and all in the others; 0 where k
    is all of them."""
    chosen: tuple[int, ...]
    """Number of active experts of each layer, within the tolerance."""
    loss: float
    """Loss with the chosen numbers."""


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
    routing = model.routing
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    rows = [(domain, number) for domain, packed in enumerate(held_out) for number in range(len(packed))]
    answers = torch.tensor([[answers_in(packed)] for packed in held_out], device=cpu.device())
    # Of each domain the loss with all experts, then with fewer in one layer.
    sums = torch.zeros(len(held_out), 1 + len(fewer), dtype=torch.float64, device=cpu.device())
    for turn in range(0, len(rows), size):
        # Ranks share experts, so that all take as many rows; what is over is taken again and not counted.
        counts = turn + rank < len(rows)
        domain, number = rows[(turn + rank) % len(rows)]
        batch = held_out[domain].take([number]).to(cpu.device())
        with inputs_of_layers(model) as inputs:
            found = [summed_loss(model, batch)]
        for layer, active in fewer:
            # What the layers below make of the row is the same for every number of experts.
            model.route(replace(routing, active=active))
            with from_layer(model, layer, inputs[layer]):
                found.append(summed_loss(model, batch))
        model.route(routing)
        sums[domain] += counts * torch.tensor(found, device=sums.device)
        say(f"row {turn + 1} of {len(rows)}")
    dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
    base, *means = (sums / answers).mean(0).tolist()
    say(f"all {experts} experts active: {base:.4f}")
    costs = []
    for layer in range(layers):
        row = [loss - base for (where, _), loss in zip(fewer, means, strict=True) if where == layer]
        costs.append((*row, 0.0))
        told = ", ".join(f"{k} active {cost:+.4f}" for k, cost in enumerate(row, 1))
        say(f"layer {layer + 1} of {layers}: {told}")
    chosen = fewest(costs, tolerance=tolerance, mean=mean)
    model.route(replace(routing, active=chosen))
    loss = mean_over(model, held_out)
    model.route(routing)
    return Scan(all_active=base, costs=tuple(costs), chosen=chosen, loss=loss)


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
    more = scanned.loss - scanned.all_active
    within = f"at most {tolerance:g} nats per token more by the sum: " if tolerance < math.inf else ""
    said = [
        f"{within}{chosen} (mean {mean:.2f} of {experts})",
        f"measured together: {scanned.loss:.4f}, {more:+.4f}",
    ]
    if more > tolerance:
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
