"""The passes of sampling over its slots: prompts are read, or each slot gets one token more.

`StagePasses` go through the model as it trains, under every layout and on every device; `PlainPasses` through
its plain form (plain.py), on a CPU whose ranks each have the model whole.

Legend: r rows (sequences in a pass), n new tokens of each, v vocabulary, 1 a batch of one.
"""

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_bar.models.build import LanguageModel
from megatron_bar.models.plain import PlainModel, group_size
from megatron_bar.parallel import cpu

REACH = 256
"""Unit of the cache's length that a GPU attends to: kernels are chosen, and graphs recorded, by shape."""
WIDTHS = 32
"""Numbers of rows that plain passes have: oneDNN makes its kernels anew for each, in a millisecond or two."""


def is_whole(model: LanguageModel) -> bool:
    """Returns whether each rank has all of the model, so that ranks exchange nothing inside a pass."""
    layout = model.layout
    return (layout.tensor, layout.pipeline, layout.expert) == (1, 1, 1)


class StagePasses:
    """Passes through the model as it trains, all of which all ranks make together, over the same number of
    rows: experts spread over data-parallel ranks meet in every layer."""

    together = True

    def __init__(self, model: LanguageModel, *, slots: int, longest: int, pad_id: int, graphs: bool):
        self.model = model
        self.pad_id = pad_id
        self.tensor = parallel_state.get_tensor_model_parallel_world_size()
        self.slots = _up(slots, self.tensor)  # sequence parallelism cuts the rows
        device = cpu.device()
        self.on_gpu = device.type == "cuda"
        max_length = _up(longest, REACH) if self.on_gpu else longest
        self.cache = model.new_cache(rows=self.slots, max_length=max_length)
        # A graph is kernels alone: it leaves out what ranks exchange and what the host does.
        self.records = graphs and self.on_gpu and is_whole(model) and model.routing.watch is None
        self.host = torch.zeros(3, self.slots, dtype=torch.int64, pin_memory=self.on_gpu)
        """Ids, positions and, as the bits of fp64, uniform numbers of the next pass over all slots."""
        self.given = torch.zeros(3, self.slots, dtype=torch.int64, device=device)
        """Those numbers where the model is."""
        self.graph_of: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        """Recorded passes by reach, each with its logits."""

    def rows(self, at_work: int) -> int:
        """Returns how many slots the next pass has when the first ``at_work`` of them are."""
        return self.slots

    def read(self, prompts: list[list[int]], slots: list[int], rows: int, length: int) -> Tensor | None:
        """Reads ``prompts`` into ``slots`` -> the logits ``[r, v]`` that follow, fp32, on the last pipeline
        rank. ``rows`` and ``length``: the largest of all ranks."""
        device = cpu.device()
        # Rows that nobody asked for write to the cache's last row, which belongs to no slot.
        nobody = _up(rows, self.tensor) - len(prompts)
        slots_r = torch.tensor([*slots, *[self.slots] * nobody], device=device)
        ids_rn, lengths_r = _side_by_side([*prompts, *[[self.pad_id]] * nobody], length, self.pad_id)
        last_r = torch.arange(len(ids_rn), device=device) * length + lengths_r - 1
        positions_rn = torch.arange(length, device=device).expand_as(ids_rn)
        logits_rv = self._logits(ids_rn, positions_rn, slots=slots_r, keep=last_r, reach=length)
        return None if logits_rv is None else logits_rv[: len(prompts)]

    def go_on(
        self, ids: list[int], positions: list[int], uniforms: list[float]
    ) -> tuple[Tensor | None, Tensor]:
        """Reads one token more in every slot -> logits as `read` gives them, and ``uniforms`` where those
        are."""
        # One pinned buffer and one copy that nobody waits for: three copies would be three launches for every
        # token.
        self.host[0] = torch.tensor(ids)
        self.host[1] = torch.tensor(positions)
        self.host[2].view(torch.float64).copy_(torch.tensor(uniforms, dtype=torch.float64))
        self.given.copy_(self.host, non_blocking=True)
        reach = max(positions) + 1
        if self.on_gpu:
            reach = _up(reach, REACH)
        logits_rv = self._recorded(reach) if self.records else self._pass(reach)
        return logits_rv, self.given[2].view(torch.float64)

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

    def _logits(self, ids_rn: Tensor, positions_rn: Tensor, **more) -> Tensor | None:
        out = through_stages(
            self.model, ids_rn.reshape(1, -1), positions_rn.reshape(1, -1), cache=self.cache, **more
        )
        return None if out is None else out[0].float()


class PlainPasses:
    """Passes of one rank by itself, over the slots that are at work: the first ones."""

    together = False

    def __init__(self, model: LanguageModel, *, slots: int, longest: int, pad_id: int):
        self.model = PlainModel(model, longest)
        self.pad_id = pad_id
        self.slots = slots
        self.group = group_size(slots)
        """Slots whose answers should be alike in length (see there)."""
        self.cache = model.new_cache(rows=slots, max_length=longest, dtype=torch.float32)

    def rows(self, at_work: int) -> int:
        """Returns how many slots the next pass has when the first ``at_work`` of them are."""
        return min(self.slots, _up(at_work, _up(self.slots, WIDTHS) // WIDTHS))

    def move(self, slot: int, to: int, length: int) -> None:
        """Copies the first ``length`` places of a slot into another one."""
        for buffer in (self.cache.keys, self.cache.values):
            buffer[:, to, :, :length] = buffer[:, slot, :, :length]

    def read(self, prompts: list[list[int]], slots: list[int], rows: int, length: int) -> Tensor:
        """Reads prompts as `StagePasses.read` does; no row is there for the other ranks' sake."""
        ids_rn, lengths_r = _side_by_side(prompts, length, self.pad_id)
        return self.model.read(ids_rn, lengths_r, torch.tensor(slots), self.cache)

    def go_on(self, ids: list[int], positions: list[int], uniforms: list[float]) -> tuple[Tensor, Tensor]:
        """Reads one token more in each of the first slots, as many as are given."""
        logits_rv = self.model.go_on(torch.tensor(ids), torch.tensor(positions), self.cache)
        return logits_rv, torch.tensor(uniforms, dtype=torch.float64)


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


def _side_by_side(prompts: list[list[int]], length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Returns the ids ``[r, length]`` of prompts filled up, and the prompts' lengths ``[r]``."""
    ids_rn = torch.tensor([p + [pad_id] * (length - len(p)) for p in prompts], device=cpu.device())
    return ids_rn, torch.tensor([len(p) for p in prompts], device=cpu.device())


def _up(count: int, unit: int) -> int:
    """``count`` rounded up to a multiple of ``unit``."""
    return -(-count // unit) * unit
