"""A recipe as a value: the models, the experts with their stages and data, the merge, the route, the
evaluation.

run/pipeline.py makes it; the shipped ones lie beside this file. ``--set`` names what it changes: experts,
stages and sources are called by their names, as in ``experts.math.sft.optim.lr=1e-4`` (config/paths.py).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_bar.config.names import STANDS_FOR_IT
from megatron_bar.data.hub import FromHub
from megatron_bar.data.sources import Source
from megatron_bar.data.templates import Name
from megatron_bar.data.untagged import UntaggedSizes
from megatron_bar.data.world import WorldSizes
from megatron_bar.errors import BarError, require_at_least, require_name
from megatron_bar.evaluation.generative import TestSet
from megatron_bar.experts.shared import Combination
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.recipes.study import MergeSpec, RouterSpec, ScanSpec, Study
from megatron_bar.rl import grpo
from megatron_bar.training.preference import DPOConfig
from megatron_bar.training.stage import Stage
from megatron_bar.verifiers.judge import Judge
from megatron_bar.weights.hf_config import ModelConfig

GENERAL = "general"
"""The domain of the data that every SFT should have a share of."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A stage and what it learns from."""

    stage: Stage = field(metadata=STANDS_FOR_IT)
    data: tuple[Source, ...]
    weights: dict[str, float] | None = None
    """Share of each domain among the rows; None: the published union, every row once an epoch."""
    rl: grpo.GRPOConfig | None = None
    """Set for RLVR, whose data are tasks."""
    dpo: DPOConfig | None = None
    """Set for preference optimisation, whose data are preferences."""
    rates: tuple[float, ...] = ()
    """Learning rates to choose from: the stage is trained with each, and the one with the lowest loss on
    ``validation`` goes on. None: the stage's own."""
    validation: tuple[Source, ...] = ()
    """Chats that no stage learns."""
    chosen_at: tuple[int, ...] = ()
    """Numbers of active experts at which that loss is measured, and its mean taken; none: as the folder
    says."""

    def __post_init__(self):
        owner = f"stage {self.stage.name}"
        if self.rl and self.dpo:
            raise BarError(f"{owner}: expected rl or dpo, got both")
        if (self.rl or self.dpo) and (self.stage.alone or self.stage.active_experts == "sampled"):
            raise BarError(
                f"{owner}: expected a fixed number of active experts where answers are sampled or compared"
            )
        wanted = ("task",) if self.rl else ("preference",) if self.dpo else ("text", "chat", "tokens", "fim")
        if bool(self.rates) != bool(self.validation) or len(set(self.rates)) != len(self.rates):
            raise BarError(
                f"{owner}: expected different rates and the validation chats to choose by, or neither"
            )
        if self.chosen_at and not self.rates:
            raise BarError(f"{owner}: chosen_at expected rates to choose from, got none")
        if not self.data:
            raise BarError(f"{owner}: data expected at least one source, got none")
        for source in self.data:
            if source.kind not in wanted:
                raise BarError(
                    f"{owner}: {source.path}: expected rows of {' or '.join(wanted)}, got {source.kind}"
                )


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    name: str
    runs: tuple[Training, ...] = field(metadata=STANDS_FOR_IT)
    """In order; each starts from the folder that the one before wrote."""
    start: str = "branched"
    """The step whose folder the first starts from: the branched one makes an expert, base or anchor a dense
    model, and a merged one is routed."""

    def __post_init__(self):
        require_name("expert", self.name)
        stages = [run.stage.name for run in self.runs]
        if self.name == "anchor" or len(set(stages)) < len(stages):
            raise BarError(
                f"expert {self.name}: expected another name than anchor, and stages of different names: "
                f"{stages}"
            )

    @property
    def end(self) -> str:
        """The step that makes the expert as it is merged."""
        return f"{self.name}-{self.runs[-1].stage.name}"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    tests: tuple[TestSet, ...]
    slots: int = 64
    judge: Judge = field(default_factory=Judge)
    """Classifier that decides in the place of the verifier safety."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The tests, by name, of a model that is not measured by all of them, as anchor and final model are."""

    def __post_init__(self):
        require_at_least("evaluation", self, 1, "slots")
        known = {test.name for test in self.tests}
        for model, names in self.only.items():
            if model in ("anchor", "final"):
                raise BarError(f"evaluation of {model}: expected by all tests, got {', '.join(names)}")
            if not names or not known.issuperset(names):
                raise BarError(
                    f"evaluation of {model}: expected some of {', '.join(sorted(known))}, got "
                    f"{', '.join(names) or 'none'}"
                )

    def tests_of(self, model: str) -> tuple[TestSet, ...]:
        """Returns the tests that a model is measured by."""
        return tuple(test for test in self.tests if test.name in self.only.get(model, (test.name,)))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    data: Path | None = None
    """Folder that the sources' paths start from; None: a world, made in the output folder."""
    from_hub: tuple[FromHub, ...] = ()
    """The public sets that files of the data are made of, by `bar prepare`."""
    chat_template: Name = "tulu"
    """How chats are laid out (data/templates.py); own: by the template in the tokenizer's folder."""
    max_refused: float = 0.0
    """Share of a source's rows that may be refused; the run goes on without them, and lists them in
    refused.jsonl. Test sets have none to spare."""
    world: WorldSizes | UntaggedSizes = field(default_factory=WorldSizes)
    """Which one, and how large: the tiny world or the untagged domains."""
    shape: ModelConfig | None = None
    """Shape of the dense model: one made from nothing takes it; with a given anchor a dry run shows it."""
    embedding_std: float = 0.02
    """Standard deviation of the initial embeddings of a model made from nothing."""
    base: Path | None = None
    """A pretrained dense folder, or None to make one by ``pretrain``."""
    anchor: Path | None = None
    """A post-trained dense folder, or None to make one from the base by ``posttrain``."""
    pretrain: Training | None = None
    posttrain: Training | None = None
    router_init: Literal["normal", "zero"] = "normal"
    """The start of the router rows. From domain texts: `bar branch`."""
    experts: tuple[ExpertSpec, ...]
    shared: Combination = field(default_factory=Combination)
    """How the merge combines what the experts share."""
    route: Training
    more: tuple[ExpertSpec | MergeSpec | RouterSpec | ScanSpec, ...] = ()
    """What the study trains and merges besides, in an order in which each comes after what it starts from."""
    evaluation: Evaluation | None = None
    study: Study = field(default_factory=Study)
    seed: int = 0

    def __post_init__(self):
        if self.base is None and (self.pretrain is None or self.shape is None):
            raise BarError(
                f"recipe {self.name}: base expected a folder, or pretrain and shape to make one, got neither"
            )
        if self.anchor is None and self.posttrain is None:
            raise BarError(
                f"recipe {self.name}: anchor expected a folder, or posttrain to make one from the base, got "
                f"neither"
            )
        require_name("recipe", self.name)
        require_at_least(f"recipe {self.name}", self, 0, "seed")
        if not 0 <= self.max_refused < 1:
            raise BarError(
                f"recipe {self.name}: max_refused expected a share from 0 to below 1, got {self.max_refused}"
            )
        if not self.embedding_std > 0:
            raise BarError(f"recipe {self.name}: embedding_std must be positive, got {self.embedding_std}")
        self.shared.check(1 + len(self.experts))
        names = [part.name for part in (*self.experts, *self.more)]
        if (
            not self.experts
            or len(set(names)) < len(names)
            or not all(expert.runs for expert in self.experts)
        ):
            got = ", ".join(names) or "none"
            raise BarError(
                f"recipe {self.name}: experts expected of different names, each with a run, got {got}"
            )
        if self.evaluation is not None:
            tested = {test.name for test in self.evaluation.tests}
            self.study.check_skills(tested, self.evaluation.only)

    @property
    def sources(self) -> list[Source]:
        """What its stages learn from, each once."""
        experts = [part for part in (*self.experts, *self.more) if isinstance(part, ExpertSpec)]
        runs = [run for run in (self.pretrain, self.posttrain, self.route) if run is not None]
        runs += [run for expert in experts for run in expert.runs]
        return list(dict.fromkeys(source for run in runs for source in (*run.data, *run.validation)))

    @property
    def given(self) -> dict[str, Path]:
        """The folders that are not made."""
        folders = {"base": self.base, "anchor": self.anchor}
        return {name: path for name, path in folders.items() if path is not None}
