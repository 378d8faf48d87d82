"""Adopts a folder that no stage of ours made: reads all of it and gives it the manifest that it lacks.

Contents prove some things (bits that are those of the branched folder, a slot that is a known expert's, a
mean) and not others (names, stages, data). The manifest's notes begin with ``proven`` or ``said``.
The authors' RLVR froze nothing, so an expert's anchor may have moved: it is accepted where it lies near the
branch's, and a merge averages it as theirs did. The weights are never touched.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_bar.config import to_json
from megatron_bar.errors import BarError, require_name
from megatron_bar.experts.artifact import open_expert
from megatron_bar.experts.inputs import (
    Input,
    check_arguments,
    moved_anchor,
    open_branched,
    require_same_tokenizer,
)
from megatron_bar.experts.merge import combined, routers
from megatron_bar.experts.shared import MEAN
from megatron_bar.weights.folder import Folder, Progress, require_same_config, require_tokenizer, silent
from megatron_bar.weights.groups import (
    MIDTRAIN,
    RLVR,
    RLVR_HEAD_FREE,
    RLVR_OPEN,
    SFT,
    FreezePolicy,
    ParamGroup,
    classify,
    with_expert,
)
from megatron_bar.weights.hashes import (
    Units,
    anchor_hash,
    combine,
    config_hash,
    domain_hash,
    folder_hash,
    hash_tensor,
    hash_units,
    is_anchors_own,
    is_domain,
    units_of,
)
from megatron_bar.weights.manifest import (
    ADOPTED,
    ANCHOR,
    ARTIFACT,
    DOMAIN,
    MANIFEST,
    Certificate,
    Expert,
    Manifest,
    SourceRecord,
    TrainingRecord,
    has_manifest,
    read_manifest,
)
from megatron_bar.weights.receipts import Proven, receipts
from megatron_bar.weights.whole import write_whole

MOVED = 0.25
"""Norm of an anchor tensor's change over its norm, at most, for an expert of that anchor. Adam at RLVR's
learning rate of 6e-7 moves an entry by 7.2e-4 at most in 1200 updates: 4 % of weights of size 0.02, 10 % of a
published router row. Another model lies about 1.4 away."""
_NARROW_FIRST = (MIDTRAIN, SFT, RLVR_HEAD_FREE, RLVR, RLVR_OPEN)


def adopt_branched(path: Path | str, *, progress: Progress = silent) -> Manifest:
    """Gives the folder of two experts in ``path`` the manifest of a branch; what its contents show of that is
    only that it is whole."""
    folder = _open(path, experts=2)
    require_tokenizer(folder.path, folder.config.vocab_size)
    units = hash_units(folder, finite=True, progress=progress)
    digest = anchor_hash(units)
    experts = [Expert(index=n, name=name, anchor_hash=digest) for n, name in enumerate((ANCHOR, DOMAIN))]
    said = "said: the branched folder of its experts; what it was made from is unknown"
    return _write(folder, units, "branched", experts, [said], anchor_hash=digest)


def adopt_expert(
    path: Path | str, of: Path | str, name: str, *, moved: float = MOVED, progress: Progress = silent
) -> Manifest:
    """Gives the folder of two experts in ``path`` the manifest of expert ``name`` of the branched folder
    ``of``.

    ``moved``: how far the anchor's tensors may lie from the branch's, as a share of their norm.
    """
    check_arguments(Path(of), {name: path})
    folder = _open(path, experts=2)
    base = open_branched(of)
    require_same_config(base.folder, folder)
    require_same_tokenizer(base.folder.path, folder.path)
    units = hash_units(folder, finite=True, progress=progress)
    given = Input(name=name, source=Proven(folder, units), manifest=base.manifest)
    if domain_hash(units) == domain_hash(base.units):
        raise BarError(
            f"{folder.path}: expected a trained expert, got the one of {base.folder.path} as it was"
        )
    anchors = [f"proven: {_anchor_in_words(base, given, moved, rows=True)}"]
    changed = [unit for unit, digest in units.items() if digest != base.units[unit]]
    policy = next(one for one in _NARROW_FIRST if not any(map(one.freezes, changed)))
    return _write(
        folder,
        units,
        "expert",
        [base.manifest.experts[0], _lineage(name, policy, base)],
        [*anchors, _shared_in_words(units, changed), f"said: trained from {base.folder.name} as {name}"],
        anchor_hash=base.manifest.anchor_hash,
        sources=(_source("branched", base),),
        frozen=Certificate(
            policy=policy.name, units=sum(map(policy.freezes, units)), hash=combine(units, policy.freezes)
        ),
        ledger=base.manifest.ledger,
    )


def adopt_merged(
    path: Path | str,
    names: Sequence[str],
    of: Path | str | None = None,
    *,
    moved: float = MOVED,
    progress: Progress = silent,
) -> Manifest:
    """Gives the mixture in ``path`` the manifest of a merged model with experts ``names``, in slot order.

    ``of``: the branched folder of its experts; they are found beside it and beside ``path``, by their FFNs.
    Only with all of them can the model be changed by one expert.
    """
    _check_names(names)
    folder = _open(path, experts=len(names))
    require_tokenizer(folder.path, folder.config.vocab_size)
    base = None if of is None else open_branched(of)
    if base is not None:
        alike = [name for name in vars(base.folder.config) if "experts" not in name]
        require_same_config(base.folder, folder, alike)
        require_same_tokenizer(base.folder.path, folder.path)
    units = hash_units(folder, finite=True, progress=progress)
    said = f"said: the names {', '.join(names)}"
    if base is None:
        experts = [Expert(index=slot, name=name) for slot, name in enumerate(names)]
        return _write(folder, units, "routed", experts, [f"{said}; what it was merged from is unknown"])
    given = Input(name="merged", source=Proven(folder, units), manifest=base.manifest)
    notes = [f"proven: {_anchor_in_words(base, given, moved, rows=False)}"]
    found = _find_experts(folder, units, base, names)
    notes += [_slot_in_words(slot, name, found.get(name)) for slot, name in enumerate(names) if slot]
    inputs = [base, *found.values()]
    known = len(inputs) == len(names)
    mean = _compare_with_mean(folder, units, inputs) if known else None
    return _write(
        folder,
        units,
        "merged" if mean is not None and mean.untrained_router else "routed",
        [_slot(slot, name, base if slot == 0 else found.get(name), base) for slot, name in enumerate(names)],
        [*notes, *(() if mean is None else mean.notes), said],
        anchor_hash=base.manifest.anchor_hash,
        sources=tuple(_source(given.name, given) for given in inputs),
        shared=to_json(MEAN) if mean is not None and mean.holds else None,
    )


def _open(path: Path | str, *, experts: int) -> Folder:
    if has_manifest(path):
        kind = read_manifest(path).kind
        raise BarError(
            f"{Path(path) / MANIFEST}: expected none yet to adopt the folder, got one of kind {kind!r}"
        )
    folder = Folder.open(path)
    if folder.config.num_experts != experts:
        got = folder.config.num_experts or "a dense model"
        raise BarError(f"{folder.path}: expected a mixture of {experts} experts, got {got}")
    return folder


def _check_names(names: Sequence[str]) -> None:
    if len(names) < 2 or names[0] != ANCHOR:
        raise BarError(f"names expected {ANCHOR!r} and then those of the experts, got {', '.join(names)!r}")
    for name, count in Counter(names).items():
        require_name("expert", name)
        if count > 1:
            raise BarError(f"names expected once each, got {name!r} {count} times")


def _write(
    folder: Folder, units: Units, kind: str, experts: Iterable[Expert], notes: list[str], **fields
) -> Manifest:
    """Writes the manifest beside the weights, whole or not at all."""
    whole = f"proven: all {len(folder.tensors)} tensors are there, of config.json's shapes, and finite"
    made = Manifest(
        family=folder.config.model_type,
        kind=kind,
        stage=ADOPTED,
        experts=tuple(experts),
        notes=(whole, *notes),
        tensors=units,
        config_hash=config_hash(folder.config),
        experts_per_layer=folder.config.experts_per_layer,
        **fields,
    )
    write_whole(folder.path / MANIFEST, made.text)
    return made


def _source(role: str, given: Input) -> SourceRecord:
    return SourceRecord(role=role, name=given.folder.name, hash=folder_hash(given.units))


def _lineage(name: str, policy: FreezePolicy, base: Input) -> Expert:
    """Returns the record of an expert whose stages nobody knows: one, by the narrowest policy that explains
    what moved."""
    trained = (TrainingRecord(stage=ADOPTED, policy=policy.name),)
    return Expert(index=1, name=name, trained=trained, anchor_hash=base.manifest.anchor_hash)


def _anchor_in_words(base: Input, given: Input, limit: float, *, rows: bool) -> str:
    """Says what the anchor's own tensors are; ``rows``: its router rows too. Raises BarError where one lies
    further than ``limit`` from the branch's."""
    own = [unit for unit in base.units if is_anchors_own(unit) and (rows or "[" not in unit)]
    what = "the anchor's FFNs and router rows" if rows else "the anchor's FFNs"
    furthest, most = "", 0.0
    moved = [unit for unit in moved_anchor(base, given) if unit in own]
    for unit in moved:
        distance = _distance(_unit(given.source, unit), _unit(base.source, unit))
        if not distance <= limit:
            raise BarError(
                f"{given.folder.path}: tensor {unit!r} is the anchor's: expected within {limit:g} of that of "
                f"{base.folder.path}, as far as training moves it, got {distance:.3g} (of another base?)"
            )
        furthest, most = (unit, distance) if distance >= most else (furthest, most)
    if not moved:
        return f"{what} are those of {base.folder.name}, bit for bit"
    return (
        f"{len(moved)} of {len(own)} tensors of {what} moved from {base.folder.name}, {furthest} furthest, "
        f"by {most:.2g} of its norm; a merge averages them"
    )


