"""Dense merge: N dense models of one shape become one, tensor by tensor; the cheapest baseline of BAR (arXiv
2604.18473).

A tensor becomes the mean of all of them (model soups, arXiv 2203.05482) or another `Combination`, in which
the first folder is the base that deltas are taken from. All are read by blocks of rows, and compared with
their receipts in the same pass.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from megatron_bar.config import to_json
from megatron_bar.errors import BarError, require_name
from megatron_bar.experts.inputs import require_same_tokenizer
from megatron_bar.experts.shared import MEAN, Combination
from megatron_bar.weights.folder import Folder, Progress, require_same_config, require_tokenizer
from megatron_bar.weights.hashes import folder_hash
from megatron_bar.weights.locks import check_out
from megatron_bar.weights.manifest import Cost, Manifest, SourceRecord, has_manifest, read_manifest
from megatron_bar.weights.receipts import Proven
from megatron_bar.weights.writer import USUAL, WriteOptions, write_folder


def dense_merge(
    folders: dict[str, Path | str],
    out: Path | str,
    *,
    shared: Combination = MEAN,
    options: WriteOptions = USUAL,
) -> Folder:
    """Merges ``folders`` (name -> folder), which have one config and one tokenizer; ``shared``: how every
    tensor is combined."""
    check_out(out)
    inputs = open_dense(folders, shared, finite=options.verifies)
    first = next(iter(inputs.values())).folder

    def manifest(*_) -> Manifest:
        note = f"every tensor: {shared.describe()} of {', '.join(inputs)}"
        sources = dense_sources(inputs, options.progress)
        return Manifest(
            family=first.config.model_type,
            kind="dense",
            stage="dense_merge",
            sources=sources,
            shared=to_json(shared),
            ledger=ledger(inputs),
            notes=(note, *first.notes),
        )

    return write_folder(
        out,
        first.config,
        lambda name: combined(name, inputs, shared),
        companions_from=first.path,
        manifest=manifest,
        job={
            "dense merge": {name: source.folder.fingerprint() for name, source in inputs.items()},
            "shared": to_json(shared),
        },
        options=options,
    )


def open_dense(folders: dict[str, Path | str], shared: Combination, *, finite: bool) -> dict[str, Proven]:
    """Opens ``folders``. Raises BarError unless they are at least two dense folders of one config and
    tokenizer that ``shared`` can combine, as far as headers show.

    ``finite``: values that are not finite are refused when they are read.
    """
    if len(folders) < 2:
        raise BarError(f"expected at least two models NAME=FOLDER, got {', '.join(folders) or 'none'}")
    shared.check(len(folders))
    if shared.method == "first":
        raise BarError(
            "shared: 'first' expected in a merge of branched experts only; "
            "independent ones have no base before them"
        )
    opened: dict[str, Folder] = {}
    for name, path in folders.items():
        require_name("model", name)
        folder = Folder.open(path)
        if folder.config.num_experts:
            got = f"one of {folder.config.num_experts} experts"
            raise BarError(f"{folder.path}: expected a dense folder, got {got}")
        for other, before in opened.items():
            if before.path.resolve() == folder.path.resolve():
                got = f"the same one as {other!r} and as {name!r}"
                raise BarError(f"{folder.path}: expected one folder per model, got {got}")
        opened[name] = folder
    first = next(iter(opened.values()))
    require_tokenizer(first.path, first.config.vocab_size)
    for folder in opened.values():
        require_same_config(first, folder)
        require_same_tokenizer(first.path, folder.path)
    return {name: Proven.open(folder, finite=finite) for name, folder in opened.items()}


def combined(name: str, inputs: dict[str, Proven], shared: Combination) -> Iterator[Tensor]:
    """Yields the combined tensor by blocks of rows."""
    whole = [source.folder.read(name) for source in inputs.values()]
    return shared.blocks(name, whole, side_by_side(name, inputs))


def side_by_side(name: str, inputs: dict[str, Proven]) -> Iterator[tuple[Tensor, ...]]:
    """Yields each block of rows, of all inputs together."""
    return zip(*(source.blocks(name) for source in inputs.values()), strict=True)


def dense_sources(inputs: dict[str, Proven], progress: Progress) -> tuple[SourceRecord, ...]:
    """Returns a record of every input, with the hash of its folder."""
    return tuple(
        SourceRecord(role=name, name=source.folder.name, hash=folder_hash(source.units(progress)))
        for name, source in inputs.items()
    )


def ledger(inputs: dict[str, Proven]) -> tuple[Cost, ...]:
    """Returns every entry of the inputs once; one that a single input has goes under its name."""
    owners: dict[Cost, str | None] = {}
    for name, source in inputs.items():
        path = source.folder.path
        for cost in read_manifest(path).ledger if has_manifest(path) else ():
            owners[cost] = None if cost in owners else name
    return tuple(replace(cost, expert=owner) for cost, owner in owners.items())
