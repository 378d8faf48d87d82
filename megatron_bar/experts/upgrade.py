"""Adds, replaces or removes one expert of a merged model, by merging again from what it was merged from.

A mean cannot be inverted, so the folders or artifacts that the model's manifest names are found by their
hashes, and the result is bit-equal to a fresh merge of that set. An input that is gone can be done without
only where every input had the same shared tensors: its FFN is in the model. Router rows of the experts that
stay are kept (the trained ones are the start of the next router stage), the new expert brings its own, and
the manifest says that the router is stale. BAR's upgrades (arXiv 2604.18473) retrain one expert and the
router.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_bar.config import from_json
from megatron_bar.errors import BarError
from megatron_bar.experts.artifact import overlay
from megatron_bar.experts.inputs import Input, check_arguments, open_inputs
from megatron_bar.experts.merge import Kept, merge_inputs
from megatron_bar.experts.shared import Combination
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.hashes import folder_hash
from megatron_bar.weights.locks import check_out
from megatron_bar.weights.manifest import (
    ADOPTED,
    ANCHOR,
    ARTIFACT,
    MANIFEST,
    Manifest,
    has_manifest,
    read_manifest,
    union,
)
from megatron_bar.weights.receipts import Proven
from megatron_bar.weights.writer import USUAL, WriteOptions


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A merged or routed model, and the parents of the folders that its inputs may be."""

    folder: Folder
    manifest: Manifest
    parents: Sequence[Path]

    @classmethod
    def open(cls, path: Path | str, parents: Sequence[Path | str]) -> "Merged":
        """Opens the model in ``path``; its inputs are looked for in the subfolders of ``parents`` and of the
        model's own parent."""
        folder = Folder.open(path)
        manifest = read_manifest(path)
        if manifest.kind not in ("merged", "routed") or len(manifest.experts) != folder.config.num_experts:
            raise BarError(
                f"{path}: expected a merged model with a manifest of its experts, got kind {manifest.kind!r}"
            )
        if manifest.anchor_hash is None and manifest.stage == ADOPTED:
            raise BarError(
                f"{path}: was adopted without the branched folder of its experts: expected one to merge "
                f"again from, got none; remove {MANIFEST} and adopt it with bar adopt --of BRANCHED"
            )
        if manifest.anchor_hash is None:
            raise BarError(
                f"{path}: was made of independent dense models, with no branch to merge again from: "
                f"expected a merge of branched experts, got stage {manifest.stage}; "
                "make it anew with bar merge-dense"
            )
        missing = [expert.name for expert in manifest.experts if not expert.folder_hash]
        if missing or manifest.shared is None:
            raise BarError(
                f"{Path(path) / MANIFEST}: expected the hash of what each expert was merged from, got none"
            )
        parents = [Path(path).resolve().parent, *map(Path, parents)]
        return cls(folder=folder, manifest=manifest, parents=parents)

    @property
    def slots(self) -> dict[str, int]:
        return {expert.name: expert.index for expert in self.manifest.experts if expert.index}

    def find(self, name: str) -> Path | None:
        """Returns the folder or artifact that expert ``name`` was merged from; None where it is gone."""
        wanted = next(expert.folder_hash for expert in self.manifest.experts if expert.name == name)
        # A model merged of one expert whose shared tensors did not move has that expert's hash too.
        kinds = ("branched",) if name == ANCHOR else ("expert", ARTIFACT)
        for parent in self.parents:
            for path in sorted(parent.iterdir()) if parent.is_dir() else ():
                try:
                    manifest = read_manifest(path) if has_manifest(path) else None
                except BarError:  # somebody else's
                    continue
                if manifest is None or manifest.kind not in kinds:
                    continue
                if folder_hash(manifest.tensors) == wanted:
                    return path
        return None

    @property
    def shares_one_set(self) -> bool:
        """Whether all inputs of the merge had the same shared tensors."""
        return len({expert.shared_hash for expert in self.manifest.experts}) == 1


def add(
    model: Merged, name: str, expert: Path | str, out: Path | str, options: WriteOptions = USUAL
) -> Folder:
    """Writes the model with one more expert, in the last slot."""
    if name in model.slots:
        raise BarError(
            f"{model.folder.path}: expected no expert called {name!r} yet, got it in slot {model.slots[name]}"
        )
    return _merge_again(model, {**dict.fromkeys(model.slots), name: Path(expert)}, out, options)


