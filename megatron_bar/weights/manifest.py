"""manifest.json: a folder's receipt. What it is, its experts, where they come from, the hash of every tensor.

Written into every folder this project makes. The anchor hash is recorded at the branch and carried along
unchanged, because later stages may move the tensors it was taken from: it says which branch an expert
descends from, not what its tensors are now. Strict: an unknown, missing or ill-typed field is an error that
names it.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

import megatron_bar
from megatron_bar.errors import BarError, shown
from megatron_bar.weights.families import FAMILY_OF
from megatron_bar.weights.json_file import read_object
from megatron_bar.weights.regular import require_inside

MANIFEST = "manifest.json"
_LONGEST_TEXT = 2000
_LARGEST = 2**63
_MOST_EXPERTS = 2**10
FORMAT = "megatron_bar/1"
ARTIFACT = "artifact"
KINDS = ("dense", "branched", "expert", "merged", "routed", ARTIFACT)
ANCHOR = "anchor"
DOMAIN = "domain"
"""The names of a branch's experts. An expert keeps the second one where its training was told no other."""
ADOPTED = "adopted"
"""The stage of a folder that was not made here (experts/adopt.py)."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """A stage in an expert's life."""

    stage: str
    policy: str | None = None
    """What trained: a key of `groups.POLICIES`."""
    recipe: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    """What it learnt from: name -> hash of the tokens or tasks."""


@dataclass(frozen=True, kw_only=True)
class Expert:
    index: int
    """Global: 0 is the anchor."""
    name: str
    trained: tuple[TrainingRecord, ...] = ()
    """What trained it, in order."""
    anchor_hash: str | None = None
    """Anchor hash of the branch it was trained in."""
    folder: str | None = None
    """Name of the folder that a merge's expert came from; the anchor's came from the branched one."""
    folder_hash: str | None = None
    """Hash of that folder (`hashes.folder_hash`)."""
    shared_hash: str | None = None
    """Hash of all that the merge did not copy but combine: `hashes.anchor_hash` of that folder."""

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(training.stage for training in self.trained)


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    role: str
    """anchor, domain_init, expert, ..."""
    name: str
    """Name of the folder, not its path: paths are nobody else's business."""
    hash: str
    """Hash of the folder (`hashes.folder_hash`)."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a stage had to freeze and did not change, by the hashes of the folder it read and of the one it
    wrote."""

    policy: str
    units: int
    """Number of tensors and router rows that were frozen."""
    hash: str
    """Hash of these units, the same before and after."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a training stage took, over all its processes and interruptions. The steps that a kill undid are
    not in it."""

    step: str
    """Name of the run's step: the folder that it wrote, such as math-sft."""
    stage: str
    expert: str | None = None
    """Name of the expert whose stage it was, in a merge and what follows it; None: a stage of the dense
    models or of the router."""
    tokens: int
    """Positions trained on, padding included."""
    loss_tokens: int
    """Positions among them that had a loss."""
    generated: int
    """Tokens sampled."""
    flops: float
    """Floating-point operations, by the formulas of training/flops.py."""
    seconds: float
    """Seconds by the clock, from when the model is there to when the folder is written."""
    devices: int
    """Number of processes."""
    device: str

    def __post_init__(self):
        for name in ("tokens", "loss_tokens", "generated", "flops", "seconds", "devices"):
            value = vars(self)[name]
            if not 0 <= value < math.inf:
                raise BarError(f"{name} expected a number from 0, got {value}")


