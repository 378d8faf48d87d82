"""What is measured beside a recipe's own model, as values: baselines, ablations, upgrades, sweeps, and the
claims they speak to.

A model is named by the step that makes its folder; ``final@2`` is that model with 2 active experts,
``final@5,2,2`` by layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from megatron_bar.data.sources import Source
from megatron_bar.errors import BarError, require_name
from megatron_bar.experts.routers import SCALES, RouterKind
from megatron_bar.experts.shared import Combination
from megatron_bar.weights.hf_config import Active

PUBLISHED = "arXiv 2604.18473"
"""The publication of BAR."""
ACTIVE = "@"
"""Between a model and how many of its experts are active."""


@dataclass(frozen=True, kw_only=True)
class MergeSpec:
    """A folder made of others."""

    name: str
    inputs: dict[str, str]
    """Expert's name -> the step whose folder it is, in slot order."""
    how: Literal["bar", "dense", "btx"]
    """bar: experts of one branch beside its anchor (experts/merge.py). dense: dense models become their mean
    (experts/dense_merge.py). btx: dense models become a mixture, the first of them expert 0 (experts/btx.py).
    """
    shared: Combination = field(default_factory=Combination)
    shared_from: str | None = None
    """Input of btx whose shared tensors are taken as they are."""
    rank: int | None = None
    """Rank of what bar keeps of each expert's training (experts/low_rank.py); None: all of it."""
    routers: str | None = None
    """The step whose trained routers it gets; None: those that the experts bring."""

    def __post_init__(self):
        require_name("merge", self.name)
        if self.shared_from is not None and (self.how != "btx" or self.shared_from not in self.inputs):
            raise BarError(
                f"merge {self.name}: shared_from expected one of btx's inputs, got {self.shared_from} with "
                f"{self.how}"
            )
        small = self.rank is not None or self.routers is not None
        if small and (self.how != "bar" or (self.rank is not None and self.rank < 1)):
            raise BarError(
                f"merge {self.name}: rank and routers expected of bar alone, and a rank from 1, got rank "
                f"{self.rank} and routers {self.routers} with {self.how}"
            )
        least = 1 if self.how == "bar" else 2
        if len(self.inputs) < least:
            raise BarError(f"merge {self.name}: expected at least {least} inputs, got {len(self.inputs)}")

    def describe(self) -> str:
        shared = f"from {self.shared_from}" if self.shared_from else self.shared.describe()
        rank = f" in rank {self.rank}" if self.rank else ""
        routers = f"; routers of {self.routers}" if self.routers else ""
        return f"{self.how} of {', '.join(self.inputs.values())}{rank}; shared {shared}{routers}"

    @property
    def experts(self) -> int:
        """Returns how many experts the model has that it makes; 0: dense."""
        return {"bar": len(self.inputs) + 1, "btx": len(self.inputs), "dense": 0}[self.how]


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """A merged model with routers that nobody trained (experts/routers.py), their scale chosen on held-out
    chats."""

    name: str
    source: str
    """The step whose folder it is made from."""
    kind: RouterKind
    texts: tuple[Source, ...] = ()
    """Texts of each expert's domain in slot order; for embedding and hidden."""
    validation: tuple[Source, ...]
    scales: tuple[float, ...] = SCALES

    def __post_init__(self):
        require_name("router", self.name)
        if not self.validation or not self.scales:
            raise BarError(f"router {self.name}: expected held-out chats and scales to choose from, got none")
        if (self.kind in ("embedding", "hidden")) != bool(self.texts):
            raise BarError(
                f"router {self.name}: texts expected for embedding and hidden alone, got {len(self.texts)} "
                f"for {self.kind}"
            )

    def describe(self) -> str:
        return (
            f"{self.source} with {self.kind} routers, not trained; the best scale of "
            f"{', '.join(f'{s:g}' for s in self.scales)}"
        )


@dataclass(frozen=True, kw_only=True)
class ScanSpec:
    """A model with as many active experts in each layer as a scan chose (evaluation/routing/scan.py)."""

    name: str
    source: str
    """The step whose folder it is made from."""
    validation: tuple[Source, ...]
    """Held-out chats, a domain each. It costs a pass over them for every number of experts in every layer."""
    mean: float
    """Active experts that are wanted, over all layers."""

    def __post_init__(self):
        require_name("scan", self.name)
        if not self.validation or not self.mean >= 1:
            raise BarError(
                f"scan {self.name}: expected held-out chats and a mean of at least 1, got "
                f"{len(self.validation)} sources and {self.mean}"
            )

    def describe(self) -> str:
        return f"{self.source} with {self.mean:g} active experts on average, by layer as a scan chooses"


