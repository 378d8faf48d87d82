"""Which layers need how many experts: what each layer loses with fewer active ones, without training.

Measures the loss on held-out chats with one layer changed at a time; then layer by layer the cheapest experts
go, as long as the sum of what they cost stays within a tolerance, and the numbers so found are measured
together.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_bar.data.chat import ChatFormat
from megatron_bar.data.indexed import read_indexed
from megatron_bar.data.mixture import prepare
from megatron_bar.data.packing import PackedRows
from megatron_bar.data.sources import Source, check
from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import load_model
from megatron_bar.evaluation.validation import mean_over
from megatron_bar.models.build import LanguageModel
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
    tolerance: float,
    say: Callable[[str], None] = lambda line: None,
) -> Scan:
    """Scans a model that is built with all experts active, and leaves it so. ``tolerance``: nats per token.
    Collective."""
    layers = model.shape.num_layers
    experts = model.shape.num_experts
    if not held_out:
        raise BarError("scan: expected held-out chats, got none")
    everything = (experts,) * layers

    def loss(active: tuple[int, ...]) -> float:
        before = model.routing
        model.route(replace(before, active=active))
        mean = mean_over(model, held_out)
        model.route(before)
        return mean

    base = loss(everything)
    say(f"all {experts} experts active: {base:.4f}")
    costs = []
    for layer in range(layers):
        row = [loss((*everything[:layer], k, *everything[layer + 1 :])) - base for k in range(1, experts)]
        costs.append((*row, 0.0))
        told = ", ".join(f"{k} active {cost:+.4f}" for k, cost in enumerate(row, 1))
        say(f"layer {layer + 1} of {layers}: {told}")
    chosen = fewest(costs, tolerance)
    return Scan(all_active=base, costs=tuple(costs), chosen=chosen, loss=loss(chosen))


def scan_folder(
    folder: Path, files: Sequence[Path], *, template: str, tolerance: float, say: Callable[[str], None]
) -> Scan:
    """Scans (`scan`) the model in ``folder`` on the chats of ``files``, a domain each, laid out by
    ``template``."""
    opened = Folder.open(folder)
    opened.with_active(max(1, opened.config.num_experts))  # a dense model has none
    if tolerance < 0:
        raise BarError(f"tolerance: expected nats per token, at least 0, got {tolerance}")
    sources = [Source(path=file, kind="chat") for file in files]
    for source in sources:
        check(source, Path())
    chats = ChatFormat(load_tokenizer(folder), template)
    length = min(1024, opened.config.max_positions)
    with distributed(), tempfile.TemporaryDirectory() as cache:
        held_out = []
        for source in sources:
            tokens = read_indexed(prepare(source, Path(), chats, Path(cache), seed=0, say=say))
            held_out.append(PackedRows([(source.name, tokens)], length, pad_id=chats.tokenizer.pad_id))
        model = load_model(folder, ParallelConfig(), active_experts=opened.config.num_experts)
        return scan(model, held_out, tolerance=tolerance, say=say)


def lines(scanned: Scan, tolerance: float) -> list[str]:
    """Returns lines that say what was chosen."""
    experts = len(scanned.costs[0])
    chosen = show_active(scanned.chosen)
    mean = sum(scanned.chosen) / len(scanned.chosen)
    more = scanned.loss - scanned.all_active
    said = [
        f"at most {tolerance:g} nats per token more by the sum: {chosen} (mean {mean:.2f} of {experts})",
        f"measured together: {scanned.loss:.4f}, {more:+.4f}",
    ]
    if more > tolerance:
        said.append(
            "that is more than the tolerance: layers cost more together than one by one; "
            "try a smaller one, and evaluate"
        )
    return said


def fewest(costs: Sequence[Sequence[float]], tolerance: float) -> tuple[int, ...]:
    """Returns the number of active experts of each layer. Of all ways to lower a layer's number it takes the
    one that costs least per expert saved, until the sum of the costs would exceed ``tolerance``."""
    chosen = [len(row) for row in costs]
    while True:
        now = sum(row[k - 1] for row, k in zip(costs, chosen, strict=True))
        steps = [
            ((row[fewer - 1] - row[k - 1]) / (k - fewer), layer, fewer)
            for layer, (row, k) in enumerate(zip(costs, chosen, strict=True))
            for fewer in range(1, k)
            if now + row[fewer - 1] - row[k - 1] <= tolerance
        ]
        if not steps:
            return tuple(chosen)
        _, layer, fewer = min(steps)
        chosen[layer] = fewer
