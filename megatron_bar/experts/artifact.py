"""One expert as a small folder: its FFNs, its routers, and the shared tensors that its training changed,
verbatim.

A two-expert folder of BAR 7B is 23 GB, nearly all of it the branch's; what an expert adds is 9 GB after
mid-training. The manifest is the two-expert folder's own, with the hashes of ALL its tensors: so with the
branched folder the artifact stands for the whole one, bit for bit, and it is refused where it does not.

With a rank it stands for a folder near to the expert (low_rank.py), whose hashes are then in the manifest.
"""

import dataclasses
from pathlib import Path

from megatron_bar.errors import BarError
from megatron_bar.evaluation.results import scores_beside
from megatron_bar.experts import low_rank
from megatron_bar.weights.card import write_card
from megatron_bar.weights.folder import Folder, read_tensors
from megatron_bar.weights.groups import ParamGroup, classify
from megatron_bar.weights.hashes import folder_hash, hash_units, units_of
from megatron_bar.weights.hf_config import ModelConfig
from megatron_bar.weights.manifest import ARTIFACT, MANIFEST, Manifest, read_manifest
from megatron_bar.weights.receipts import Proven, receipts
from megatron_bar.weights.writer import (
    USUAL,
    WriteOptions,
    lock_files,
    plan_shards,
    verify_units,
    write_files,
    write_index,
)

_ALWAYS = {ParamGroup.DOMAIN_EXPERT, ParamGroup.ROUTER}
"""Groups that are kept even where they equal the branch's: another branch of the same anchor may have started
from others."""


def extract(
    expert: Path | str,
    base: Path | str,
    out: Path | str,
    *,
    rank: int | None = None,
    options: WriteOptions = USUAL,
) -> Manifest:
    """Writes what ``expert``, a two-expert folder that was trained from the branched folder ``base``, adds to
    it; with ``rank`` its matrices in that rank (low_rank.py)."""
    if rank is not None and rank < 1:
        raise BarError(f"rank expected at least 1, got {rank}")
    folder = Folder.open(expert)
    branched = Folder.open(base)
    manifest = read_manifest(folder.path)
    origin = read_manifest(branched.path)
    if manifest.kind != "expert" or origin.kind != "branched" or manifest.anchor_hash != origin.anchor_hash:
        raise BarError(
            f"{folder.path}: expected a trained expert of the branched folder {branched.path} "
            f"(anchor hash {origin.anchor_hash}), "
            f"got kind {manifest.kind!r} (anchor hash {manifest.anchor_hash})"
        )
    units = receipts(folder, manifest)
    before = receipts(branched, origin)
    names = [
        name for name in folder.tensors if classify(name) in _ALWAYS or _differs(folder, name, units, before)
    ]
    source = Proven(folder, units)
    small = [] if rank is None else low_rank.compressible(names, folder, rank)
    plan = plan_shards(
        folder.config, folder.dtype, options.max_shard_bytes, only=set(names).difference(small)
    )
    job = {"extract": [folder.fingerprint(), branched.fingerprint(), rank]}
    with lock_files(out, folder.config, plan, job=job) as lock:
        written = write_files(lock, folder.config, plan, source.blocks, progress=options.progress)
        write_index(lock.path, folder.config, plan)
        made = dataclasses.replace(manifest, kind=ARTIFACT, config=folder.config.to_hf())
        if small:
            nbytes = sum(folder.tensors[name].nbytes for name in small)
            with options.progress(f"rank {rank} of {folder.path.name}", nbytes) as advance:
                low_rank.write_factors(lock.path, small, folder, branched, rank, advance)
            near = low_rank.LowRank(lock.path, branched, {}, low_rank.read_factors(lock.path))
            units = units | hash_units(near, small, finite=True, progress=options.progress)
            note = f"{len(small)} matrices are a difference of rank {rank} from the branched folder's"
            made = dataclasses.replace(made, tensors=units, notes=(*made.notes, note))
        made.write(lock.path)
        scores = None if small else scores_beside(folder.path, folder_hash(units))
        write_card(lock.path, folder.config, made, folder.path, scores=scores)
        if options.verifies:
            verify_units(open_artifact(lock.path, branched), written, options.progress)
        lock.publish()
    return made


def _differs(folder: Folder, name: str, left: dict[str, str], right: dict[str, str]) -> bool:
    return any(left[unit] != right.get(unit) for unit in units_of(name, folder.tensors[name].shape))


def open_artifact(path: Path | str, base: Folder) -> Folder:
    """Opens the two-expert folder that the artifact and the branched folder are together. Reads headers and
    manifests only."""
    path = Path(path)
    manifest = read_manifest(path)
    if manifest.kind != ARTIFACT or manifest.config is None:
        raise BarError(f"{path / MANIFEST}: expected kind {ARTIFACT!r} with a config, got {manifest.kind!r}")
    config = ModelConfig.from_hf(manifest.config, source=f"{path / MANIFEST}: config")
    if config != base.config:
        expected = vars(base.config)
        name, got = next((name, value) for name, value in vars(config).items() if value != expected[name])
        raise BarError(f"{path}: {name} expected {expected[name]} as in {base.path}, got {got}")
    own, dtypes = read_tensors(path, config)
    for name, info in own.items():
        if name not in base.tensors or info.shape != base.tensors[name].shape or dtypes[name] != base.dtype:
            known = base.tensors.get(name)
            expected = f"{base.dtype} {list(known.shape)}" if known else "no such tensor"
            raise BarError(
                f"{info.file}: tensor {name!r}: expected {expected}, got {dtypes[name]} {list(info.shape)}"
            )
    before = receipts(base, read_manifest(base.path))
    whole = Folder(path, config, base.tensors | own)
    if low_rank.is_low_rank(path):
        whole = low_rank.LowRank(path, base, own, low_rank.read_factors(path))
        own |= {name: whole.tensors[name] for name in whole.factors}
    for name in base.tensors:
        if name not in own and (classify(name) in _ALWAYS or _differs(base, name, manifest.tensors, before)):
            raise BarError(
                f"{path}: tensor {name!r} expected, for it is not that of {base.path}; got no such tensor"
            )
    return whole


def open_expert(path: Path | str, base: Folder) -> Folder:
    """Opens a two-expert folder, whole or as an artifact of ``base``."""
    return open_artifact(path, base) if is_artifact(path) else Folder.open(path)


def is_artifact(path: Path | str) -> bool:
    return (Path(path) / MANIFEST).is_file() and read_manifest(path).kind == ARTIFACT


def overlay(base: Folder, merged: Folder, slot: int) -> Folder:
    """Returns a two-expert folder with the domain expert in ``slot`` of a merged one and all else as in
    ``base``."""
    own = {}
    for name in base.tensors:
        if classify(name) is ParamGroup.DOMAIN_EXPERT:
            key = name.replace(".experts.1.", f".experts.{slot}.")
            own[name] = merged.tensors[key]
    return Folder(merged.path, base.config, base.tensors | own)
