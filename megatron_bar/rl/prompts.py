"""What RLVR asks and learns from: prompts still worth drawing, answers packed with their advantages."""

from dataclasses import dataclass
from random import Random

from megatron_bar.data.indexed import Document, in_memory
from megatron_bar.data.packing import PackedRows
from megatron_bar.errors import BarError
from megatron_bar.models.sampler import Completion
from megatron_bar.rl.advantage import Advantages, centred


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prompt whose answers can be verified."""

    prompt: list[int]
    """Token ids, generation prompt included."""
    verifier: str
    truth: object


def pack_rollouts(
    tasks: list[Task],
    groups: list[list[Completion]],
    rewards: list[list[float]],
    *,
    length: int,
    pad_id: int,
    longest: int,
    advantages: Advantages = centred,
    truncated: str = "score",
) -> PackedRows:
    """Packs prompt and answer as one document each; an answer's tokens carry their ``logprobs`` and
    ``advantages``.

    ``longest``: of an answer. ``truncated``: see `GRPOConfig`.
    """
    documents: list[Document] = []
    logprobs: list[list[float]] = []
    weights: list[list[float]] = []
    for task, group, scores in zip(tasks, groups, rewards, strict=True):
        zeros = [0.0] * len(task.prompt)
        lengths = [len(completion.ids) for completion in group]
        for completion, advantage in zip(group, advantages(scores, lengths, longest), strict=True):
            ids = task.prompt + completion.ids
            if len(ids) > length:
                raise BarError(f"a rollout of {len(ids)} tokens does not fit the sequence length {length}")
            learn = completion.finished or truncated == "score"
            documents.append((ids, [False] * len(task.prompt) + [learn] * len(completion.ids)))
            logprobs.append(zeros + completion.logprobs)
            weights.append(zeros + [advantage] * len(completion.ids))
    rollouts = in_memory(documents, logprobs=logprobs, advantages=weights)
    return PackedRows([("rollouts", rollouts)], length, pad_id=pad_id)


class Prompts:
    """The prompts still worth drawing; what a round draws depends on the seed and what was solved before."""

    def __init__(self, tasks: list[Task], *, seed: int, solved: float):
        if not tasks:
            raise BarError("RLVR needs at least one prompt")
        self.tasks = tasks
        self.seed = seed
        self.solved = solved
        self.open = set(range(len(tasks)))

    def draw(self, round_number: int, count: int) -> list[int]:
        """Returns the numbers of ``count`` different prompts; fewer, when fewer are left."""
        if not self.open:
            raise BarError(
                f"every one of the {len(self.tasks)} prompts is solved at least {self.solved:.0%} of the time"
            )
        # Of the round alone, and sorted, as a set has no order: a resumed stage draws the same.
        return Random(f"{self.seed}/{round_number}").sample(sorted(self.open), min(count, len(self.open)))

    def record(self, number: int, pass_rate: float) -> None:
        """Closes a prompt that was solved often enough."""
        if pass_rate >= self.solved:
            self.open.discard(number)
