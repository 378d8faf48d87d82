"""Branch-Train-Mix (arXiv 2403.07816): dense models that were trained apart, as a whole, become one
mixture.

Expert i's FFN is copied to slot i, in the given order; all else is combined: the uniform mean in BTX's paper,
or taken from one of them, as BAR's authors did in their comparison (arXiv 2604.18473; from the first of their
list, the tool-use expert). Router rows are new, from N(0, 0.02) or zeros; all experts are active, and their
probabilities are not renormalised. BTX goes on to train everything, sparsely (top 2); in BAR's comparison the
router alone is trained, like BAR's own.

No branch stands behind such a model, so it has no anchor hash, and its experts are not added, replaced or
removed: it is made again. In BAR's comparison the first of them is the post-trained anchor; `mix` takes the
base of fine-tuned models in its place.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from megatron_bar.config import to_json
from megatron_bar.errors import BarError
from megatron_bar.experts.dense_merge import combined, dense_sources, ledger, open_dense, side_by_side
from megatron_bar.experts.router_start import drawn_rows
from megatron_bar.experts.shared import MEAN, Combination
from megatron_bar.weights.folder import Folder, Progress
from megatron_bar.weights.groups import ParamGroup, classify, expert_index
from megatron_bar.weights.hf_config import ModelConfig
from megatron_bar.weights.locks import check_out
from megatron_bar.weights.manifest import (
    ANCHOR,
    Expert,
    Manifest,
    TrainingRecord,
    has_manifest,
    read_manifest,
)
from megatron_bar.weights.receipts import Proven
from megatron_bar.weights.writer import USUAL, WriteOptions, write_folder

NewRows = Literal["normal", "zero"]


def btx(
    experts: dict[str, Path | str],
    out: Path | str,
    *,
    shared: Combination = MEAN,
    shared_from: str | None = None,
    router_init: NewRows = "normal",
    seed: int = 0,
    options: WriteOptions = USUAL,
) -> Folder:
    """Mixes ``experts`` (name -> dense folder, in the order of the slots 0, 1, ...), which have one config
    and one tokenizer.

    ``shared``: how the tensors outside the FFNs are combined; the first folder is the base that deltas are
    taken from. ``shared_from``: the name of the expert whose own are taken instead. ``seed``: that of the
    router's rows.
    """
    check_out(out)
    _check_choices(experts, shared, shared_from, router_init)
    inputs = open_dense(experts, shared, finite=options.verifies)
    sources = list(inputs.values())
    first = sources[0].folder
    config = first.config.with_experts(len(inputs))
    rows = f"router rows: {router_init}, seed {seed}"

    def produce(name: str) -> Iterable[Tensor]:
        if classify(name) is ParamGroup.ROUTER:
            return [_router(name, config, first, router_init, seed)]
        slot = expert_index(name)
        if slot is not None:
            return sources[slot].blocks(name.replace(f".experts.{slot}.", "."))
        if shared_from is None:
            return combined(name, inputs, shared)
        if not options.verifies:
            return inputs[shared_from].blocks(name)
        # The others' blocks are not in the result, but are verified: its manifest names their folders.
        chosen = list(inputs).index(shared_from)
        return (blocks[chosen] for blocks in side_by_side(name, inputs))

    return write_folder(
        out,
        config,
        produce,
        companions_from=first.path,
        manifest=lambda *_: _manifest(inputs, config, shared, shared_from, rows, options.progress),
        job={
            "btx": {name: source.folder.fingerprint() for name, source in inputs.items()},
            "shared": shared_from or to_json(shared),
            "router": [router_init, seed],
        },
        options=options,
    )


def mix(
    base: Path | str,
    tuned: dict[str, Path | str],
    out: Path | str,
    *,
    shared: Combination = MEAN,
    seed: int = 0,
    options: WriteOptions = USUAL,
) -> Folder:
    """Mixes dense models that were fine-tuned from ``base`` (name -> folder, in the order of the slots 1, 2,
    ...); the base is the anchor, slot 0. Like `btx`; a copy of the base is refused, which would be no
    expert."""
    check_out(out)
    if ANCHOR in tuned:
        raise BarError(f"fine-tuned model expected another name than {ANCHOR!r}, that of the base's expert")
    inputs = {ANCHOR: base, **tuned}
    first, *others = open_dense(inputs, shared, finite=False).values()
    for other in others:
        if _is_copy(first.folder, other.folder):
            raise BarError(
                f"{other.folder.path}: expected a model that was fine-tuned from {first.folder.path}, "
                "got a copy of it"
            )
    return btx(inputs, out, shared=shared, seed=seed, options=options)


def _is_copy(left: Folder, right: Folder) -> bool:
    """Reads until the first difference, which is in one of the first tensors of a model that was trained."""
    return all(
        torch.equal(*both)
        for name in left.tensors
        for both in zip(left.chunks(name), right.chunks(name), strict=True)
    )


def _check_choices(
    experts: dict[str, Path | str], shared: Combination, shared_from: str | None, router_init: NewRows
) -> None:
    if router_init not in ("normal", "zero"):
        raise BarError(f"router init expected normal or zero, got {router_init!r}")
    if shared_from is not None and (shared_from not in experts or shared.method != MEAN.method):
        got = f"{shared_from!r} with {shared.describe()}"
        raise BarError(
            f"shared_from expected one of {', '.join(experts)} and no other way to combine, got {got}"
        )


def _manifest(
    inputs: dict[str, Proven],
    config: ModelConfig,
    shared: Combination,
    shared_from: str | None,
    rows: str,
    progress: Progress,
) -> Manifest:
    how = f"those of {shared_from}" if shared_from else f"{shared.describe()} of all"
    first = next(iter(inputs.values())).folder
    read = dense_sources(inputs, progress)
    experts = []
    for slot, (source, given) in enumerate(zip(read, inputs.values(), strict=True)):
        origin = {"folder": source.name, "folder_hash": source.hash}
        experts.append(Expert(index=slot, name=source.role, trained=_trained(given.folder), **origin))
    return Manifest(
        family=config.model_type,
        kind="merged",
        stage="btx",
        experts=tuple(experts),
        sources=read,
        ledger=ledger(inputs),
        shared=None if shared_from else to_json(shared),
        notes=(f"BTX of independent dense models; shared tensors: {how}; {rows}", *first.notes),
    )


def _trained(folder: Folder) -> tuple[TrainingRecord, ...]:
    experts = read_manifest(folder.path).experts if has_manifest(folder.path) else ()
    return experts[0].trained if experts else ()


def _router(name: str, config: ModelConfig, first: Folder, router_init: NewRows, seed: int) -> Tensor:
    """Drawn rows are as large as the norms of the ``first`` folder ask."""
    if router_init == "zero":
        rows = torch.zeros(config.num_experts, config.hidden_size)
    else:
        row = drawn_rows(first, seed)
        rows = torch.stack([row(name, number) for number in range(config.num_experts)])
    return rows.to(getattr(torch, config.dtype))
