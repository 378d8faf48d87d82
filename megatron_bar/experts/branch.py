"""Branch: two dense folders become one folder of a mixture, with an anchor and a domain expert.

Source: BAR, section "upcycling" (arXiv 2604.18473 and its released recipe). Expert 0 and everything shared
come from the post-trained model, expert 1 from a pretrained one; both experts are always active, and their
probabilities are renormalised where norms stand before the blocks (`Family.renormalised_start`; with all
active it changes nothing). With softmax over two experts and equal FFNs the branch computes exactly the dense
model, whatever the router holds.

Router rows start as N(0, 0.02) (the released recipe), as domain embeddings (the real runs), as mean hidden
states or as zeros (router_start.py). A domain embedding is the mean input embedding of a text of the domain,
scaled to a norm of 0.5, the same in every layer. Left out: FlexOlmo's embedding model for the domain texts;
the anchor's own input embedding lives in the router's space already.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch

from megatron_bar.errors import BarError
from megatron_bar.experts.choices import RouterInit
from megatron_bar.experts.router_start import router_rows
from megatron_bar.weights.folder import Folder, Progress, require_same_config, require_tokenizer
from megatron_bar.weights.groups import ParamGroup, classify, expert_index
from megatron_bar.weights.hashes import Units, anchor_hash, folder_hash
from megatron_bar.weights.locks import check_out
from megatron_bar.weights.manifest import (
    ANCHOR,
    DOMAIN,
    Expert,
    Manifest,
    SourceRecord,
    has_manifest,
    read_manifest,
    union,
)
from megatron_bar.weights.receipts import Proven
from megatron_bar.weights.writer import USUAL, WriteOptions, write_folder

_MUST_AGREE = (
    "family",
    "num_layers",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "num_kv_heads",
    "own_head_dim",
    "dtype",
)
_FROM_ANCHOR = ("vocab_size", "rope_theta", "rope_scaling", "rms_norm_eps", "max_positions")
"""Fields that may differ (the published inputs differ in the first two); a note says so."""


def branch(
    anchor: Path | str,
    domain_init: Path | str,
    out: Path | str,
    *,
    router_init: RouterInit,
    seed: int = 0,
    general_text: Path | str | None = None,
    domain_text: Path | str | None = None,
    positions: int = 0,
    options: WriteOptions = USUAL,
) -> tuple[Folder, list[str]]:
    """Branches ``anchor``; returns the folder, and notes on what differed and was taken from the anchor.

    ``positions``: the length of the longest rows it will be trained on; its config has at least as many
    positions (RoPE knows no limit).
    """
    check_out(out)
    first = _open_dense(anchor)
    second = _open_dense(domain_init)
    require_tokenizer(first.path, first.config.vocab_size)
    notes = _compare_inputs(first, second)
    row = router_rows(first, router_init, seed, general_text, domain_text)
    origins = {path: read_manifest(path) for path in (first.path, second.path) if has_manifest(path)}
    config = first.config.with_experts(2)
    if positions > config.max_positions:
        had = config.max_positions
        notes.append(f"max_positions: {positions} for the rows it will be trained on, the anchor has {had}")
        config = dataclasses.replace(config, max_positions=positions)
    sources = {
        role: Proven.open(given, finite=options.verifies)
        for role, given in (("anchor", first), ("domain_init", second))
    }

    def produce(name: str) -> Iterable[torch.Tensor]:
        if classify(name) is ParamGroup.ROUTER:
            return [torch.stack([row(name, 0), row(name, 1)]).to(getattr(torch, config.dtype))]
        expert = expert_index(name)
        if expert is None:
            return sources["anchor"].blocks(name)
        return tuple(sources.values())[expert].blocks(name.replace(f".experts.{expert}.", "."))

    def manifest(written: Folder, units: Units) -> Manifest:
        digest = anchor_hash(units)
        lineage = origins[first.path].experts if first.path in origins else ()
        return Manifest(
            family=config.model_type,
            kind="branched",
            stage="branch",
            anchor_hash=digest,
            experts=_experts(lineage, digest),
            sources=tuple(_source(role, given, options.progress) for role, given in sources.items()),
            notes=tuple(notes),
            ledger=union(*(origin.ledger for origin in origins.values())),
        )

    texts = [str(text) for text in (general_text, domain_text) if text]
    folders = [source.folder.fingerprint() for source in sources.values()]
    job = {"branch": folders, "router": [router_init, seed, *texts]}
    folder = write_folder(
        out, config, produce, companions_from=first.path, manifest=manifest, job=job, options=options
    )
    return folder, notes


def _experts(lineage: tuple[Expert, ...], digest: str) -> tuple[Expert, Expert]:
    """Returns the anchor, trained as ``lineage`` (that of the folder it came from) says, and the domain
    expert."""
    trained = lineage[0].trained if lineage else ()
    return (
        Expert(index=0, name=ANCHOR, trained=trained, anchor_hash=digest),
        Expert(index=1, name=DOMAIN, anchor_hash=digest),
    )


def _source(role: str, given: Proven, progress: Progress) -> SourceRecord:
    digest = folder_hash(given.units(progress))
    return SourceRecord(role=role, name=given.folder.name, hash=digest)


def _open_dense(path: Path | str) -> Folder:
    folder = Folder.open(path)
    if folder.config.num_experts:
        got = f"{folder.config.num_experts} experts"
        raise BarError(f"{folder.path}: branching expected a dense folder, got {got}")
    return folder


def _compare_inputs(anchor: Folder, domain_init: Folder) -> list[str]:
    require_same_config(anchor, domain_init, _MUST_AGREE)
    kept = vars(anchor.config)
    other = vars(domain_init.config)
    differ = [
        f"{name} differs: {kept[name]} is kept from the anchor, the domain init has {other[name]}"
        for name in _FROM_ANCHOR
        if kept[name] != other[name]
    ]
    return [*anchor.notes, *differ]
