"""What a merge accepts: a branched folder and experts that were trained from it, each a lineage of its own.

Everything is checked by headers and by the receipts in the manifests, before a tensor is read. A manifest is
a claim: the merge compares every tensor with its receipt as it reads it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.experts.artifact import open_expert
from megatron_bar.weights.folder import TOKENIZERS, Folder, require_same_config, require_tokenizer
from megatron_bar.weights.groups import POLICIES, ParamGroup
from megatron_bar.weights.hashes import Units, anchor_hash, domain_hash, is_anchors_own
from megatron_bar.weights.hf_config import MOE
from megatron_bar.weights.manifest import (
    ANCHOR,
    ARTIFACT,
    DOMAIN,
    MANIFEST,
    Expert,
    Manifest,
    has_manifest,
    read_manifest,
)
from megatron_bar.weights.receipts import Proven, receipts


@dataclass(frozen=True, kw_only=True)
class Input:
    name: str
    source: Proven
    manifest: Manifest

    @property
    def folder(self) -> Folder:
        return self.source.folder

    @property
    def units(self) -> Units:
        """As recorded; what the merge reads is compared with it on the way."""
        return self.source.recorded

    @property
    def lineage(self) -> Expert:
        """Of its domain expert."""
        return self.manifest.experts[1]


def check_arguments(anchor: Path, experts: dict[str, Path | str]) -> None:
    if not experts:
        raise BarError("merge expected at least one expert NAME=FOLDER, got none")
    paths = {anchor.resolve(): ANCHOR}
    for name, path in experts.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name == ANCHOR:
            raise BarError(
                f"expert name expected of letters, digits, '_', '.', '-' and not {ANCHOR!r}, got {name!r}"
            )
        other = paths.setdefault(Path(path).resolve(), name)
        if other != name:
            raise BarError(
                f"{path}: expected one folder per expert, got the same one as {other!r} and as {name!r}"
            )


def open_inputs(anchor: Path | str, experts: dict[str, Path | str], *, finite: bool = True) -> list[Input]:
    """All that headers and manifests can show. ``finite``: values that are not are refused when they are
    read."""
    branched = _two_experts(Folder.open(anchor))
    recorded = _read_manifest(Path(anchor))
    if recorded.kind != "branched":
        raise BarError(
            f"{branched.path}: the anchor expected is the branched folder all experts started from, got {recorded.kind!r}"
        )
    require_tokenizer(branched.path, branched.config.vocab_size)
    opened = [(ANCHOR, branched, recorded)]
    for name, path in experts.items():
        opened.append((name, _two_experts(open_expert(path, branched)), _read_manifest(Path(path))))
    for _, folder, manifest in opened[1:]:
        _compare_with_anchor(branched, recorded, folder, manifest)
    _refuse_one_lineage_twice([(folder, manifest.experts[1].name) for _, folder, manifest in opened[1:]])
    inputs = [
        Input(name=name, source=Proven(folder, receipts(folder, m), finite=finite), manifest=m)
        for name, folder, m in opened
    ]
    found = anchor_hash(inputs[0].units)
    if found != recorded.anchor_hash:
        raise BarError(
            f"{branched.path}: changed since the branch: expected anchor hash {recorded.anchor_hash}, got {found}"
        )
    _refuse_copies(inputs)
    for given in inputs[1:]:
        _refuse_foreign_anchor(inputs[0], given)
    return inputs


def _two_experts(folder: Folder) -> Folder:
    if folder.config.num_experts != 2:
        raise BarError(
            f"{folder.path}: merge expected a FlexOlmo folder with 2 experts, got {folder.config.num_experts or 'a dense one'}"
        )
    return folder


def _read_manifest(path: Path) -> Manifest:
    if not has_manifest(path):
        raise BarError(
            f"{path / MANIFEST}: not found; expected the manifest that tools/branch_expert.py writes and every training stage"
            " carries along: branch with that tool and train from its folder"
        )
    manifest = read_manifest(path)
    if manifest.anchor_hash is None or len(manifest.experts) != 2:
        got = f"{manifest.anchor_hash} and {len(manifest.experts)}"
        raise BarError(f"{path / MANIFEST}: expected an anchor hash and 2 experts, got {got}")
    first, second = manifest.experts
    if manifest.family != MOE or first.name != ANCHOR or second.name == ANCHOR:
        got = f"{manifest.family} of {first.name!r} and {second.name!r}"
        raise BarError(f"{path / MANIFEST}: expected {MOE} of {ANCHOR!r} and a domain expert, got {got}")
    for expert in manifest.experts:
        if expert.anchor_hash != manifest.anchor_hash:
            what = f"anchor hash {manifest.anchor_hash} of expert {expert.name!r} too"
            raise BarError(f"{path / MANIFEST}: expected {what}, got {expert.anchor_hash}")
    return manifest


def _compare_with_anchor(branched: Folder, recorded: Manifest, folder: Folder, manifest: Manifest) -> None:
    if manifest.anchor_hash != recorded.anchor_hash:
        raise BarError(
            f"{folder.path}: foreign anchor: expected anchor hash {recorded.anchor_hash} as recorded in {branched.path},"
            f" got {manifest.anchor_hash}"
        )
    if manifest.kind == ARTIFACT:  # has no tokenizer and only what is not the branch's
        return
    if manifest.kind != "expert":
        raise BarError(
            f"{folder.path}: expected a trained expert of {branched.path}, got kind {manifest.kind!r}"
        )
    require_same_config(branched, folder)
    require_same_tokenizer(branched.path, folder.path)


def require_same_tokenizer(reference: Path, folder: Path) -> None:
    for name in TOKENIZERS:
        ours = reference / name
        theirs = folder / name
        if ours.is_file() != theirs.is_file() or (
            ours.is_file() and ours.read_bytes() != theirs.read_bytes()
        ):
            raise BarError(f"{theirs}: expected the same tokenizer as {ours}, got another or none")


def _refuse_one_lineage_twice(named: list[tuple[Folder, str]]) -> None:
    """Two stages of one expert; those that no training named cannot be told apart and are left to
    `_refuse_copies`."""
    seen: dict[str, Folder] = {}
    for folder, name in named:
        other = seen.setdefault(name, folder)
        if other is not folder and name != DOMAIN:
            raise BarError(f"{folder.path}: expected one folder per expert, got {name!r} in {other.path} too")


def moved_anchor(branched: Input, given: Input) -> list[str]:
    return [
        unit
        for unit, digest in branched.units.items()
        if is_anchors_own(unit) and given.units[unit] != digest
    ]


def _refuse_foreign_anchor(branched: Input, given: Input) -> None:
    """The anchor hash in a manifest says where an expert came from, not that it did: its frozen tensors show
    it."""
    moved = moved_anchor(branched, given)
    policies = [training.policy for training in given.lineage.trained]
    if moved and not any(
        policy in POLICIES and ParamGroup.ANCHOR_EXPERT in POLICIES[policy].trains for policy in policies
    ):
        trained = " > ".join(map(str, policies)) or "none"
        raise BarError(
            f"{given.folder.path}: tensor {moved[0]!r} is the anchor's, frozen in its stages ({trained}): expected the bits of"
            f" {branched.folder.path}, got others"
        )


def _refuse_copies(inputs: list[Input]) -> None:
    """The branched folder among them: with its domain expert an input is untrained."""
    seen: dict[str, Input] = {}
    for given in inputs:
        other = seen.setdefault(domain_hash(given.units), given)
        if other is not given:
            raise BarError(
                f"{given.folder.path}: expected a domain expert of its own, got a copy of {other.name!r} as {given.name!r}"
            )
