"""Sampling from the very weights that train, under every layout, with a KV cache and exact log-probabilities.

A slot whose answer has ended takes the next prompt while the others go on. The rows of a pass are laid out
flat, ``[1, rows * new tokens]``, so that sequence parallelism can cut them like any sequence. All ranks make
the same passes over the same number of rows, since experts spread over data-parallel ranks meet in every
layer. What is drawn depends on the seed, the prompt's number and the probabilities alone, not on slots or
layout.

Legend: r rows (sequences in a pass), n new tokens of each, t = r * n tokens, v vocabulary, 1 a batch of one.
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
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import broadcast_from_last_stage, gather_objects

REACH = 256
"""Unit of the cache's length that a GPU attends to: kernels are chosen, and graphs recorded, by shape."""
REFILL = 8
"""Part (one in so many) of the slots that is free before new prompts come in: few, large passes."""


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
    `REACH` and then launched whole, as a CUDA graph; launched one by one its kernels take longer to start
    than to run.
    """

    def __init__(self, model: LanguageModel, *, eos_ids: set[int], pad_id: int, graphs: bool = True):
        self.model = model
        self.eos_ids = eos_ids
        self.pad_id = pad_id
        self.graphs = graphs

    @torch.no_grad()
    def generate(
        self,
        prompts: list[list[int]],
        *,
        max_new_tokens: int | Sequence[int],
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        slots: int = 64,
        stop: Callable[[list[int]], bool] | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Returns one completion per prompt, in order; every rank passes all prompts and gets all.
        Collective.

        ``max_new_tokens``: one number, or one per prompt. ``temperature`` 0 is greedy. ``top_p`` draws from
        the most likely tokens that together have that probability. Data-parallel ranks share the prompts out;
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
        answers = [
            _Answer(n, prompts[n], limits[n], _uniforms(seed, n, limits[n])) for n in order[rank::size]
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


def _uniforms(seed: int, number: int, count: int) -> list[float]:
    generator = torch.Generator().manual_seed((seed << 32) + number)
    return torch.rand(count, generator=generator, dtype=torch.float64).tolist()


def _next_uniform(answer: _Answer | None) -> float:
    return answer.draws[len(answer.ids)] if answer else 0.0


def _up(count: int, unit: int) -> int:
    """``count`` rounded up to a multiple of ``unit``."""
    return -(-count // unit) * unit


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
        self.tensor = parallel_state.get_tensor_model_parallel_world_size()
        slots = _up(slots, self.tensor)  # sequence parallelism cuts the rows
        self.slots: list[_Answer | None] = [None] * slots
        device = cpu.device()
        self.on_gpu = device.type == "cuda"
        self.cache = self.model.new_cache(
            rows=slots, max_length=_up(longest, REACH) if self.on_gpu else longest
        )
        self.records = sampler.graphs and self.on_gpu and self._can_be_recorded()
        self.host = torch.zeros(3, slots, dtype=torch.int64, pin_memory=self.on_gpu)
        """Ids, positions and, as the bits of fp64, uniform numbers of the next pass over all slots."""
        self.given = torch.zeros(3, slots, dtype=torch.int64, device=device)
        """Those numbers where the model is."""
        self.graph_of: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        """Recorded passes by reach, each with its logits."""

    def _can_be_recorded(self) -> bool:
        """Whether a pass is kernels alone: no exchange between ranks, and no code of the host, which a graph
        leaves out."""
        layout = self.model.layout
        exchanges = (layout.tensor, layout.pipeline, layout.expert) != (1, 1, 1)
        return not exchanges and self.model.routing.watch is None

    def finish(self) -> None:
        """Makes passes until every rank's answers have ended. Collective."""
        while True:
            free = [n for n, answer in enumerate(self.slots) if answer is None]
            running = len(free) < len(self.slots)
            enough = len(free) * REFILL >= len(self.slots) or not running
            coming = (
                [self.waiting.popleft() for _ in range(min(len(free), len(self.waiting)))] if enough else []
            )
            longest = max((len(a.prompt) for a in coming), default=0)
            rows, length, running = self._largest(len(coming), longest, running or bool(coming))
            if not running:
                return
            if rows:
                self._begin(coming, free, rows, length)
            if self._largest(any(answer is not None for answer in self.slots))[0]:
                self._go_on()

    def _largest(self, *values: int) -> list[int]:
        """The largest of each of ``values`` over all ranks. Collective."""
        if dist.get_world_size() == 1:
            return [int(value) for value in values]
        shared = torch.tensor([int(value) for value in values], device=cpu.device())
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return shared.tolist()

    def _begin(self, coming: list[_Answer], free: list[int], rows: int, length: int) -> None:
        """Reads the prompts of ``coming`` and draws their first tokens; ``rows`` and ``length`` are those of
        all ranks."""
        rows = _up(rows, self.tensor)
        pad = self.sampler.pad_id
        device = cpu.device()
        answers = [*coming, *[None] * (rows - len(coming))]
        prompts = [[pad] if answer is None else answer.prompt for answer in answers]
        # Rows that nobody asked for write to the cache's last row, which belongs to no slot.
        slots_r = torch.tensor(
            [*free[: len(coming)], *[len(self.slots)] * (rows - len(coming))], device=device
        )
        ids_rn = torch.tensor([p + [pad] * (length - len(p)) for p in prompts], device=device)
        lengths_r = torch.tensor([len(p) for p in prompts], device=device)
        last_r = torch.arange(rows, device=device) * length + lengths_r - 1
        positions_rn = torch.arange(length, device=device).expand(rows, length)
        logits_rv = self._logits(ids_rn, positions_rn, slots=slots_r, keep=last_r, reach=length)
        for slot, answer in zip(free, coming, strict=False):
            self.slots[slot] = answer
        uniforms_r = torch.tensor([*map(_next_uniform, answers)], dtype=torch.float64, device=device)
        self._draw(logits_rv, answers, uniforms_r)

    def _go_on(self) -> None:
        """Draws one more token for every slot."""
        pad = self.sampler.pad_id
        # One pinned buffer and one copy that nobody waits for: three copies would be three launches for every
        # token.
        self.host[0] = torch.tensor([a.ids[-1] if a else pad for a in self.slots])
        self.host[1] = torch.tensor([a.position if a else 0 for a in self.slots])
        uniforms = torch.tensor([_next_uniform(a) for a in self.slots], dtype=torch.float64)
        self.host[2].view(torch.float64).copy_(uniforms)
        self.given.copy_(self.host, non_blocking=True)
        reach = int(self.host[1].max()) + 1
        if self.on_gpu:
            reach = _up(reach, REACH)
        logits_rv = self._recorded(reach) if self.records else self._pass(reach)
        self._draw(logits_rv, self.slots, self.given[2].view(torch.float64))

    def _pass(self, reach: int) -> Tensor | None:
        return self._logits(self.given[0][:, None], self.given[1][:, None], reach=reach)

    def _recorded(self, reach: int) -> Tensor:
        """Makes the same pass by its graph, which is recorded when a reach is new."""
        if reach not in self.graph_of:
            # Libraries make their plans in a first pass; to write the same keys and values twice is no harm.
            self._pass(reach)
            graph = torch.cuda.CUDAGraph()
            shared = next((other.pool() for other, _ in self.graph_of.values()), None)
            with torch.cuda.graph(graph, pool=shared):
                logits_rv = self._pass(reach)
            self.graph_of[reach] = (graph, logits_rv)
        graph, logits_rv = self.graph_of[reach]
        graph.replay()
        return logits_rv

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

    def _logits(self, ids_rn: Tensor, positions_rn: Tensor, **more) -> Tensor | None:
        """Logits ``[r, v]`` in fp32 on the last pipeline rank, None on the others."""
        out = through_stages(
            self.model, ids_rn.reshape(1, -1), positions_rn.reshape(1, -1), cache=self.cache, **more
        )
        return None if out is None else out[0].float()