def union(*ledgers: Iterable[Cost]) -> tuple[Cost, ...]:
    """Returns every entry once, in order."""
    return tuple(dict.fromkeys(cost for ledger in ledgers for cost in ledger))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    family: str
    kind: str
    """dense, branched (two experts, untrained), expert (trained), merged (N+1 experts, or of independent
    models, with no anchor hash), routed (merged, router trained) or artifact (what an expert has that its
    branch has not)."""
    stage: str | None = None
    """The stage that wrote the folder."""
    recipe: str | None = None
    anchor_hash: str | None = None
    """Anchor hash of the branched folder that all experts started from."""
    experts: tuple[Expert, ...] = ()
    """Experts of the model; a dense folder has one, or none where its history is unknown."""
    sources: tuple[SourceRecord, ...] = ()
    notes: tuple[str, ...] = ()
    """Decisions made for the user, such as whose RoPE theta was kept."""
    tensors: dict[str, str] = field(default_factory=dict)
    """The receipts: hash of every tensor, and of every row of a router (`hashes.Units`)."""
    config_hash: str | None = None
    """`hashes.config_hash` of config.json."""
    experts_per_layer: tuple[int, ...] = ()
    """Experts that a token uses in each layer, where they differ; config.json's num_experts_per_tok is the
    largest."""
    frozen: Certificate | None = None
    """Certificate of the training stage that wrote the folder."""
    shared: dict | None = None
    """Record of how a merge combined what its inputs share: experts/shared.Combination as JSON."""
    router_stale: bool = False
    """Whether experts were added, replaced or removed since the router was trained."""
    config: dict | None = None
    """config.json's content where no config.json lies beside the manifest: in an artifact or a torch_dist
    checkpoint."""
    ledger: tuple[Cost, ...] = ()
    """Cost of every stage that went into the folder, in order."""
    tool_version: str = megatron_bar.__version__

    def __post_init__(self):
        if self.family not in FAMILY_OF:
            raise BarError(f"family expected one of {', '.join(sorted(FAMILY_OF))}, got {self.family!r}")
        if self.kind not in KINDS:
            raise BarError(f"kind expected one of {', '.join(KINDS)}, got {self.kind!r}")
        indices = [expert.index for expert in self.experts]
        if indices != list(range(len(indices))):
            raise BarError(f"experts expected with index 0, 1, ... in order, got {indices}")
        if len(indices) > _MOST_EXPERTS:
            raise BarError(f"experts expected at most {_MOST_EXPERTS}, got {len(indices)}")
        if self.kind == ARTIFACT and len(indices) != 2:
            raise BarError(f"experts expected two of an {ARTIFACT}, got {len(indices)}")

    def after(
        self,
        training: TrainingRecord,
        *,
        sources: tuple[SourceRecord, ...],
        expert: str | None = None,
        cost: Cost | None = None,
    ) -> "Manifest":
        """Returns the manifest of the folder that a training stage makes from this one; ``expert`` is the
        trained expert's name from here on."""
        kind = {"branched": "expert", "merged": "routed"}.get(self.kind, self.kind)
        trained = {"dense": 0, "expert": 1}.get(kind)  # the router belongs to no expert
        experts = list(self.experts)
        if trained is not None and trained < len(experts):
            before = experts[trained]
            record = (*before.trained, training)
            experts[trained] = dataclasses.replace(before, name=expert or before.name, trained=record)
        return Manifest(
            family=self.family,
            kind=kind,
            stage=training.stage,
            recipe=training.recipe,
            anchor_hash=self.anchor_hash,
            experts=tuple(experts),
            sources=sources,
            shared=self.shared,
            ledger=self.ledger if cost is None else (*self.ledger, cost),
        )

    @property
    def text(self) -> str:
        """What its file says."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    def write(self, folder: Path) -> None:
        (Path(folder) / MANIFEST).write_text(self.text, encoding="utf-8")


def _typed(value, kind: type, where: str):
    """Returns ``value`` if it is a ``kind``; bool is not an int, and a text is one line that can be shown."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BarError(f"{where} expected {kind.__name__}, got {value!r:.200}")
    if isinstance(value, str) and (len(value) > _LONGEST_TEXT or "\n" in value or shown(value) != value):
        raise BarError(f"{where} expected a line of at most {_LONGEST_TEXT} characters, got {value!r:.200}")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise BarError(f"{where} expected a number of at most {_LARGEST}, got a larger one")
    return value


def _fields(value, cls: type, where: str) -> dict:
    """Returns ``value`` as keyword arguments of the dataclass: no field missing that has no default, none
    surplus."""
    _typed(value, dict, where)
    missing = dataclasses.MISSING
    known = {f.name: f.default is missing and f.default_factory is missing for f in dataclasses.fields(cls)}
    for name in value:
        if name not in known:
            raise BarError(f"{where} expected only {', '.join(known)}, got {name!r}")
    for name, required in known.items():
        if required and name not in value:
            raise BarError(f"{where}: {name!r} is missing")
    return value


def _check_strings(value: dict, names: tuple[str, ...], where: str) -> None:
    for name in names:
        if value.get(name) is not None:
            _typed(value[name], str, f"{where}{name}")


