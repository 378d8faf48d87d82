"""Sampling from the very weights that train, under every layout, with a KV cache and exact log-probabilities.

A slot whose answer has ended takes the next prompt while the others go on. The rows of a pass are laid out
flat, ``[1, rows * new tokens]``, so that sequence parallelism can cut them like any sequence. All ranks make
the same passes over the same number of rows, since experts spread over data-parallel ranks meet in every
layer; on a CPU whose ranks have the whole model each goes on by itself (passes.py). What is drawn depends on
the seed, the prompt's number and the probabilities alone, not on slots or layout.

Legend: r rows (sequences in a pass), v vocabulary.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_bar.errors import BarError
from megatron_bar.models.build import LanguageModel, evaluating
from megatron_bar.models.drawing import draw, uniforms
from megatron_bar.models.passes import PlainPasses, StagePasses, is_whole
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import broadcast_from_last_stage, gather_objects

REFILL = 8
"""Part (one in so many) of the slots that is free before new prompts come in: few, large passes."""
READ = 4096
"""Tokens of prompts that a pass reads at most: of more the shorter ones would be filled up further."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """An answer."""

    ids: list[int]
    """Tokens without the prompt; with the one that ended it."""
    logprobs: list[float]
    """Log-probability of every id under the distribution at the temperature, whole also where top-p cut it;
    at temperature 0, the model's own."""
    finished: bool
    """Whether it ended by itself, not at the length limit."""


@dataclass
class _Answer:
    """An answer that is being written."""

    number: int
    prompt: list[int]
    limit: int
    draws: list[float]
    """Uniform numbers, one per token to come."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False

    @property
    def ended(self) -> bool:
        """Whether no token is to come."""
        return self.stopped or len(self.ids) >= self.limit

    @property
    def position(self) -> int:
        """Position of its last token, which the next pass reads."""
        return len(self.prompt) + len(self.ids) - 1


def stop_at(strings: Sequence[str], decode: Callable[[list[int]], str]) -> Callable[[list[int]], bool]:
    """Returns a function that says whether the end of an answer's text holds one of ``strings``."""
    longest = max(map(len, strings), default=0)
    # A token is a character at least in part: four bytes of it at most.
    return lambda ids: any(string in decode(ids[-4 * longest - 4 :]) for string in strings)


