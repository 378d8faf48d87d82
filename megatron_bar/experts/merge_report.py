"""What experts did to the tensors that they share, before a merge averages it: distances, directions and
conflicts of every tensor.

A merge keeps what the experts agree on and loses what they do in opposite directions; the router cannot bring
that back. The report covers every shared tensor and the anchor's own, and sums up by layer.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_bar.experts.artifact import open_expert
from megatron_bar.experts.shared import Disagreement, disagreement
from megatron_bar.weights.folder import Folder, Progress, silent
from megatron_bar.weights.groups import ParamGroup, classify

OPPOSED = -0.1
"""Cosine below which two deltas oppose each other; above, it is noise around a right angle."""


def measure(
    anchor: Path | str, experts: dict[str, Path | str], *, progress: Progress = silent
) -> dict[str, Disagreement]:
    """Returns the disagreement on every shared tensor, and on the anchor's own (its FFN and router row);
    ``anchor`` is the branched folder."""
    branched = Folder.open(anchor)
    folders = [branched, *(open_expert(path, branched) for path in experts.values())]
    names = [name for name in branched.tensors if classify(name) is not ParamGroup.DOMAIN_EXPERT]
    by_tensor = {}
    with progress("comparing experts", sum(branched.tensors[name].nbytes for name in names)) as advance:
        for name in names:
            if classify(name) is ParamGroup.ROUTER:
                by_tensor[f"{name}[0]"] = disagreement([folder.rows(name, 0, 1) for folder in folders])
            else:
                by_tensor[name] = disagreement([folder.read(name) for folder in folders])
            advance(branched.tensors[name].nbytes)
    return by_tensor


def at_risk(tensor: Disagreement) -> bool:
    """Returns whether two experts oppose each other, or the mean keeps less than it would of deltas at right
    angles."""
    movers = sum(norm > 0 for norm in tensor.moved)
    opposed = any(cosine < OPPOSED for cosine in tensor.cosines.values())
    return opposed or (movers > 1 and tensor.kept < (1 + OPPOSED) / math.sqrt(movers))


def markdown(by_tensor: dict[str, Disagreement], experts: Sequence[str]) -> str:
    """Returns a table by layer, a table by tensor, and how to read them."""
    layers: dict[str, list[Disagreement]] = {}
    for name, tensor in by_tensor.items():
        layer = re.search(r"layers\.(\d+)\.", name)
        layers.setdefault(f"layer {layer[1]}" if layer else "outside the layers", []).append(tensor)
    flagged = sum(map(at_risk, by_tensor.values()))
    moved = sum(any(tensor.moved) for tensor in by_tensor.values())
    lines = [
        "# Merge report",
        "",
        f"{moved} of {len(by_tensor)} shared tensors were moved by an expert; {flagged} are at risk.",
        "",
        "Moved: the norm of an expert's delta (its tensor less the branch's) over the tensor's norm, "
        "in percent. Cosine: between",
        "deltas, the lowest pair. Conflicts: entries that one expert raised and another lowered, "
        "of those that two moved. Kept:",
        "the norm of the mean delta over the mean norm; deltas at right angles keep 1/sqrt(experts). "
        "At risk (!): a cosine below",
        f"{OPPOSED:g}, or less kept than at right angles: averaging undoes what the experts learnt there.",
        "",
        *_table("", [(name, _together(parts)) for name, parts in layers.items()], experts),
        "",
        *_table("tensor", list(by_tensor.items()), experts),
    ]
    return "\n".join(lines) + "\n"


def _table(head: str, rows: list[tuple[str, Disagreement]], experts: Sequence[str]) -> list[str]:
    heads = [head, *(f"moved by {name}" for name in experts), "cosine", "conflicts", "kept", ""]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name, row in rows:
        moved = [f"{100 * norm:.3g}" for norm in row.moved]
        cosine = f"{min(row.cosines.values()):.2f}" if row.cosines else ""
        cells = [name, *moved, cosine, f"{row.conflicts:.0%}", f"{row.kept:.2f}"]
        lines.append(f"| {' | '.join(cells)} | {'!' if at_risk(row) else ''} |")
    return lines


def _together(parts: list[Disagreement]) -> Disagreement:
    """Returns the means over tensors; that of a cosine is over the tensors that both experts moved."""

    def mean(values) -> float:
        return float(torch.tensor(list(values), dtype=torch.float64).mean())

    pairs = {pair for part in parts for pair in part.cosines}
    movers = [part for part in parts if any(part.moved)] or parts
    return Disagreement(
        moved=tuple(mean(part.moved[n] for part in parts) for n in range(len(parts[0].moved))),
        cosines={pair: mean(part.cosines[pair] for part in parts if pair in part.cosines) for pair in pairs},
        conflicts=mean(part.conflicts for part in movers),
        kept=mean(part.kept for part in movers),
    )
