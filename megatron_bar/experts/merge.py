"""Merge: N experts that were trained apart from one branch become one FlexOlmo folder with N+1 experts.

As published (arXiv 2604.18473, stage 2): the domain FFNs and their router rows are copied to slots 1..N in the given order;
expert 0, router row 0 and every shared tensor become the uniform mean over ALL inputs, the branched folder itself included, so
each expert's shared delta is scaled by 1/(N+1). All N+1 experts are active in the result.
Where nothing moved the mean is bit-equal to the inputs: it is taken in float64, where a sum of a few equal numbers is exact.
Left out: weighted and sign-aware means; one of those is a function of the inputs' tensors and a line in `SHARED`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_bar.errors import BarError
from megatron_bar.weights.folder import TOKENIZERS, Folder, Progress, require_same_config, require_tokenizer, silent
from megatron_bar.weights.groups import ParamGroup, classify, expert_index, with_expert
from megatron_bar.weights.hashes import Units, anchor_hash, domain_hash, folder_hash, hash_units
from megatron_bar.weights.manifest import MANIFEST, Expert, Manifest, Source, has_manifest, read_manifest
from megatron_bar.weights.writer import DEFAULT_SHARD_BYTES, Verify, check_out, write_folder

_ROWS = 1024


def mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Uniform, accumulated in float64 by blocks of rows; ``tensors`` may be lazy views of files."""
    result = torch.empty_like(tensors[0])
    for start in range(0, len(result), _ROWS):
        rows = slice(start, start + _ROWS)
        total = tensors[0][rows].double()
        for tensor in tensors[1:]:
            total += tensor[rows]
        result[rows] = total / len(tensors)
    return result


SHARED: dict[str, Callable[[Sequence[torch.Tensor]], torch.Tensor]] = {"mean": mean}
"""How anchor and shared tensors are combined; the first tensor is the branched folder's, the others the experts' in order."""


@dataclass(frozen=True, kw_only=True)
class _Input:
    name: str
    folder: Folder
    manifest: Manifest
    units: Units


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
    shared: str = "mean",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    verify: Verify = "weights",
    progress: Progress = silent,
) -> Folder:
    """``anchor`` is the branched folder that all ``experts`` (name -> folder, in slot order) were trained from."""
    check_out(out)
    if shared not in SHARED:
        raise BarError(f"shared expected one of {', '.join(SHARED)}, got {shared!r}")
    _check_arguments(Path(anchor), experts)
    inputs = _open_inputs(anchor, experts, progress)
    folders = [given.folder for given in inputs]
    config = folders[0].config.with_experts(len(inputs))

    combine = SHARED[shared]

    def produce(name: str) -> torch.Tensor:
        group = classify(name)
        if group is ParamGroup.DOMAIN_EXPERT:
            return folders[expert_index(name)].read(with_expert(name, 1))
        if group is ParamGroup.ROUTER:
            row0 = combine([folder.rows(name, 0, 1) for folder in folders])
            return torch.cat([row0, *(folder.rows(name, 1, 2) for folder in folders[1:])])
        return combine([folder.read(name) for folder in folders])

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


def _manifest(inputs: list[_Input], written: Folder, shared: str) -> Manifest:
    branched = inputs[0].manifest
    experts = [branched.experts[0]]
    for slot, given in enumerate(inputs[1:], start=1):
        stages = given.manifest.experts[1].stages
        experts.append(Expert(index=slot, name=given.name, stages=stages, anchor_hash=given.manifest.anchor_hash))
    sources = [Source(role=given.name, name=given.folder.path.resolve().name, hash=folder_hash(given.units)) for given in inputs]
    return Manifest(
        family=written.config.family,
        kind="merged",
        stage="merge",
        anchor_hash=branched.anchor_hash,
        experts=tuple(experts),
        sources=tuple(sources),
        notes=(f"shared tensors: {shared} of {len(inputs)} folders, the anchor included",),
    )


def _check_arguments(anchor: Path, experts: dict[str, Path | str]) -> None:
    if not experts:
        raise BarError("merge expected at least one expert NAME=FOLDER, got none")
    paths = {anchor.resolve(): "anchor"}
    for name, path in experts.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name == "anchor":
            raise BarError(f"expert name expected of letters, digits, '_', '.', '-' and not 'anchor', got {name!r}")
        other = paths.setdefault(Path(path).resolve(), name)
        if other != name:
            raise BarError(f"{path}: expected one folder per expert, got the same one as {other!r} and as {name!r}")


def _open_inputs(anchor: Path | str, experts: dict[str, Path | str], progress: Progress) -> list[_Input]:
    """All checks, the cheap ones on every folder before the first byte is hashed."""
    opened = [(name, _open_two_experts(path), _read_manifest(Path(path))) for name, path in {"anchor": anchor, **experts}.items()]
    _, branched, recorded = opened[0]
    if recorded.kind != "branched":
        raise BarError(
            f"{branched.path}: the anchor expected is the branched folder all experts started from, got {recorded.kind!r}"
        )
    require_tokenizer(branched.path)
    for _, folder, manifest in opened[1:]:
        _compare_with_anchor(branched, recorded, folder, manifest)
    inputs = []
    for name, folder, manifest in opened:
        units = hash_units(folder, finite=True, progress=progress)
        inputs.append(_Input(name=name, folder=folder, manifest=manifest, units=units))
    found = anchor_hash(inputs[0].units)
    if found != recorded.anchor_hash:
        raise BarError(f"{branched.path}: changed since the branch: expected anchor hash {recorded.anchor_hash}, got {found}")
    _refuse_copies(inputs[1:])
    return inputs


def _open_two_experts(path: Path | str) -> Folder:
    folder = Folder.open(path)
    if folder.config.num_experts != 2:
        raise BarError(
            f"{path}: merge expected a FlexOlmo folder with 2 experts, got {folder.config.num_experts or 'a dense one'}"
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
    return manifest


def _compare_with_anchor(branched: Folder, recorded: Manifest, folder: Folder, manifest: Manifest) -> None:
    if manifest.anchor_hash != recorded.anchor_hash:
        raise BarError(
            f"{folder.path}: foreign anchor: expected anchor hash {recorded.anchor_hash} as recorded in {branched.path},"
            f" got {manifest.anchor_hash}"
        )
    require_same_config(branched, folder)
    for name in TOKENIZERS:
        ours, theirs = branched.path / name, folder.path / name
        if ours.is_file() != theirs.is_file() or (ours.is_file() and ours.read_bytes() != theirs.read_bytes()):
            raise BarError(f"{theirs}: expected the same tokenizer as {ours}, got another or none")


def _refuse_copies(experts: list[_Input]) -> None:
    seen: dict[str, _Input] = {}
    for given in experts:
        other = seen.setdefault(domain_hash(given.units), given)
        if other is not given:
            raise BarError(
                f"{given.folder.path}: expected a domain expert of its own, got a copy of {other.name!r} as {given.name!r}"
            )