class Sampler:
    """Answers prompts by a model.

    ``graphs``: on a GPU whose ranks exchange nothing inside the model a pass is recorded once for every
    `passes.REACH` and then launched whole, as a CUDA graph; launched one by one its kernels take longer to
    start than to run. ``plain``: on a CPU each of whose ranks has all of the model, passes are those of its
    plain form. ``read``: tokens of prompts, filled up to the longest, that a pass reads, if more than one.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        eos_ids: set[int],
        pad_id: int,
        graphs: bool = True,
        plain: bool = True,
        read: int = READ,
    ):
        self.model = model
        self.eos_ids = eos_ids
        self.pad_id = pad_id
        self.graphs = graphs
        self.plain = plain
        self.read = read

    @torch.no_grad()
    def generate(
        self,
        prompts: list[list[int]],
        *,
        max_new_tokens: int | Sequence[int],
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        slots: int = 64,
        stop: Callable[[list[int]], bool] | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Returns one completion per prompt, in order; every rank passes all prompts and gets all.
        Collective.

        ``max_new_tokens``: one number, or one per prompt. ``temperature`` 0 is greedy. ``top_p`` draws from
        the most likely tokens that together have that probability. ``seed``: one number, or one per prompt;
        then what is drawn for a prompt depends on no other. Data-parallel ranks share the prompts out;
        ``slots`` are at work at a time on each. ``stop``: whether an answer ends with the ids so far (see
        `stop_at`). ``on_token`` is told the number of a prompt and a token of its answer as soon as that is
        drawn, on the ranks that write the answer; of a single prompt rank 0 is one.
        """
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        lengths = self._lengths(prompts, limits)
        rank = parallel_state.get_data_parallel_rank()
        size = parallel_state.get_data_parallel_world_size()
        # Alike lengths together: prompts that come in together are filled up to the longest.
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        seeds = [(seed, n) for n in range(len(prompts))] if isinstance(seed, int) else [(0, s) for s in seed]
        answers = [
            _Answer(n, prompts[n], limits[n], uniforms(*seeds[n], limits[n])) for n in order[rank::size]
        ]
        if prompts:
            count = min(slots, -(-len(prompts) // size))
            with evaluating(self.model):
                _Slots(self, answers, count, max(lengths), temperature, top_p, stop, on_token).finish()
        done = {a.number: Completion(ids=a.ids, logprobs=a.logprobs, finished=a.stopped) for a in answers}
        if size > 1:
            everyone = gather_objects(done, parallel_state.get_data_parallel_group())
            done = {n: completion for theirs in everyone for n, completion in theirs.items()}
        return [done[n] for n in range(len(prompts))]

    def _lengths(self, prompts: list[list[int]], limits: list[int]) -> list[int]:
        """Tokens of every prompt with those to come; raises where a prompt is empty or they do not fit."""
        for number, (prompt, new) in enumerate(zip(prompts, limits, strict=True)):
            limit = self.model.shape.max_positions - new
            if not 0 < len(prompt) <= limit or new < 1:
                raise BarError(
                    f"prompt {number} has {len(prompt)} tokens; expected 1 to {limit} (with {new} to come)"
                )
        return [len(prompt) + new for prompt, new in zip(prompts, limits, strict=True)]


def _next_uniform(answer: _Answer | None) -> float:
    return answer.draws[len(answer.ids)] if answer else 0.0


class _Slots:
    """The slots of one call of `Sampler.generate`."""

    def __init__(
        self,
        sampler: Sampler,
        answers: list[_Answer],
        slots: int,
        longest: int,
        temperature: float,
        top_p: float,
        stop: Callable[[list[int]], bool] | None,
        on_token: Callable[[int, int], None] | None,
    ):
        self.sampler = sampler
        self.model = sampler.model
        self.stop = stop
        self.on_token = on_token
        self.temperature = temperature
        self.top_p = top_p
        self.waiting = deque(answers)
        sizes = {"slots": slots, "longest": longest, "pad_id": sampler.pad_id}
        self.passes = (
            PlainPasses(self.model, **sizes)
            if sampler.plain and is_whole(self.model) and cpu.device().type == "cpu"
            else StagePasses(self.model, **sizes, graphs=sampler.graphs)
        )
        self.slots: list[_Answer | None] = [None] * self.passes.slots

    def finish(self) -> None:
        """Makes passes until every rank's answers have ended. Collective."""
        while True:
            self._close_ranks()
            free = [n for n, answer in enumerate(self.slots) if answer is None]
            running = len(free) < len(self.slots)
            enough = len(free) * REFILL >= len(self.slots) or not running
            coming = self._coming(len(free)) if enough else []
            longest = max((len(a.prompt) for a in coming), default=0)
            rows, length, running = self._largest(len(coming), longest, running or bool(coming))
            if not running:
                return
            if rows:
                self._begin(coming, free, rows, length)
            if self._largest(any(answer is not None for answer in self.slots))[0]:
                self._go_on()

    def _coming(self, free: int) -> list[_Answer]:
        """Takes the prompts that are read next from those that wait, the shortest of them."""
        coming: list[_Answer] = []
        while self.waiting and len(coming) < free:
            filled_up = (len(coming) + 1) * len(self.waiting[0].prompt)
            if coming and filled_up > self.sampler.read:
                break
            coming.append(self.waiting.popleft())
        return coming

    def _largest(self, *values: int) -> list[int]:
        """The largest of each of ``values`` over all ranks that make their passes together. Collective."""
        if dist.get_world_size() == 1 or not self.passes.together:
            return [int(value) for value in values]
        shared = torch.tensor([int(value) for value in values], device=cpu.device())
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return shared.tolist()

    def _begin(self, coming: list[_Answer], free: list[int], rows: int, length: int) -> None:
        """Reads the prompts of ``coming`` and draws their first tokens; ``rows`` and ``length`` are those of
        all ranks."""
        slots = free[: len(coming)]
        logits_rv = self.passes.read([answer.prompt for answer in coming], slots, rows, length)
        for slot, answer in zip(slots, coming, strict=True):
            self.slots[slot] = answer
        if coming:
            numbers = [_next_uniform(answer) for answer in coming]
            self._draw(logits_rv, coming, torch.tensor(numbers, dtype=torch.float64, device=cpu.device()))

    def _go_on(self) -> None:
        """Draws one more token for every slot at work."""
        answers = self._next_rows()
        pad = self.sampler.pad_id
        logits_rv, uniforms_r = self.passes.go_on(
            [a.ids[-1] if a else pad for a in answers],
            [a.position if a else 0 for a in answers],
            [_next_uniform(a) for a in answers],
        )
        self._draw(logits_rv, answers, uniforms_r)

    def _next_rows(self) -> list[_Answer | None]:
        """Returns the answers of the next pass: of all slots, or of those at work, which are the first."""
        if self.passes.together:
            return self.slots
        return self.slots[: self.passes.rows(sum(answer is not None for answer in self.slots))]

    def _close_ranks(self) -> None:
        """Moves answers into the slots of those that ended before them, where a pass need not be over all
        slots. An answer comes from the next group of slots, and is its longest: so the longer ones stay
        together, and new ones, which are short, come last."""
        if self.passes.together:
            return
        at_work = sum(answer is not None for answer in self.slots)
        for hole in [n for n in range(at_work) if self.slots[n] is None]:
            while (found := self._follower(hole)) is not None:
                self.passes.move(found, hole, self.slots[found].position)
                self.slots[hole], self.slots[found] = self.slots[found], None
                hole = found

    def _follower(self, hole: int) -> int | None:
        """Returns whose answer is to move into the slot ``hole``; None where there is none behind it."""
        size = self.passes.group
        for start in range((hole // size + 1) * size, len(self.slots), size):
            group = range(start, min(start + size, len(self.slots)))
            if here := [n for n in group if self.slots[n] is not None]:
                return max(here, key=lambda n: self.slots[n].position)
        last = min((hole // size + 1) * size, len(self.slots))
        return next((n for n in range(last - 1, hole, -1) if self.slots[n] is not None), None)

    def _draw(self, logits_rv: Tensor | None, answers: list[_Answer | None], uniforms_r: Tensor) -> None:
        """Appends a token to each answer, the same on all pipeline ranks; frees the slots of what ended."""
        drawn = torch.empty(2, len(answers), dtype=torch.float64, device=cpu.device())
        if logits_rv is not None:
            drawn = torch.stack(draw(logits_rv, uniforms_r, self.temperature, self.top_p))
        broadcast_from_last_stage(drawn)
        tokens, logprobs = drawn.tolist()  # on one GPU the only wait of a pass
        for answer, token, logprob in zip(answers, tokens, logprobs, strict=True):
            if answer is not None:
                answer.ids.append(int(token))
                answer.logprobs.append(logprob)
                answer.stopped = int(token) in self.sampler.eos_ids or self._stops(answer)
                if self.on_token is not None:
                    self.on_token(answer.number, int(token))
        self.slots = [None if answer is None or answer.ended else answer for answer in self.slots]

    def _stops(self, answer: _Answer) -> bool:
        return self.stop is not None and self.stop(answer.ids)
