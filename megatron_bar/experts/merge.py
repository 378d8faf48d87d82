"""Merge: N experts that were trained apart from one branch become one FlexOlmo folder with N+1 experts.

As published (arXiv 2604.18473, stage 2): the domain FFNs and their router rows are copied to slots 1..N in the given order;
expert 0, router row 0 and every shared tensor become the uniform mean over ALL inputs, the branched folder itself included, so
each expert's shared delta is scaled by 1/(N+1). All N+1 experts are active in the result.
Where nothing moved the mean is bit-equal to the inputs: it is taken in float64, where a sum of a few equal numbers is exact.
Other ways to combine what is shared: shared.py.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from megatron_bar.errors import BarError
from megatron_bar.experts.inputs import Input, check_arguments, moved_anchor, open_inputs
from megatron_bar.experts.shared import Combination
from megatron_bar.weights.folder import Folder, Progress, silent
from megatron_bar.weights.groups import ParamGroup, classify, expert_index, with_expert
from megatron_bar.weights.hashes import folder_hash
from megatron_bar.weights.manifest import DOMAIN, Manifest, Source
from megatron_bar.weights.writer import DEFAULT_SHARD_BYTES, Verify, check_out, write_folder

MEAN = Combination()
"""As published."""


def parse_experts(arguments: Sequence[str]) -> dict[str, Path]:
    """NAME=FOLDER arguments, in order; a name given twice would lose an expert silently in a plain dict."""
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
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    verify: Verify = "weights",
    progress: Progress = silent,
) -> Folder:
    """``anchor`` is the branched folder that all ``experts`` (name -> folder, in slot order) were trained from."""
    check_out(out)
    shared.check(1 + len(experts))
    check_arguments(Path(anchor), experts)
    inputs = open_inputs(anchor, experts, progress)
    folders = [given.folder for given in inputs]
    config = folders[0].config.with_experts(len(inputs))

    def produce(name: str) -> torch.Tensor:
        group = classify(name)
        if group is ParamGroup.DOMAIN_EXPERT:
            return folders[expert_index(name)].read(with_expert(name, 1))
        if group is ParamGroup.ROUTER:
            row0 = shared(name, [folder.rows(name, 0, 1) for folder in folders])
            return torch.cat([row0, *(folder.rows(name, 1, 2) for folder in folders[1:])])
        return shared(name, [folder.read(name) for folder in folders])

    return write_folder(
        out,
        config,
        produce,
        companions_from=anchor,
        manifest=lambda written: _manifest(inputs, written, shared),
        max_shard_bytes=max_shard_bytes,
        verify=verify,
        progress=progress,
    )


def _manifest(inputs: list[Input], written: Folder, shared: Combination) -> Manifest:
    branched = inputs[0].manifest
    experts = [branched.experts[0]]
    for slot, given in enumerate(inputs[1:], start=1):
        experts.append(dataclasses.replace(given.lineage, index=slot, name=given.name))
    sources = [Source(role=given.name, name=given.folder.path.resolve().name, hash=folder_hash(given.units)) for given in inputs]
    return Manifest(
        family=written.config.family,
        kind="merged",
        stage="merge",
        anchor_hash=branched.anchor_hash,
        experts=tuple(experts),
        sources=tuple(sources),
        notes=(f"shared tensors: {shared.describe()} of {len(inputs)} folders, the anchor included", *_notes(inputs)),
    )


def _notes(inputs: list[Input]) -> Iterator[str]:
    for given in inputs[1:]:
        if given.lineage.name not in (given.name, DOMAIN):
            yield f"expert {given.name} is called {given.lineage.name} by its own manifest"
        moved = moved_anchor(inputs[0], given)
        if moved:
            yield f"expert {given.name} moved {len(moved)} of the anchor's own tensors, as only rlvr without a freeze does"
