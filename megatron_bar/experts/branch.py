"""Branch: two dense OLMo 2 folders become one FlexOlmo folder with an anchor and a domain expert.

Source: BAR, section "upcycling" (arXiv 2604.18473 and its released recipe). Expert 0 and everything shared
come from the post-trained model, expert 1 from a pretrained one; both experts are always active and their
probabilities are not renormalised. With softmax over two experts and equal FFNs the branch computes exactly
the dense model, whatever the router holds.

Router rows start as N(0, 0.02) (the released recipe), as domain embeddings (the real runs) or as zeros. A
domain embedding is the mean input embedding of a text of the domain, scaled to a norm of 0.5, the same in
every layer. Left out: FlexOlmo's embedding model for the domain texts; the anchor's own input embedding lives
in the router's space already.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from blake3 import blake3

from megatron_bar.data.tokenizer import load_tokenizer
from megatron_bar.errors import BarError
from megatron_bar.experts.choices import RouterInit
from megatron_bar.weights.folder import Folder, Progress, require_same_config, require_tokenizer
from megatron_bar.weights.groups import ParamGroup, classify, expert_index
from megatron_bar.weights.hashes import Units, anchor_hash, folder_hash
from megatron_bar.weights.hf_config import DENSE
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

ROUTER_STD = 0.02
EMBEDDING = "model.embed_tokens.weight"
DOMAIN_NORM = 0.5
"""Norm of a domain embedding; the published runs' router rows have norms 0.41 to 0.54."""

_MUST_AGREE = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "dtype")
_FROM_ANCHOR = ("vocab_size", "rope_theta", "rms_norm_eps", "max_positions")
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
    row = _router_rows(first, router_init, seed, general_text, domain_text)
    origins = {path: read_manifest(path) for path in (first.path, second.path) if has_manifest(path)}
    config = dataclasses.replace(first.config.with_experts(2), norm_topk_prob=False)
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
            family=config.family,
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
    if folder.config.family != DENSE:
        got = f"{folder.config.num_experts} experts"
        raise BarError(f"{folder.path}: branching expected a dense OLMo 2 folder, got {got}")
    return folder


def _compare_inputs(anchor: Folder, domain_init: Folder) -> list[str]:
    require_same_config(anchor, domain_init, _MUST_AGREE)
    kept = vars(anchor.config)
    other = vars(domain_init.config)
    return [
        f"{name} differs: {kept[name]} is kept from the anchor, the domain init has {other[name]}"
        for name in _FROM_ANCHOR
        if kept[name] != other[name]
    ]


def _router_rows(
    anchor: Folder,
    router_init: RouterInit,
    seed: int,
    general_text: Path | str | None,
    domain_text: Path | str | None,
) -> Callable[[str, int], torch.Tensor]:
    """Returns a function (router name, row) -> the row's initial value in float32. Row 0 does not depend on
    the domain, so that branches share their anchor."""
    if router_init != "domain" and (general_text or domain_text):
        raise BarError(f"texts are only used with router init 'domain', got {router_init!r}")
    if router_init == "zero":
        return lambda name, row: torch.zeros(anchor.config.hidden_size)
    if router_init == "normal":
        return lambda name, row: normal_row(anchor.config.hidden_size, f"{seed}/{name}/{row}")
    if router_init == "domain":
        if general_text is None or domain_text is None:
            raise BarError(
                "router init 'domain' expected a general text (row 0) and a domain text (row 1), "
                "got only one or none"
            )
        rows = [domain_embedding(anchor, text) for text in (general_text, domain_text)]
        return lambda name, row: rows[row]
    raise BarError(f"router init expected normal, domain or zero, got {router_init!r}")


def normal_row(width: int, key: str) -> torch.Tensor:
    """Returns ``[width]`` in fp32, drawn from N(0, `ROUTER_STD`) by ``key`` alone."""
    generator = torch.Generator().manual_seed(int.from_bytes(blake3(key.encode()).digest(7)))
    return ROUTER_STD * torch.randn(width, generator=generator)


def domain_embedding(folder: Folder, text: Path | str) -> torch.Tensor:
    """Returns the mean input embedding of the text's tokens, scaled to `DOMAIN_NORM`."""
    counts = _token_counts(folder, Path(text))
    start = 0
    mean = torch.zeros(folder.config.hidden_size, dtype=torch.float64)
    for chunk in folder.chunks(EMBEDDING):
        mean += counts[start : start + len(chunk)] @ chunk.double()
        start += len(chunk)
    if not 0 < mean.norm() < torch.inf:
        raise BarError(
            f"{folder.path}: tensor {EMBEDDING!r}: expected rows with a mean to point along for {text}, "
            f"got {mean.norm()}"
        )
    return (DOMAIN_NORM * mean / mean.norm()).float()


def _token_counts(folder: Folder, text: Path) -> torch.Tensor:
    tokenizer = load_tokenizer(folder.path)
    counts = torch.zeros(folder.config.vocab_size, dtype=torch.float64)
    try:
        with text.open(encoding="utf-8") as lines:
            for line in lines:
                ids = torch.tensor(tokenizer.encode_text(line), dtype=torch.long)
                if len(ids) and ids.max() >= len(counts):
                    expected = f"below vocab_size {len(counts)}"
                    raise BarError(f"{folder.path}: token ids expected {expected}, got {ids.max()} in {text}")
                counts += torch.bincount(ids, minlength=len(counts))
    except (OSError, UnicodeDecodeError) as error:
        raise BarError(f"{text}: not readable as UTF-8 text: {error}") from None
    if not counts.any():
        raise BarError(f"{text}: expected text, got no tokens")
    return counts