def _hashes(value: dict, name: str, where: str) -> dict[str, str]:
    items = _typed(value.get(name, {}), dict, f"{where}{name}")
    return {key: _typed(item, str, f"{where}{name}[{key!r}]") for key, item in items.items()}


def _list[T](value: dict, name: str, parse: Callable[[object, str], T], where: str = "") -> tuple[T, ...]:
    items = _typed(value.get(name, []), list, f"{where}{name}")
    return tuple(parse(item, f"{where}{name}[{n}]") for n, item in enumerate(items))


def _training(value, where: str) -> TrainingRecord:
    fields = _fields(value, TrainingRecord, where)
    _typed(fields["stage"], str, f"{where}.stage")
    _check_strings(fields, ("policy", "recipe"), f"{where}.")
    return TrainingRecord(**(fields | {"data": _hashes(fields, "data", f"{where}.")}))


def _expert(value, where: str) -> Expert:
    fields = _fields(value, Expert, where)
    _typed(fields["index"], int, f"{where}.index")
    _typed(fields["name"], str, f"{where}.name")
    _check_strings(fields, ("anchor_hash", "folder", "folder_hash", "shared_hash"), f"{where}.")
    return Expert(**(fields | {"trained": _list(fields, "trained", _training, f"{where}.")}))


def _source(value, where: str) -> SourceRecord:
    fields = _fields(value, SourceRecord, where)
    for name in ("role", "name", "hash"):
        _typed(fields[name], str, f"{where}.{name}")
    return SourceRecord(**fields)


def _cost(value, where: str) -> Cost:
    fields = _fields(value, Cost, where)
    for name in ("step", "stage", "device"):
        _typed(fields[name], str, f"{where}.{name}")
    _check_strings(fields, ("expert",), f"{where}.")
    for name in ("tokens", "loss_tokens", "generated", "devices"):
        _typed(fields[name], int, f"{where}.{name}")
    for name in ("flops", "seconds"):
        _typed(fields[name], float, f"{where}.{name}")
    try:
        return Cost(**fields)
    except BarError as error:
        raise BarError(f"{where}: {error}") from None


def _frozen(value, where: str) -> Certificate | None:
    if value is None:
        return None
    fields = _fields(value, Certificate, where)
    for name, kind in (("policy", str), ("units", int), ("hash", str)):
        _typed(fields[name], kind, f"{where}.{name}")
    return Certificate(**fields)


def _parse(value: dict) -> Manifest:
    if value.get("format") != FORMAT:
        raise BarError(f"format expected {FORMAT!r}, got {value.get('format')!r}")
    items = {name: item for name, item in value.items() if name != "format"}
    fields = _fields(items, Manifest, "the manifest")
    for name in ("family", "kind", "tool_version"):
        _typed(fields.get(name), str, name)
    _check_strings(fields, ("stage", "recipe", "anchor_hash", "config_hash"), "")
    _typed(fields.get("router_stale", False), bool, "router_stale")
    for name in ("config", "shared"):
        if fields.get(name) is not None:
            _typed(fields[name], dict, name)
    parsed = {
        "experts": _list(fields, "experts", _expert),
        "sources": _list(fields, "sources", _source),
        "notes": _list(fields, "notes", lambda item, where: _typed(item, str, where)),
        "tensors": _hashes(fields, "tensors", ""),
        "ledger": _list(fields, "ledger", _cost),
        "experts_per_layer": _list(fields, "experts_per_layer", lambda item, at: _typed(item, int, at)),
        "frozen": _frozen(fields.get("frozen"), "frozen"),
    }
    return Manifest(**fields | parsed)


def has_manifest(folder: Path | str) -> bool:
    return os.path.isfile(Path(folder) / MANIFEST)  # False, too, for a path that no file can have


def read_manifest(folder: Path | str) -> Manifest:
    path = Path(folder) / MANIFEST
    require_inside(path)
    value = read_object(path, expected="a folder made by this project's tools or training")
    try:
        return _parse(value)
    except BarError as error:
        raise BarError(f"{path}: {error}") from None


def identity(folder: Path | str) -> str:
    """Hashes the folder's receipt but for its ledger: the same for a folder that was made again with the same
    bits."""
    value = read_object(Path(folder) / MANIFEST, expected="a folder made by this project's tools or training")
    kept = {name: item for name, item in value.items() if name != "ledger"}
    return blake3(json.dumps(kept, sort_keys=True).encode()).hexdigest()