def _unit(source: Proven, unit: str) -> Iterator[torch.Tensor]:
    """Yields a tensor, or the row of a router that ``unit`` names, by blocks of rows."""
    name, _, row = unit.partition("[")
    return iter([source.whole(name)[int(row[:-1])]]) if row else source.blocks(name)


def _distance(ours: Iterable[torch.Tensor], theirs: Iterable[torch.Tensor]) -> float:
    """Returns the norm of the difference over the norm of ``theirs``."""
    difference = norm = 0.0
    for one, other in zip(ours, theirs, strict=True):
        difference += float((one.double() - other.double()).square().sum())
        norm += float(other.double().square().sum())
    return (difference / norm) ** 0.5 if norm else float("inf") if difference else 0.0


def _shared_in_words(units: Units, changed: list[str]) -> str:
    shared = [unit for unit in units if not is_domain(unit) and not is_anchors_own(unit)]
    groups = Counter(classify(unit) for unit in set(shared).intersection(changed))
    counts = ", ".join(f"{group} {groups[group]}" for group in ParamGroup if groups[group])
    moved = f"proven: {groups.total()} of {len(shared)} shared tensors moved"
    return f"{moved} ({counts})" if counts else moved


def _find_experts(folder: Folder, units: Units, base: Input, names: Sequence[str]) -> dict[str, Input]:
    """Returns the experts of the branch, by the names of the slots whose FFNs are theirs bit for bit."""
    parents = dict.fromkeys(path.resolve().parent for path in (folder.path, base.folder.path))
    ffn = [name for name in base.folder.tensors if classify(name) is ParamGroup.DOMAIN_EXPERT]
    slots = {
        tuple(units[with_expert(tensor, slot)] for tensor in ffn): name
        for slot, name in enumerate(names)
        if slot
    }
    found = {}
    for path in (path for parent in parents for path in sorted(parent.iterdir())):
        try:
            manifest = read_manifest(path) if has_manifest(path) else None
        except BarError:  # somebody else's
            continue
        known = manifest is not None and manifest.kind in ("expert", ARTIFACT)
        if known and manifest.anchor_hash == base.manifest.anchor_hash:
            name = slots.get(tuple(manifest.tensors.get(name, "") for name in ffn))
            if name is not None and name not in found:
                opened = open_expert(path, base.folder)
                source = Proven(opened, receipts(opened, manifest))
                found[name] = Input(name=name, source=source, manifest=manifest)
    return {name: found[name] for name in names if name in found}


