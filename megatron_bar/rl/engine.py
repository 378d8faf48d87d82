"""Where answers come from: the weights that train, or processes of their own (vLLM; see apart.py).

An engine is told when weights have changed (`sync`), is asked for answers (`start`), and can say in what it
differs from the trainer (`difference`) when the log-probabilities of the two do. All calls are collective.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from megatron_bar.data.chat import ChatFormat
from megatron_bar.errors import BarError, require_at_least
from megatron_bar.models.build import LanguageModel
from megatron_bar.models.sampler import Completion, Sampler, stop_at
from megatron_bar.rl.cache_check import union, worst_layer
from megatron_bar.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Which engine answers, and where it runs."""

    name: Literal["own", "vllm", "transformers"] = "own"
    """Engine: own is the trainer's sampler; the others run beside the trainer, in processes of their own."""
    python: str | None = None
    """Python that has the engine: vLLM brings its own torch and wants its own environment. None: this one."""
    devices: tuple[str, ...] = ()
    """GPUs that the engines see (CUDA_VISIBLE_DEVICES), shared out among them; none: those of rank 0."""
    tensor: int = 1
    """Tensor parallelism of each engine of vLLM."""
    replicas: int = 1
    """Engines, each with the whole model; which has answered some prompts gets more."""
    memory: float = 0.9
    """Share of the GPUs' memory that vLLM may take."""
    seeded: bool = False
    """Whether vLLM draws each answer by a seed of its own, so that the same round gives the same answers:
    slower, row by row in Python."""
    launch: tuple[str, ...] = ()
    """What starts a command on each engine's machine, "srun -N1 -n1 -w gpu8" or "ssh gpu8", say; none: they
    run on rank 0's."""
    handover: Path | None = None
    """Folder through which the weights go, seen by the trainer's and the engines' machines: for engines on
    others. None: memory that processes of one machine share."""
    patience: int = 600
    """Seconds without a sign of life after which an engine is taken for dead."""
    restarts: int = 2
    """Times that a dead engine is started anew in a stage, and its answers asked for again."""

    def __post_init__(self):
        require_at_least("engine", self, 1, "tensor", "replicas", "patience")
        require_at_least("engine", self, 0, "restarts")
        if not 0 < self.memory <= 1:
            raise BarError(f"engine: memory must be above 0 and at most 1, got {self.memory}")
        wanted = self.tensor * self.replicas
        if self.devices and len(self.devices) != wanted:
            raise BarError(
                f"engine: devices expected {wanted} GPUs, {self.replicas} replicas of tensor {self.tensor}, "
                f"got {','.join(self.devices)}"
            )
        if self.launch and len(self.launch) != self.replicas:
            raise BarError(
                f"engine: launch expected {self.replicas} commands, one for each of replicas, "
                f"got {','.join(self.launch)}"
            )
        if self.launch and self.handover is None:
            raise BarError(
                "engine: handover expected beside launch, a folder that the engines' machines see too"
            )


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How answers are drawn."""

    max_new_tokens: int
    temperature: float
    stop: tuple[str, ...]
    slots: int


class Engine(Protocol):
    """Who answers."""

    def sync(self) -> None:
        """Makes the trainer's weights the ones that answer."""

    def start(
        self, prompts: list[list[int]], params: SamplingParams, *, seed: int
    ) -> Callable[[], list[Completion]]:
        """Begins an answer to each prompt; what is returned waits for them. Until then, no other call."""

    def changed(self) -> list[str]:
        """Returns tensors of the trainer that changed since `sync`, where that is cheap to say."""

    def difference(self, ids: list[int]) -> str:
        """Returns in which tensor or layer it differs most from the trainer, as far as it can tell.

        ``ids``: a sequence to try.
        """

    def close(self) -> None:
        """Ends what runs beside the trainer."""


class OwnSampler:
    """The trainer's own weights; answers are there when `start` returns."""

    def __init__(self, trainer: Trainer, chats: ChatFormat):
        self.model = trainer.model
        self.decode = chats.tokenizer.decode
        self.sampler = Sampler(trainer.model, eos_ids=chats.stop_ids, pad_id=chats.tokenizer.pad_id)
        self.synced: dict[str, float] = {}
        """Fingerprints of the weights at the last `sync`."""

    def sync(self) -> None:
        """Takes the fingerprints; the weights are there already."""
        self.synced = fingerprints(self.model)

    def start(
        self, prompts: list[list[int]], params: SamplingParams, *, seed: int
    ) -> Callable[[], list[Completion]]:
        """Answers at once."""
        done = self.sampler.generate(
            prompts,
            max_new_tokens=params.max_new_tokens,
            temperature=params.temperature,
            seed=seed,
            slots=params.slots,
            stop=stop_at(params.stop, self.decode) if params.stop else None,
        )
        return lambda: done

    def changed(self) -> list[str]:
        """Returns the tensors whose fingerprints are others than at the last `sync`, on any rank."""
        now = fingerprints(self.model)
        return union([name for name, value in self.synced.items() if now[name] != value])

    def difference(self, ids: list[int]) -> str:
        """Returns what changed, or where passes with and without the cache part."""
        if changed := self.changed():
            return f"changed since the answers were sampled: {', '.join(changed[:3])}"
        return f"no tensor changed; {worst_layer(self.model, ids)}"

    def close(self) -> None:
        """Does nothing: nothing runs beside the trainer."""


def fingerprints(model: LanguageModel) -> dict[str, float]:
    """Returns a sum of every parameter of this rank, by the folder's name: a change shows."""
    return {op.names[0]: float(param.detach().double().sum()) for _, param, op in model.parameters_with_ops()}
