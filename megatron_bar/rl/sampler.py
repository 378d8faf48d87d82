"""Sampling from the very weights that train, under every layout, with a KV cache and exact log-probabilities.

The rows of a batch are laid out flat, ``[1, rows * new tokens]``, so that sequence parallelism can cut them like any
sequence. All ranks take the same number of steps over the same number of rows: experts spread over data-parallel ranks
meet in every layer. Not here: refilling finished rows, top-p, stop strings.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_bar.errors import BarError
from megatron_bar.models.build import LanguageModel
from megatron_bar.parallel import cpu


@dataclass(frozen=True, kw_only=True)
class Completion:
    ids: list[int]
    """Without the prompt; with the end-of-text token if it was produced."""
    logprobs: list[float]
    """Of every id under the distribution it was drawn from; at temperature 0, under the model's own."""
    finished: bool
    """Whether it ended with end-of-text, not at the length limit."""


class Sampler:
    def __init__(self, model: LanguageModel, *, eos_ids: set[int], pad_id: int):
        self.model, self.eos_ids, self.pad_id = model, eos_ids, pad_id

    @torch.no_grad()
    def generate(
        self, prompts: list[list[int]], *, max_new_tokens: int, temperature: float = 1.0, seed: int = 0, slots: int = 64
    ) -> list[Completion]:
        """One completion per prompt, in order. Every rank passes all prompts and gets all completions. Collective.

        Data-parallel ranks share the prompts out; ``slots`` of them are sampled at a time on each. ``temperature`` 0 is
        greedy. Draws depend on ``seed`` and the number of data-parallel ranks.
        """
        limit = self.model.shape.max_positions - max_new_tokens
        for number, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= limit:
                raise BarError(f"prompt {number} has {len(prompt)} tokens; expected 1 to {limit} (with {max_new_tokens} to come)")
        rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        # Alike lengths together: a batch runs as long as its longest row.
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        generator = torch.Generator(device=cpu.device()).manual_seed(seed * size + rank)
        training = self.model.training
        self.model.eval()
        mine: dict[int, Completion] = {}
        for start in range(0, len(order), slots * size):
            block = order[start : start + slots * size]
            numbers = block[rank::size]
            rows = -(-len(block) // size)
            length = max(len(prompts[n]) for n in block)
            done = self._batch([prompts[n] for n in numbers], rows, length, max_new_tokens, temperature, generator)
            mine.update(zip(numbers, done, strict=False))
        self.model.train(training)
        if size > 1:
            everyone: list = [None] * size
            dist.all_gather_object(everyone, mine, group=parallel_state.get_data_parallel_group())
            mine = {n: completion for part in everyone for n, completion in part.items()}
        return [mine[n] for n in range(len(prompts))]

    def _batch(self, prompts, rows, length, max_new_tokens, temperature, generator) -> list[Completion]:
        """``rows`` prompts of at most ``length`` tokens at once; those missing are filled up and thrown away."""
        tensor = parallel_state.get_tensor_model_parallel_world_size()
        rows = -(-rows // tensor) * tensor
        prompts = prompts + [[self.pad_id]] * (rows - len(prompts))
        device = cpu.device()
        cache = self.model.new_cache(rows=rows, max_length=length + max_new_tokens)
        ids = torch.tensor([p + [self.pad_id] * (length - len(p)) for p in prompts], device=device)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        positions = torch.arange(length, device=device).expand(rows, length)
        last = torch.arange(rows, device=device) * length + lengths - 1
        logits = self._logits(ids, positions, cache, keep=last)
        tokens, logprobs, ended = [], [], torch.zeros(rows, dtype=torch.bool, device=device)
        eos = torch.tensor(sorted(self.eos_ids), device=device)
        for step in range(max_new_tokens):
            token, logprob = self._draw(logits, rows, temperature, generator)
            tokens.append(token.masked_fill(ended, self.pad_id))
            logprobs.append(logprob)
            ended = ended | torch.isin(token, eos)
            if step == max_new_tokens - 1 or self._all_ended(ended):
                break
            logits = self._logits(tokens[-1][:, None], (lengths + step)[:, None], cache)
        return self._completions(torch.stack(tokens, 1), torch.stack(logprobs, 1))

    def _completions(self, tokens: Tensor, logprobs: Tensor) -> list[Completion]:
        out = []
        for ids, values in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            end = next((n + 1 for n, token in enumerate(ids) if token in self.eos_ids), None)
            out.append(Completion(ids=ids[:end], logprobs=values[:end], finished=end is not None))
        return out

    def _logits(self, ids: Tensor, positions: Tensor, cache, keep: Tensor | None = None) -> Tensor | None:
        """``[rows, vocabulary]`` fp32 on the last pipeline rank, None on the others. ``ids`` ``[rows, new]``."""
        flat_ids, flat_positions = ids.reshape(1, -1), positions.reshape(1, -1)
        model, (first, last) = self.model, (self.model.pre_process, self.model.post_process)
        if not first:
            shape = (flat_ids.shape[1] // parallel_state.get_tensor_model_parallel_world_size(), 1, model.shape.hidden_size)
            hidden = torch.empty(shape, dtype=model.config.params_dtype, device=ids.device)
            dist.recv(hidden.view(torch.uint8), src=parallel_state.get_pipeline_model_parallel_prev_rank())
            model.set_input_tensor(hidden)
        out = model(flat_ids, flat_positions, cache=cache, keep=keep)
        if not last:
            dist.send(out.contiguous().view(torch.uint8), dst=parallel_state.get_pipeline_model_parallel_next_rank())
            return None
        return out[0].float()

    def _draw(self, logits: Tensor | None, rows: int, temperature: float, generator) -> tuple[Tensor, Tensor]:
        """The next token and its log-probability for every row, the same on all pipeline ranks."""
        drawn = torch.empty(2, rows, dtype=torch.float64, device=cpu.device())
        if logits is not None:
            logprobs = (logits / temperature if temperature else logits).log_softmax(-1)
            if temperature:
                token = torch.multinomial(logprobs.exp(), 1, generator=generator)
            else:
                token = logprobs.argmax(-1, keepdim=True)
            drawn = torch.stack((token.double(), logprobs.gather(-1, token).double())).squeeze(-1)
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            dist.broadcast(
                drawn,
                src=parallel_state.get_pipeline_model_parallel_last_rank(),
                group=parallel_state.get_pipeline_model_parallel_group(),
            )
        return drawn[0].long(), drawn[1].float()

    def _all_ended(self, ended: Tensor) -> bool:
        running = (~ended).any().int()
        if dist.get_world_size() > 1:
            dist.all_reduce(running, op=dist.ReduceOp.MAX)
        return not running
