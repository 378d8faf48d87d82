"""Sampling from the very weights that train, under every layout, with a KV cache and exact log-probabilities.

A slot whose answer has ended takes the next prompt while the others go on. The rows of a pass are laid out flat,
``[1, rows * new tokens]``, so that sequence parallelism can cut them like any sequence. All ranks make the same passes over the
same number of rows, since experts spread over data-parallel ranks meet in every layer. What is drawn depends on the seed, the
prompt's number and the probabilities alone, not on slots or layout.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_bar.errors import BarError
from megatron_bar.models.build import LanguageModel
from megatron_bar.parallel import cpu

REACH = 256
"""On a GPU a multiple of this many places of the cache are attended to: kernels are chosen, and graphs recorded, by shape."""
REFILL = 8
"""New prompts come in when this part (one in so many) of the slots is free: fewer, larger passes over prompts."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    ids: list[int]
    """Without the prompt; with the token that ended it."""
    logprobs: list[float]
    """Of every id under the distribution at the temperature, whole also where top-p cut it; at temperature 0, the model's own."""
    finished: bool
    """Whether it ended by itself, not at the length limit."""


@dataclass
class _Answer:
    """One that is being written."""

    number: int
    prompt: list[int]
    limit: int
    draws: list[float]
    """One uniform number per token to come."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False

    @property
    def ended(self) -> bool:
        return self.stopped or len(self.ids) >= self.limit

    @property
    def position(self) -> int:
        """Of its last token."""
        return len(self.prompt) + len(self.ids) - 1


def stop_at(strings: Sequence[str], decode: Callable[[list[int]], str]) -> Callable[[list[int]], bool]:
    """Whether the end of an answer's text holds one of ``strings``."""
    longest = max(map(len, strings), default=0)
    # A token is a character at least in part: four bytes of it at most.
    return lambda ids: any(string in decode(ids[-4 * longest - 4 :]) for string in strings)


