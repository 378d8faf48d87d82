"""Merge: N experts that were trained apart from one branch become one FlexOlmo folder with N+1 experts.

As published (arXiv 2604.18473, stage 2): the domain FFNs and their router rows are copied to slots 1..N in
the given order; expert 0, router row 0 and every shared tensor become the uniform mean over ALL inputs, the
branched folder itself included, so each expert's shared delta is scaled by 1/(N+1). All N+1 experts are
active in the result. Where nothing moved the mean is bit-equal to the inputs: it is taken in float64, where a
sum of a few equal numbers is exact. Other ways to combine what is shared: shared.py.
"""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_bar.config import to_json
from megatron_bar.errors import BarError
from megatron_bar.experts.inputs import Input, check_arguments, moved_anchor, open_inputs
from megatron_bar.experts.shared import MEAN, Combination
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import ParamGroup, classify, expert_index, with_expert
from megatron_bar.weights.hashes import anchor_hash, folder_hash
from megatron_bar.weights.locks import check_out
from megatron_bar.weights.manifest import DOMAIN, Cost, Expert, Manifest, SourceRecord, union
from megatron_bar.weights.receipts import Proven
from megatron_bar.weights.writer import USUAL, WriteOptions, write_folder


def parse_experts(arguments: Sequence[str]) -> dict[str, Path]:
    """Parses NAME=FOLDER arguments, in order. Raises BarError for a name that is given twice, which would
    lose an expert silently in a plain dict."""
    experts: dict[str, Path] = {}
    for argument in arguments:
        name, sign, path = argument.partition("=")
        if not sign or not path:
            raise BarError(f"expert expected as NAME=FOLDER, got {argument!r}")
        if name in experts:
            raise BarError(f"expert {name!r} expected once, got {experts[name]} and {path}")
        experts[name] = Path(path)
    return experts


def merge(
    anchor: Path | str,
    experts: dict[str, Path | str],
    out: Path | str,
    *,
    shared: Combination = MEAN,
    options: WriteOptions = USUAL,
) -> Folder:
    """Merges ``experts`` (name -> folder, in slot order), which were all trained from the branched folder
    ``anchor``."""
    check_out(out)
    shared.check(1 + len(experts))
    check_arguments(Path(anchor), experts)
    inputs = open_inputs(anchor, experts, finite=options.verifies)
    return merge_inputs(inputs, out, shared=shared, options=options)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Router rows of a merged model that stay as they are."""

    model: Proven
    slots: dict[str, int]
    """Name of an expert -> its slot in that model."""
    trained: bool
    """Whether the router was trained since the merge: then the anchor's row stays too, and the router of the
    result is stale."""
    ledger: tuple[Cost, ...]
    """Entries of the model that belong to no expert, the cost of that training among them."""


def merge_inputs(
    inputs: list[Input],
    out: Path | str,
    *,
    shared: Combination,
    kept: Kept | None = None,
    options: WriteOptions = USUAL,
) -> Folder:
    """Merges ``inputs``: the branched folder, then the experts in slot order, as `open_inputs` checked
    them."""
    config = inputs[0].folder.config.with_experts(len(inputs))
    rows = None if kept is None else [kept.model.folder.fingerprint(), kept.slots, kept.trained]

    def produce(name: str) -> Iterable[Tensor]:
        if classify(name) is ParamGroup.DOMAIN_EXPERT:
            slot = expert_index(name)
            if slot == 1 and options.verifies:
                # The branch's domain expert is not in the result, but the manifest names the branch's hash.
                deque(inputs[0].source.blocks(name), maxlen=0)
            return inputs[slot].source.blocks(with_expert(name, 1))
        if classify(name) is ParamGroup.ROUTER:
            return [routers(name, inputs, shared, kept)]
        return combined(name, inputs, shared, prove=options.verifies)

    return write_folder(
        out,
        config,
        produce,
        companions_from=inputs[0].folder.path,
        manifest=lambda written, units: _manifest(inputs, written, shared, kept),
        job={
            "merge": {given.name: given.folder.fingerprint() for given in inputs},
            "shared": to_json(shared),
            "rows": rows,
        },
        options=options,
    )


def routers(name: str, inputs: list[Input], shared: Combination, kept: Kept | None) -> Tensor:
    """Returns the router of a merge: row 0 is combined; a domain expert brings its own row, or keeps the one
    that it has in a merged model."""
    routers = [given.source.whole(name) for given in inputs]
    rows = [shared(name, [router[:1] for router in routers]), *(router[1:2] for router in routers[1:])]
    if kept is not None:
        before = kept.model.whole(name)
        slots = [0 if kept.trained else None, *(kept.slots.get(given.name) for given in inputs[1:])]
        pairs = zip(rows, slots, strict=True)
        rows = [row if slot is None else before[slot : slot + 1] for row, slot in pairs]
    return torch.cat(rows)


def combined(name: str, inputs: list[Input], shared: Combination, *, prove: bool) -> Iterator[Tensor]:
    """Yields the combined tensor by blocks of rows. What nobody moved is copied; only ``prove`` then reads
    the others' too."""
    moved = len({given.units[name] for given in inputs}) > 1
    if not moved and not prove:
        return inputs[0].source.blocks(name)
    blocks = zip(*(given.source.blocks(name) for given in inputs), strict=True)
    if not moved:
        return (block for block, *_ in blocks)
    return shared.blocks(name, [given.folder.read(name) for given in inputs], blocks)