def replace_expert(
    model: Merged, name: str, expert: Path | str, out: Path | str, options: WriteOptions = USUAL
) -> Folder:
    """Writes the model with another expert in the slot of ``name``."""
    _require(model, name)
    return _merge_again(model, {**dict.fromkeys(model.slots), name: Path(expert)}, out, options)


def remove(model: Merged, name: str, out: Path | str, options: WriteOptions = USUAL) -> Folder:
    """Writes the model without expert ``name``."""
    _require(model, name)
    if len(model.slots) == 1:
        raise BarError(f"{model.folder.path}: expected an expert besides {name!r} to stay, got none")
    return _merge_again(model, {other: None for other in model.slots if other != name}, out, options)


def _require(model: Merged, name: str) -> None:
    if name not in model.slots:
        raise BarError(f"{model.folder.path}: expert expected one of {', '.join(model.slots)}, got {name!r}")


def _merge_again(
    model: Merged,
    experts: dict[str, Path | None],
    out: Path | str,
    options: WriteOptions = USUAL,
) -> Folder:
    """Merges ``experts``: in slot order, each with its new folder, or None for the expert in the model."""
    check_out(out)
    shared = from_json(Combination, model.manifest.shared)
    if shared.weights:
        raise BarError(
            f"{model.folder.path}: its inputs were weighted by {shared.weights}, "
            "which says nothing of another set: make it anew with bar merge"
        )
    inputs = _inputs(model, experts, finite=options.verifies)
    stay = {name for name, path in experts.items() if path is None}
    kept = Kept(
        model=Proven.open(model.folder),
        slots={name: slot for name, slot in model.slots.items() if name in stay},
        trained=model.manifest.kind == "routed" or model.manifest.router_stale,
        ledger=tuple(cost for cost in model.manifest.ledger if cost.expert is None),
    )
    return merge_inputs(inputs, out, shared=shared, kept=kept, options=options)


def _inputs(model: Merged, experts: dict[str, Path | None], *, finite: bool) -> list[Input]:
    """Opens the branched folder and ``experts``; one that is gone is taken from the model where that can
    be."""
    base = model.find(ANCHOR)
    if base is None:
        raise BarError(f"{_not_found(model, ANCHOR)} (the branched folder)")
    paths = {name: path or model.find(name) for name, path in experts.items()}
    gone = [name for name, path in paths.items() if path is None]
    if gone and not model.shares_one_set:
        raise BarError(
            f"{_not_found(model, gone[0])}: a mean cannot be taken back, so it is needed to merge again"
        )
    there = {name: path for name, path in paths.items() if path is not None}
    if there:
        check_arguments(base, there)
    branched, *present = open_inputs(base, there, finite=finite)
    by_name = {given.name: given for given in present}
    return [branched, *(by_name.get(name) or _from_model(model, branched, name) for name in experts)]


def _not_found(model: Merged, name: str) -> str:
    expert = next(expert for expert in model.manifest.experts if expert.name == name)
    parents = ", ".join(map(str, model.parents))
    return (
        f"{model.folder.path}: {name!r} expected as a folder or artifact "
        f"with hash {expert.folder_hash} in {parents}, got none"
    )


def _from_model(model: Merged, branched: Input, name: str) -> Input:
    """Returns an expert whose own folder is gone, all of whose shared tensors are the branch's."""
    slot = model.slots[name]
    recorded = model.manifest.tensors
    units = {
        unit: recorded[unit.replace(".experts.1.", f".experts.{slot}.")] if ".experts.1." in unit else digest
        for unit, digest in branched.units.items()
    }
    lineage = replace(model.manifest.experts[slot], index=1)
    own = tuple(replace(cost, expert=None) for cost in model.manifest.ledger if cost.expert == name)
    ledger = union(branched.manifest.ledger, own)
    experts = (branched.manifest.experts[0], lineage)
    manifest = replace(branched.manifest, kind="expert", experts=experts, ledger=ledger)
    source = Proven(overlay(branched.folder, model.folder, slot), units)
    return Input(name=name, source=source, manifest=manifest)