class Sampler:
    def __init__(self, model: LanguageModel, *, eos_ids: set[int], pad_id: int, graphs: bool = True):
        """``graphs``: on a GPU whose ranks exchange nothing inside the model a pass is recorded once for every `REACH` and then
        launched whole, as a CUDA graph; launched one by one its kernels take longer to start than to run."""
        self.model, self.eos_ids, self.pad_id, self.graphs = model, eos_ids, pad_id, graphs

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
        """One completion per prompt, in order. Every rank passes all prompts and gets all completions. Collective.

        ``max_new_tokens``: one number, or one per prompt. ``temperature`` 0 is greedy. ``top_p`` draws from the most
        likely tokens that together have that probability. Data-parallel ranks share the prompts out; ``slots`` are at
        work at a time on each. ``stop``: whether an answer ends with the ids so far (see `stop_at`).
        ``on_token`` is told the number of a prompt and a token of its answer as soon as that is drawn, on the ranks that
        write the answer; of a single prompt rank 0 is one.
        """
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        for number, (prompt, new) in enumerate(zip(prompts, limits, strict=True)):
            limit = self.model.shape.max_positions - new
            if not 0 < len(prompt) <= limit or new < 1:
                raise BarError(f"prompt {number} has {len(prompt)} tokens; expected 1 to {limit} (with {new} to come)")
        rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        # Alike lengths together: prompts that come in together are filled up to the longest.
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        answers = [_Answer(n, prompts[n], limits[n], _uniforms(seed, n, limits[n])) for n in order[rank::size]]
        training = self.model.training
        self.model.eval()
        longest = max((len(p) + new for p, new in zip(prompts, limits, strict=True)), default=0)
        if prompts:
            count = min(slots, -(-len(prompts) // size))
            _Slots(self, answers, count, longest, temperature, top_p, stop, on_token).finish()
        self.model.train(training)
        mine = {a.number: Completion(ids=a.ids, logprobs=a.logprobs, finished=a.stopped) for a in answers}
        if size > 1:
            everyone: list = [None] * size
            dist.all_gather_object(everyone, mine, group=parallel_state.get_data_parallel_group())
            mine = {n: completion for part in everyone for n, completion in part.items()}
        return [mine[n] for n in range(len(prompts))]


def _uniforms(seed: int, number: int, count: int) -> list[float]:
    generator = torch.Generator().manual_seed((seed << 32) + number)
    return torch.rand(count, generator=generator, dtype=torch.float64).tolist()


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
        self.sampler, self.model, self.stop, self.on_token = sampler, sampler.model, stop, on_token
        self.temperature, self.top_p = temperature, top_p
        self.tensor = parallel_state.get_tensor_model_parallel_world_size()
        slots = -(-slots // self.tensor) * self.tensor
        self.waiting = deque(answers)
        self.slots: list[_Answer | None] = [None] * slots
        device, layout = cpu.device(), self.model.layout
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            longest = -(-longest // REACH) * REACH
        self.cache = self.model.new_cache(rows=slots, max_length=longest)
        watched = any(router.watch for router in self.model.routers())  # by code of the host, which a graph leaves out
        apart = (layout.tensor, layout.pipeline, layout.expert) == (1, 1, 1)
        self.records = sampler.graphs and self.on_gpu and apart and not watched
        self.host = torch.zeros(3, slots, dtype=torch.int64, pin_memory=self.on_gpu)
        """Ids, positions and, as the bits of fp64, uniform numbers of the next pass over all slots."""
        self.given = torch.zeros(3, slots, dtype=torch.int64, device=device)
        """The same where the model is."""
        self.graph_of: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        """By reach: a recorded pass, and its logits."""

    def finish(self) -> None:
        while True:
            free = [n for n, answer in enumerate(self.slots) if answer is None]
            running = len(free) < len(self.slots)
            enough = len(free) * REFILL >= len(self.slots) or not running
            coming = [self.waiting.popleft() for _ in range(min(len(free), len(self.waiting)))] if enough else []
            rows, length, running = self._agree(
                len(coming), max((len(a.prompt) for a in coming), default=0), running or bool(coming)
            )
            if not running:
                return
            if rows:
                self._begin(coming, free, rows, length)
            if self._agree(any(answer is not None for answer in self.slots))[0]:
                self._go_on()

    def _agree(self, *values: int) -> list[int]:
        """The largest of each over all ranks."""
        if dist.get_world_size() == 1:
            return [int(value) for value in values]
        shared = torch.tensor([int(value) for value in values], device=cpu.device())
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return shared.tolist()

    def _begin(self, coming: list[_Answer], free: list[int], rows: int, length: int) -> None:
        """Reads the prompts of ``coming`` and draws their first tokens; ``rows`` and ``length`` are those of all ranks."""
        rows, pad, device = -(-rows // self.tensor) * self.tensor, self.sampler.pad_id, cpu.device()
        prompts = [a.prompt for a in coming] + [[pad]] * (rows - len(coming))
        slots = torch.tensor([*free[: len(coming)], *[len(self.slots)] * (rows - len(coming))], device=device)
        ids = torch.tensor([p + [pad] * (length - len(p)) for p in prompts], device=device)
        last = torch.arange(rows, device=device) * length + torch.tensor([len(p) for p in prompts], device=device) - 1
        positions = torch.arange(length, device=device).expand(rows, length)
        logits = self._logits(ids, positions, slots=slots, keep=last, reach=length)
        for slot, answer in zip(free, coming, strict=False):
            self.slots[slot] = answer
        answers = [*coming, *[None] * (rows - len(coming))]
        self._draw(logits, answers, torch.tensor([*map(_next_uniform, answers)], dtype=torch.float64, device=device))

    def _go_on(self) -> None:
        """One more token for every slot."""
        pad = self.sampler.pad_id
        self.host[0] = torch.tensor([a.ids[-1] if a else pad for a in self.slots])
        self.host[1] = torch.tensor([a.position if a else 0 for a in self.slots])
        self.host[2].view(torch.float64).copy_(torch.tensor([_next_uniform(a) for a in self.slots], dtype=torch.float64))
        self.given.copy_(self.host, non_blocking=True)
        reach = int(self.host[1].max()) + 1
        if self.on_gpu:
            reach = -(-reach // REACH) * REACH
        self._draw(self._recorded(reach) if self.records else self._pass(reach), self.slots, self.given[2].view(torch.float64))

    def _pass(self, reach: int) -> Tensor | None:
        return self._logits(self.given[0][:, None], self.given[1][:, None], reach=reach)

    def _recorded(self, reach: int) -> Tensor:
        """`_pass` by its graph."""
        if reach not in self.graph_of:
            self._pass(reach)  # libraries make their plans; to write the same keys and values twice does no harm
            graph = torch.cuda.CUDAGraph()
            shared = next((other.pool() for other, _ in self.graph_of.values()), None)
            with torch.cuda.graph(graph, pool=shared):
                logits = self._pass(reach)
            self.graph_of[reach] = graph, logits
        graph, logits = self.graph_of[reach]
        graph.replay()
        return logits

    def _draw(self, logits: Tensor | None, answers: list[_Answer | None], uniforms: Tensor) -> None:
        """Appends a token to each of ``answers``, the rows of ``logits``, the same on all pipeline ranks; frees ended slots."""
        drawn = torch.empty(2, len(answers), dtype=torch.float64, device=cpu.device())
        if logits is not None:
            drawn = torch.stack(draw(logits, uniforms, self.temperature, self.top_p))
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            dist.broadcast(
                drawn,
                src=parallel_state.get_pipeline_model_parallel_last_rank(),
                group=parallel_state.get_pipeline_model_parallel_group(),
            )
        tokens, logprobs = drawn.tolist()
        for answer, token, logprob in zip(answers, tokens, logprobs, strict=True):
            if answer is not None:
                answer.ids.append(int(token))
                answer.logprobs.append(logprob)
                answer.stopped = int(token) in self.sampler.eos_ids or (self.stop is not None and self.stop(answer.ids))
                if self.on_token is not None:
                    self.on_token(answer.number, int(token))
        self.slots = [None if answer is None or answer.ended else answer for answer in self.slots]

    def _logits(self, ids: Tensor, positions: Tensor, **more) -> Tensor | None:
        """``[rows, vocabulary]`` fp32 on the last pipeline rank, None on the others. ``ids`` ``[rows, new]``."""
        out = through_stages(self.model, ids.reshape(1, -1), positions.reshape(1, -1), cache=self.cache, **more)
        return None if out is None else out[0].float()


def through_stages(model: LanguageModel, ids: Tensor, positions: Tensor, **more) -> Tensor | None:
    """What ``model(ids, positions, **more)`` gives on the last pipeline rank, None on the others. ``ids`` ``[1, tokens]``."""
    if not model.pre_process:
        shape = (ids.shape[1] // parallel_state.get_tensor_model_parallel_world_size(), 1, model.shape.hidden_size)
        hidden = torch.empty(shape, dtype=model.config.params_dtype, device=ids.device)
        dist.recv(hidden.view(torch.uint8), src=parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(hidden)
    out = model(ids, positions, **more)
    if model.post_process:
        return out
    dist.send(out.contiguous().view(torch.uint8), dst=parallel_state.get_pipeline_model_parallel_next_rank())
    return None


def draw(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """A token per row of ``logits`` ``[rows, vocabulary]`` and its log-probability, both ``[rows]`` fp64.

    ``uniforms`` ``[rows]``: a random number for each; its token is the first at which the sum of probabilities exceeds it.
    """
    logprobs = (logits / temperature if temperature else logits).log_softmax(-1)
    if not temperature:
        token = logprobs.argmax(-1, keepdim=True)
    else:
        probs = logprobs.double().exp()
        if top_p < 1:  # nucleus sampling (Holtzman et al. 2020): what comes before a token in order of likelihood is below top_p
            ordered, places = probs.sort(-1, descending=True)
            ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
            probs = torch.zeros_like(probs).scatter(-1, places, ordered)
        sums = probs.cumsum(-1)
        token = (sums <= uniforms[:, None] * sums[:, -1:]).sum(-1, keepdim=True)
    return token.squeeze(-1).double(), logprobs.gather(-1, token).squeeze(-1).double()
