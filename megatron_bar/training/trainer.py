"""One stage on one cluster: a folder in, steps of an objective, a folder out.

Megatron does the parallel work: DDP, distributed optimizer, pipeline schedules. A step's loss is a sum over
what the objective counts (tokens, pairs) and is divided once, by their number in the whole batch, so it does not depend on
the layout.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_bar.data.packing import Batch
from megatron_bar.errors import BarError
from megatron_bar.models.build import build_model
from megatron_bar.models.shards import load_folder, save_folder
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import on_all_ranks, on_rank_zero, set_layout
from megatron_bar.training.freeze import GradientWatch, certify, check_unmoved, freeze
from megatron_bar.training.meter import Meter
from megatron_bar.training.objective import Objective
from megatron_bar.training.optim import build_optimizer, build_scheduler, data_parallel, distributed_optimizers, update
from megatron_bar.training.stage import Stage
from megatron_bar.training.stop import Stop
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import POLICIES
from megatron_bar.weights.hashes import Units, folder_hash
from megatron_bar.weights.manifest import Manifest
from megatron_bar.weights.receipts import Proven


class Trainer:
    """The model of ``folder`` set up for ``stage``; ``steps`` is where its learning-rate schedule ends."""

    def __init__(self, folder: Path, stage: Stage, *, steps: int):
        self.source, self.stage, self.steps = Path(folder), stage, steps
        self.done = self.updates = 0
        """Steps, and those of them in which the optimizer moved: what is not finite is skipped."""
        self.stop = Stop()
        self.source_units = on_rank_zero(partial(_proven, self.source))
        opened = Folder.open(self.source)
        stage.check(opened.config, dist.get_world_size(), batches=False)
        shape, self.written = stage.built(opened.config), stage.written(opened.config)
        set_layout(stage.parallel, shape, seed=stage.seed)
        self.model = build_model(shape, stage.parallel, recompute=stage.recompute, attention=stage.attention)
        load_folder(self.model, Folder(opened.path, shape, opened.tensors))
        policy = POLICIES[stage.policy]
        self.frozen = freeze(self.model, policy)
        self.frozen_hashes = self.frozen.hashes()
        config = self.model.config
        config.finalize_model_grads_func = finalize_model_grads
        self.ddp = data_parallel(self.model)
        config.no_sync_func = self.ddp.no_sync  # gradients travel with the last micro-batch's backward pass, and not before
        self.optimizer = build_optimizer(self.ddp, stage.optim)
        self.scheduler = build_scheduler(self.optimizer, stage.optim, steps)
        self.meter = Meter(self.model.shape, policy, dense_router=stage.router_gradient == "dense")
        self._activate()

    def _activate(self) -> None:
        """The active experts of the step to come."""
        shape = self.model.shape
        if not shape.num_experts:
            return
        active = self.stage.active(self.written, self.done)
        self.model.set_active(active)
        self.meter.active(active)
        for router in self.model.routers():
            router.disabled = (0,) if self.stage.is_alone(self.done) else ()
            router.dense_gradient = self.stage.router_gradient == "dense"

    @property
    def source_hash(self) -> str:
        return folder_hash(self.source_units)

    @property
    def optimizer_parts(self) -> list:
        return distributed_optimizers(self.optimizer)

    def resume_at(self, step: int, updates: int) -> None:
        self.done, self.updates = step, updates
        self.scheduler.step(step)
        self._activate()

    @property
    def data_rank(self) -> int:
        return parallel_state.get_data_parallel_rank()

    @property
    def data_size(self) -> int:
        return parallel_state.get_data_parallel_world_size()

    def step(self, micro_batches: list[Batch], objective: Objective) -> dict[str, float]:
        """One optimizer step over this data-parallel rank's micro-batches, all of one shape. Collective.

        Returns the objective's sums per unit (loss token) of the whole batch, with ``grad_norm`` (before clipping), ``lr`` and
        the batch's ``tokens`` and ``loss_tokens``; the same on every rank. Where one of the sums or the norm is not finite,
        nothing moves, Adam's count of steps included, and ``skipped`` is among them; the schedule goes on.
        """
        tokens, loss_tokens, units, pairs = self._count(micro_batches, objective)
        if not loss_tokens:
            raise BarError("a batch has no token to learn from: every label is masked")
        for router in self.model.routers():
            # The finalizer divides every gradient by the units; this makes the z-loss a mean over all tokens.
            router.z_loss = self.stage.router_z_loss / self.model.shape.num_layers * units / tokens
        watch = GradientWatch(self.model) if self.done == 0 else None
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        sums = self._passes(partial(_forward, objective), micro_batches)
        if watch is not None:
            on_all_ranks(watch.check)
        self.scheduler.step(1)
        metrics = self._metrics(sums, objective, units)
        updated, grad_norm = update(self.optimizer, finite=all(map(math.isfinite, metrics.values())))
        self.meter.train(tokens, loss_tokens, pairs)
        self.done += 1
        self.updates += updated
        self._activate()
        values = metrics | {"grad_norm": grad_norm, "lr": self.scheduler.get_lr({}), "tokens": tokens, "loss_tokens": loss_tokens}
        return values if updated else values | {"skipped": 1.0}

    def _passes(self, step: Callable, micro_batches: list[Batch], *, forward_only: bool = False, **more) -> list:
        """Megatron's schedule over the micro-batches: what each left on the last pipeline rank."""
        rows, length = micro_batches[0].ids.shape
        return get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iter(micro_batches),
            model=[self.ddp],
            num_microbatches=len(micro_batches),
            seq_length=length,
            micro_batch_size=rows,
            forward_only=forward_only,
            **more,
        )

    @torch.no_grad()
    def token_nll(self, micro_batches: list[Batch], objective: Objective) -> list[Tensor]:
        """Of every label, ``[b, s]`` fp32, on all ranks of its model; trains nothing. Collective."""
        tokens, _, _, pairs = self._count(micro_batches, objective)
        self.meter.score(tokens, pairs)
        rows, length = micro_batches[0].ids.shape
        found = self._passes(partial(_score, objective), micro_batches, forward_only=True, collect_non_loss_data=True)
        values = torch.empty(len(micro_batches), rows, length, device=cpu.device())
        if parallel_state.is_pipeline_last_stage():
            values.copy_(torch.stack(found))
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            last, group = (
                parallel_state.get_pipeline_model_parallel_last_rank(),
                parallel_state.get_pipeline_model_parallel_group(),
            )
            dist.broadcast(values, src=last, group=group)
        return list(values)

    @contextmanager
    def start_weights(self) -> Iterator[None]:
        """The model as it was when the stage began, for passes that do not train. Needs `keep_start` beforehand."""
        with torch.no_grad():
            now = [param.detach().clone() for param, _ in self._start]
            for param, start in self._start:
                param.copy_(start)
            try:
                yield
            finally:
                for (param, _), value in zip(self._start, now, strict=True):
                    param.copy_(value)

    def keep_start(self) -> None:
        """Keeps a copy of what will train, before anything has; what is frozen is its own copy."""
        assert self.done == 0
        self._start = [(param, param.detach().clone()) for param in self.model.parameters() if param.requires_grad]

    def _count(self, micro_batches: list[Batch], objective: Objective) -> tuple[int, int, int, int]:
        """Of the whole batch: tokens, loss tokens, the objective's units, and pairs of tokens that attend to each other."""
        # Positions begin anew in every document.
        found = [[b.ids.numel(), b.loss_tokens, objective.units(b), int((b.positions + 1).sum())] for b in micro_batches]
        counts = torch.tensor(found).sum(0)
        if self.data_size > 1:
            counts = counts.to(cpu.device())
            dist.all_reduce(counts, group=parallel_state.get_data_parallel_group())
        return tuple(counts.tolist())

    def _metrics(self, sums: list, objective: Objective, units: int) -> dict[str, float]:
        total = torch.zeros(len(objective.names) + 1, dtype=torch.float64, device=cpu.device())
        if parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0:
            total[:-1] += torch.stack(sums).sum(0)
        total[-1].fill_(self.stop.asked)  # all ranks learn in this one exchange that one of them was asked to stop
        dist.all_reduce(total)
        *values, asked = total.tolist()
        self.stop.agreed = self.stop.agreed or asked > 0
        return {name: value / units for name, value in zip(objective.names, values, strict=True)}

    def save(self, out: Path, *, manifest: Callable[[Folder, Units], Manifest]) -> None:
        """Writes the folder, with the certificate that what was frozen is bit-identical to the source's. Collective."""
        on_all_ranks(lambda: check_unmoved(self.frozen, self.frozen_hashes))

        def certified(written: Folder, units: Units) -> Manifest:
            return replace(manifest(written, units), frozen=certify(POLICIES[self.stage.policy], self.source_units, units))

        save_folder(self.model, Path(out), companions_from=self.source, manifest=certified, config=self.written)


def _proven(folder: Path) -> Units:
    """The hashes of all tensors as they are, which are finite and what the folder's manifest says, if it has one."""
    return Proven.open(Folder.open(folder)).prove()


def _forward(objective: Objective, batches, model):
    host = next(batches)
    units = objective.units(host)  # on the host, where asking costs nothing
    batch = host.to(cpu.device())
    output = model(batch.ids, batch.positions, labels=batch.labels, documents=batch.documents, temperature=objective.temperature)
    return output, partial(_reduce, objective, batch, units)


def _score(objective: Objective, batches, model):
    """A pass that does not train: what is wanted is the output itself, one tensor."""
    output, _ = _forward(objective, batches, model)
    nll = output[0] if isinstance(output, tuple) else output  # earlier pipeline ranks hand on hidden states
    return nll, lambda values, non_loss_data: values


def _reduce(objective: Objective, batch: Batch, units: int, output):
    loss, sums = objective(*output, batch)
    return loss, torch.full((), units, dtype=torch.int, device=loss.device), sums