def _ledger(inputs: list[Input], kept: Kept | None) -> tuple[Cost, ...]:
    """Returns every entry once: the branch's, then each expert's under its name, then what the router's rows
    cost."""
    owners: dict[Cost, str | None] = dict.fromkeys(inputs[0].manifest.ledger)
    for given in inputs[1:]:
        for cost in given.manifest.ledger:
            owners.setdefault(cost, given.name)
    named = (dataclasses.replace(cost, expert=owner) for cost, owner in owners.items())
    return union(named, () if kept is None else kept.ledger)


def _manifest(inputs: list[Input], written: Folder, shared: Combination, kept: Kept | None) -> Manifest:
    branched = inputs[0].manifest
    experts = _experts(inputs)
    sources = [
        SourceRecord(role=expert.name, name=expert.folder, hash=expert.folder_hash) for expert in experts
    ]
    combined = f"shared tensors: {shared.describe()} of {len(inputs)} folders, the anchor included"
    return Manifest(
        family=written.config.model_type,
        kind="merged",
        stage="merge",
        anchor_hash=branched.anchor_hash,
        experts=experts,
        sources=tuple(sources),
        shared=to_json(shared),
        router_stale=kept is not None and kept.trained,
        ledger=_ledger(inputs, kept),
        notes=(combined, *_notes(inputs)),
    )


def _experts(inputs: list[Input]) -> tuple[Expert, ...]:
    lineages = [inputs[0].manifest.experts[0], *(given.lineage for given in inputs[1:])]
    return tuple(
        dataclasses.replace(
            lineage,
            index=slot,
            name=given.name,
            # One whose folder is gone was taken from a merged model, which knows what it was.
            folder=lineage.folder or given.folder.name,
            folder_hash=lineage.folder_hash or folder_hash(given.units),
            shared_hash=lineage.shared_hash or anchor_hash(given.units),
        )
        for slot, (given, lineage) in enumerate(zip(inputs, lineages, strict=True))
    )


def _notes(inputs: list[Input]) -> Iterator[str]:
    for given in inputs[1:]:
        if given.lineage.name not in (given.name, DOMAIN):
            yield f"expert {given.name} is called {given.lineage.name} by its own manifest"
        moved = len(moved_anchor(inputs[0], given))
        if moved:
            yield f"expert {given.name} moved {moved} of the anchor's own tensors, which its stages let train"
