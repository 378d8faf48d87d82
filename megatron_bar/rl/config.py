"""The choices of reinforcement learning with verified rewards, as a value."""

from dataclasses import dataclass, field
from typing import Literal

from megatron_bar.errors import BarError, require_at_least
from megatron_bar.rl.engine import EngineConfig, SamplingParams
from megatron_bar.rl.loss import ClippedPolicyGradient
from megatron_bar.verifiers.judge import Judge


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """How many answers are drawn, how they are judged, and what is learnt from them."""

    rounds: int
    """Rollout batches."""
    prompts: int = 64
    """Prompts in a rollout batch."""
    group: int = 8
    """Answers to each prompt."""
    mini_batches: int = 4
    """Optimizer steps per rollout batch."""
    max_new_tokens: int
    temperature: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.272
    advantages: Literal["centred", "standardised", "dr_grpo"] = "centred"
    """Function of a group's rewards; see advantage.py."""
    kl: float = 0.0
    """Weight of the KL to the start in the loss; published: none."""
    kl_every: int = 10
    """Rounds between measurements of the KL to the start where it is not in the loss; 0: never."""
    importance_cap: float | None = None
    """Cap of truncated importance sampling, for a sampler that is not the trainer (loss.py). 2 is usual."""
    lag: Literal[0, 1] = 0
    """Rounds that the answering weights lag: 1 is one step asynchronous, and needs ``importance_cap``."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Engine that answers."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the chat format's own end."""
    truncated: Literal["score", "mask"] = "score"
    """Treatment of answers cut off at the length limit: scored as they stand, or without loss (overlong
    filtering, arXiv 2503.14476)."""
    max_drift: float = 0.05
    """Mean difference of sampler's and trainer's log-probabilities that stops a run; bf16 has about 0.01."""
    patience: int = 50
    """Rounds in a row in which no group had different rewards, before the run stops."""
    reward: float = 10.0
    """Reward of an answer whose verifier says 1."""
    judge: Judge = field(default_factory=Judge)
    """Classifier that decides in the place of the verifier safety."""
    solved: float = 0.875
    """Pass rate from which on a prompt is not drawn again."""
    slots: int = 64
    """Sequences sampled at a time on each data-parallel rank."""

    def __post_init__(self):
        require_at_least(
            "rl", self, 1, "rounds", "prompts", "mini_batches", "max_new_tokens", "slots", "patience"
        )
        require_at_least("rl", self, 2, "group")
        require_at_least("rl", self, 0, "kl", "kl_every", "importance_cap", "max_drift")
        for name, value in (
            ("temperature", self.temperature),
            ("clip_low", self.clip_low),
            ("clip_high", self.clip_high),
            ("reward", self.reward),
            ("solved", self.solved),
        ):
            if not value > 0:
                raise BarError(f"rl: {name} must be positive, got {value}")
        if self.lag not in (0, 1) or (self.lag and self.importance_cap is None):
            raise BarError(f"rl: lag must be 0, or 1 with an importance_cap (2 is usual), got {self.lag}")
        if not all(self.stop):
            raise BarError("rl: stop has an empty text, which would end every answer")

    @property
    def params(self) -> SamplingParams:
        """How answers are drawn."""
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            stop=self.stop,
            slots=self.slots,
        )

    @property
    def objective(self) -> ClippedPolicyGradient:
        """What is minimised."""
        return ClippedPolicyGradient(
            low=self.clip_low,
            high=self.clip_high,
            kl=self.kl,
            importance_cap=self.importance_cap,
            temperature=self.temperature,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage."""
        return self.rounds * self.mini_batches

    @property
    def keeps_start(self) -> bool:
        """Whether any round compares with the weights of the start, so that a copy of them is kept."""
        return self.kl > 0 or 0 < self.kl_every <= self.rounds

    def compares_with_start(self, round_number: int) -> bool:
        """Returns whether that round, from 1, has the KL to the start in its loss or measures it."""
        return self.kl > 0 or (self.kl_every > 0 and round_number % self.kl_every == 0)