@dataclass(frozen=True, kw_only=True)
class Upgrade:
    """The same model before and after one expert was replaced."""

    name: str
    before: str
    after: str
    changed: tuple[str, ...]
    """The skills that should change; the others that both are measured on should not."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    name: str
    x: str
    points: dict[str, str]
    """What is on the x axis -> the model."""
    skills: tuple[str, ...] = ()
    """Which are shown, and their mean; none: all."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement about two models, judged by the paired gain of the second with its 95 % interval."""

    text: str
    before: str = ""
    after: str = ""
    skills: tuple[str, ...] = ()
    """On which; none: all."""
    expect: Literal["higher", "lower", "not lower", "same"] = "higher"
    """higher, lower: the whole interval lies beyond ``margin`` on that side. not lower, same: the mean gain
    is within it."""
    each: bool = False
    """Whether it is about every skill by itself; else about their mean."""
    margin: float = 0.0
    """A fraction: 0.03 are 3 points."""
    keeps: float = 1.0
    """Share of before's score that is asked of after."""
    start: str = ""
    """Model that both are made from, if ``keeps`` is a share of before's gain on it."""
    untestable: str = ""
    """Why no toy can speak to it; then nothing else is said."""
    source: str = PUBLISHED
    """Who says so, or asks it."""

    def __post_init__(self):
        if bool(self.untestable) == bool(self.before and self.after):
            raise BarError(
                f"claim {self.text!r}: expected two models, or why it is not testable, got both or neither"
            )


@dataclass(frozen=True, kw_only=True)
class Study:
    folder: str = "."
    """Where in the run's folder its report is: that of a piece stands beside the others'."""
    baselines: dict[str, str] = field(default_factory=dict)
    """What the report calls it -> the model."""
    ablations: dict[str, str] = field(default_factory=dict)
    upgrades: tuple[Upgrade, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    claims: tuple[Claim, ...] = ()
    retrained: str = ""
    """The model that was trained on everything at once, whose cost stands against that of one more expert."""
    lens: dict[str, int] = field(default_factory=dict)
    """Test set -> how many of its items, with the final model's answers, are shown token by token."""

    @property
    def models(self) -> list[str]:
        """All that it speaks of, each once."""
        upgrades = [model for upgrade in self.upgrades for model in (upgrade.before, upgrade.after)]
        sweeps = [model for sweep in self.sweeps for model in sweep.points.values()]
        claims = [
            model for claim in self.claims for model in (claim.start, claim.before, claim.after) if model
        ]
        return list(
            dict.fromkeys([*self.baselines.values(), *self.ablations.values(), *upgrades, *sweeps, *claims])
        )

    def check_skills(self, tested: set[str], only: Mapping[str, Sequence[str]]) -> None:
        """Raises unless what it speaks of is measured.

        ``tested``: all skills. ``only``: those of a model that is not measured on all of them.
        """
        everything = tuple(tested)
        spoken = [("lens", ("final",), tuple(self.lens))]
        for upgrade in self.upgrades:
            spoken.append((f"upgrade {upgrade.name}", (upgrade.before, upgrade.after), upgrade.changed))
        for sweep in self.sweeps:
            spoken.append((f"sweep {sweep.name}", tuple(sweep.points.values()), sweep.skills or everything))
        for claim in self.claims:
            models = (claim.start, claim.before, claim.after) if claim.before else ()
            spoken.append((f"claim {claim.text!r}", models, claim.skills or everything))
        for owner, models, skills in spoken:
            if unknown := sorted(set(skills) - tested):
                raise BarError(
                    f"{owner}: expected skills that are tested ({', '.join(sorted(tested))}), got "
                    f"{unknown[0]}"
                )
            for model in models:
                if missing := sorted(set(skills) - set(only.get(model, tested))):
                    raise BarError(f"{owner}: {model} is not measured on {missing[0]}")


def folder_and_active(model: str) -> tuple[str, Active | None]:
    """``final@2`` -> ("final", 2); without a number: as the folder says."""
    name, mark, active = model.partition(ACTIVE)
    if not mark:
        return name, None
    numbers = active.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise BarError(
            f"model {model}: expected a step's name, or NAME@K (or NAME@K,K,...) with a number of active "
            f"experts"
        )
    layers = tuple(map(int, numbers))
    return name, layers if len(layers) > 1 else layers[0]
