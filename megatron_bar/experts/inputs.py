"""What a merge accepts: a branched folder and experts that were trained from it, each a lineage of its own.

Everything is checked by headers and by the receipts in the manifests, before a tensor is read. A manifest may
be wrong: the merge compares every tensor with its receipt as it reads it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.experts.artifact import open_expert
from megatron_bar.weights.folder import TOKENIZERS, Folder, require_same_config, require_tokenizer
from megatron_bar.weights.groups import POLICIES, ParamGroup
from megatron_bar.weights.hashes import Units, anchor_hash, domain_hash, is_anchors_own
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
        """Recorded hashes; the merge compares what it reads with them on the way."""
        return self.source.recorded

    @property
    def lineage(self) -> Expert:
        """Lineage of its domain expert."""
        return self.manifest.experts[1]


def check_arguments(anchor: Path, experts: dict[str, Path | str]) -> None:
    """Raises BarError unless there is an expert, every name is fit for one, and every folder is given
    once."""
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
    """Opens the branched folder and the experts, and checks all that headers and manifests can show.
    ``finite``: values that are not finite are refused when they are read."""
    base = open_branched(anchor, finite=finite)
    family = base.manifest.family
    opened = [
        (name, _two_experts(open_expert(path, base.folder)), _read_manifest(Path(path), family))
        for name, path in experts.items()
    ]
    for _, folder, manifest in opened:
        _compare_with_anchor(base.folder, base.manifest, folder, manifest)
    _refuse_one_lineage_twice([(folder, manifest.experts[1].name) for _, folder, manifest in opened])
    inputs = [base]
    for name, folder, manifest in opened:
        source = Proven(folder, receipts(folder, manifest), finite=finite)
        inputs.append(Input(name=name, source=source, manifest=manifest))
    _refuse_copies(inputs)
    for given in inputs[1:]:
        _refuse_foreign_anchor(base, given)
    return inputs


def open_branched(path: Path | str, *, finite: bool = True) -> Input:
    """Opens the branched folder; raises BarError unless its receipts are those of the branch."""
    branched = _two_experts(Folder.open(path))
    recorded = _read_manifest(Path(path), branched.config.model_type)
    if recorded.kind != "branched":
        raise BarError(
            f"{branched.path}: the anchor expected is the branched folder all experts started from, "
            f"got {recorded.kind!r}"
        )
    require_tokenizer(branched.path, branched.config.vocab_size)
    source = Proven(branched, receipts(branched, recorded), finite=finite)
    got = anchor_hash(source.recorded)
    if got != recorded.anchor_hash:
        expected = recorded.anchor_hash
        raise BarError(
            f"{branched.path}: changed since the branch: expected anchor hash {expected}, got {got}"
        )
    return Input(name=ANCHOR, source=source, manifest=recorded)


def _two_experts(folder: Folder) -> Folder:
    if folder.config.num_experts != 2:
        got = folder.config.num_experts or "a dense one"
        raise BarError(f"{folder.path}: merge expected a folder with 2 experts, got {got}")
    return folder


def _read_manifest(path: Path, family: str) -> Manifest:
    if not has_manifest(path):
        raise BarError(
            f"{path / MANIFEST}: not found; expected the manifest that bar branch writes and every training "
            f"stage "
            "carries along: branch with it and train from its folder, or take a foreign one by bar adopt"
        )
    manifest = read_manifest(path)
    if manifest.anchor_hash is None or len(manifest.experts) != 2:
        got = f"{manifest.anchor_hash} and {len(manifest.experts)}"
        raise BarError(f"{path / MANIFEST}: expected an anchor hash and 2 experts, got {got}")
    first, second = manifest.experts
    if manifest.family != family or first.name != ANCHOR or second.name == ANCHOR:
        got = f"{manifest.family} of {first.name!r} and {second.name!r}"
        raise BarError(f"{path / MANIFEST}: expected {family} of {ANCHOR!r} and a domain expert, got {got}")
    for expert in manifest.experts:
        if expert.anchor_hash != manifest.anchor_hash:
            expected = f"anchor hash {manifest.anchor_hash} of expert {expert.name!r} too"
            raise BarError(f"{path / MANIFEST}: expected {expected}, got {expert.anchor_hash}")
    return manifest


def _compare_with_anchor(branched: Folder, recorded: Manifest, folder: Folder, manifest: Manifest) -> None:
    if manifest.anchor_hash != recorded.anchor_hash:
        raise BarError(
            f"{folder.path}: foreign anchor: expected anchor hash {recorded.anchor_hash} "
            f"as recorded in {branched.path}, got {manifest.anchor_hash}"
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
    """Raises BarError unless the tokenizer's files in ``folder`` are those in ``reference``."""
    for name in TOKENIZERS:
        ours = reference / name
        theirs = folder / name
        both = ours.is_file() and theirs.is_file()
        same = ours.read_bytes() == theirs.read_bytes() if both else ours.is_file() == theirs.is_file()
        if not same:
            raise BarError(f"{theirs}: expected the same tokenizer as {ours}, got another or none")


def _refuse_one_lineage_twice(named: list[tuple[Folder, str]]) -> None:
    """Raises BarError for two stages of one expert; experts that no training named cannot be told apart and
    are left to `_refuse_copies`."""
    seen: dict[str, Folder] = {}
    for folder, name in named:
        other = seen.setdefault(name, folder)
        if other is not folder and name != DOMAIN:
            raise BarError(f"{folder.path}: expected one folder per expert, got {name!r} in {other.path} too")


def moved_anchor(branched: Input, given: Input) -> list[str]:
    """Returns the anchor's own tensors and router rows that differ in ``given``."""
    own = {unit: digest for unit, digest in branched.units.items() if is_anchors_own(unit)}
    return [unit for unit, digest in own.items() if given.units[unit] != digest]


def _refuse_foreign_anchor(branched: Input, given: Input) -> None:
    """Raises BarError where a tensor that every stage of the expert froze differs from the branch's: the
    anchor hash in its manifest says where it came from, and does not prove it."""
    moved = moved_anchor(branched, given)
    policies = [training.policy for training in given.lineage.trained]
    known = [POLICIES[policy] for policy in policies if policy in POLICIES]
    if moved and not any(ParamGroup.ANCHOR_EXPERT in policy.trains for policy in known):
        trained = " > ".join(map(str, policies)) or "none"
        raise BarError(
            f"{given.folder.path}: tensor {moved[0]!r} is the anchor's, frozen in its stages ({trained}): "
            f"expected the bits of {branched.folder.path}, got others"
        )


def _refuse_copies(inputs: list[Input]) -> None:
    """Raises BarError for two equal domain experts, the branched folder's among them: an input with that one
    is untrained."""
    seen: dict[str, Input] = {}
    for given in inputs:
        other = seen.setdefault(domain_hash(given.units), given)
        if other is not given:
            got = f"a copy of {other.name!r} as {given.name!r}"
            raise BarError(f"{given.folder.path}: expected a domain expert of its own, got {got}")