def through_stages(model: LanguageModel, ids_1t: Tensor, positions_1t: Tensor, **more) -> Tensor | None:
    """Returns ``model(ids_1t, positions_1t, **more)`` on the last pipeline rank, None on the others."""
    if not model.pre_process:
        tokens = ids_1t.shape[1] // parallel_state.get_tensor_model_parallel_world_size()
        shape = (tokens, 1, model.shape.hidden_size)
        hidden = torch.empty(shape, dtype=model.config.params_dtype, device=ids_1t.device)
        # As bytes: not every backend sends bfloat16.
        dist.recv(hidden.view(torch.uint8), src=parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(hidden)
    out = model(ids_1t, positions_1t, **more)
    if model.post_process:
        return out
    dist.send(out.contiguous().view(torch.uint8), dst=parallel_state.get_pipeline_model_parallel_next_rank())
    return None


def draw(logits_rv: Tensor, uniforms_r: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Returns a token for each row and its log-probability, both ``[r]`` fp64.

    ``uniforms_r``: a random number for each; its token is the first at which the sum of probabilities exceeds
    it.
    """
    logprobs_rv = (logits_rv / temperature if temperature else logits_rv).log_softmax(-1)
    if not temperature:
        token_r1 = logprobs_rv.argmax(-1, keepdim=True)
    else:
        probs_rv = logprobs_rv.double().exp()
        if top_p < 1:
            # Nucleus sampling (Holtzman et al. 2020): the more likely tokens before one have less than top_p
            # together.
            ordered, order = probs_rv.sort(-1, descending=True)
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
            probs_rv = torch.zeros_like(probs_rv).scatter(-1, order, ordered)
        # Times the last sum, which rounding and top-p leave other than 1.
        sums_rv = probs_rv.cumsum(-1)
        token_r1 = (sums_rv <= uniforms_r[:, None] * sums_rv[:, -1:]).sum(-1, keepdim=True)
    return token_r1.squeeze(-1).double(), logprobs_rv.gather(-1, token_r1).squeeze(-1).double()