def _slot_in_words(slot: int, name: str, given: Input | None) -> str:
    if given is None:
        return f"said: expert {slot} is {name}; no folder with its FFNs was found"
    return f"proven: expert {slot}, {name}, has the FFNs of {given.folder.name}, bit for bit"


def _slot(slot: int, name: str, given: Input | None, base: Input) -> Expert:
    digest = base.manifest.anchor_hash
    if given is None:
        return Expert(index=slot, name=name, anchor_hash=digest)
    return Expert(
        index=slot,
        name=name,
        trained=given.manifest.experts[min(slot, 1)].trained,
        anchor_hash=digest,
        folder=given.folder.name,
        folder_hash=folder_hash(given.units),
        shared_hash=anchor_hash(given.units),
    )


@dataclass(frozen=True, kw_only=True)
class _Mean:
    holds: bool
    """Whether anchor and shared tensors are the inputs' mean, to the rounding of their dtype."""
    untrained_router: bool
    """Whether the router is the one that the merge makes."""
    notes: tuple[str, ...]


def _compare_with_mean(folder: Folder, units: Units, inputs: list[Input]) -> _Mean:
    """Makes the merge of ``inputs`` again, tensor by tensor, and compares ``folder`` with it."""
    differ: dict[str, float] = {}
    trained = False
    for name, info in folder.tensors.items():
        group = classify(name)
        if group is ParamGroup.ROUTER:
            rows = routers(name, inputs, MEAN, None)
            made = [hash_tensor(folder.dtype, row.shape, [row]) for row in rows]
            trained = trained or made != [units[unit] for unit in units_of(name, rows.shape)]
        elif group is not ParamGroup.DOMAIN_EXPERT:
            if hash_tensor(folder.dtype, info.shape, combined(name, inputs, MEAN, prove=True)) != units[name]:
                mean = combined(name, inputs, MEAN, prove=False)
                differ[name] = _distance(folder.chunks(name), mean)
    furthest = max(differ, key=differ.get, default="")
    most = differ.get(furthest, 0.0)
    # A sum in the dtype itself rounds once per input.
    holds = most <= len(inputs) * torch.finfo(getattr(torch, folder.dtype)).eps
    worst = f"{furthest} by {most:.2g} of its norm"
    of_all = f"the mean of {', '.join(given.folder.name for given in inputs)}"
    if not differ:
        note = f"anchor and shared tensors are {of_all}, bit for bit"
    elif holds:
        note = f"anchor and shared tensors are {of_all}, up to rounding ({worst})"
    else:
        note = f"{len(differ)} anchor and shared tensors are not {of_all} ({worst})"
    router = "was trained since the merge" if trained else "is the merge's, bit for bit"
    notes = (f"proven: {note}", f"proven: the router {router}")
    return _Mean(holds=holds, untrained_router=not trained, notes=notes)
