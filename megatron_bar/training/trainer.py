"""One stage on one cluster: a folder in, steps of an objective, a folder out.

Megatron does the parallel work: DDP, distributed optimizer, pipeline schedules. A step's loss is a sum over
what the objective counts (tokens, pairs) and is divided once, by their number in the whole batch, so it does
not depend on the layout.

Legend: b batch, s sequence.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from megatron_bar.models.build import build_model, learnt_places
from megatron_bar.models.shards import load_folder, save_folder
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import broadcast_from_last_stage, on_all_ranks, on_rank_zero, set_layout
from megatron_bar.training.freeze import GradientWatch, certify, check_unmoved, freeze
from megatron_bar.training.meter import Meter
from megatron_bar.training.objective import Objective
from megatron_bar.training.optim import (
    build_optimizer,
    build_scheduler,
    data_parallel,
    distributed_optimizers,
    update,
)
from megatron_bar.training.stage import Stage
from megatron_bar.training.stop import Stop
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import POLICIES
from megatron_bar.weights.hashes import Units, folder_hash
from megatron_bar.weights.manifest import Manifest
from megatron_bar.weights.receipts import Proven


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What is in a batch, all data-parallel ranks together."""

    tokens: int
    loss_tokens: int
    units: int
    """Loss tokens, or what else the objective's loss is a mean over."""
    pairs: int
    """Pairs of tokens of which one attends to the other."""


class Trainer:
    """The model of ``folder`` set up for ``stage``; ``steps`` is where its learning-rate schedule ends.

    ``keep_start``: keeps a copy of what trains as the stage begins, for `start_weights`: a second set of its
    weights.
    """

    def __init__(self, folder: Path, stage: Stage, *, steps: int, keep_start: bool = False):
        self.source = Path(folder)
        self.stage = stage
        self.steps = steps
        self.done = 0
        """Steps, the skipped ones included."""
        self.updates = 0
        """Steps in which the optimizer moved: what is not finite is skipped."""
        self.stop = Stop()
        self.source_units = on_rank_zero(partial(_proven, self.source))
        opened = Folder.open(self.source)
        stage.check(opened.config, dist.get_world_size(), batches=False)
        shape = stage.built(opened.config)
        self.written = stage.written(opened.config)
        """Config of the folder that is written: fewer experts may be active than in the model as built."""
        set_layout(stage.parallel, shape, seed=stage.seed)
        self.model = build_model(shape, stage.parallel, recompute=stage.recompute, attention=stage.attention)
        load_folder(self.model, Folder(opened.path, shape, opened.tensors))
        policy = POLICIES[stage.policy]
        # Before DDP and the optimizer, which size their buffers by what trains.
        self.frozen = freeze(self.model, policy)
        self.frozen_marks = self.frozen.marks()
        config = self.model.config
        config.finalize_model_grads_func = finalize_model_grads
        self.ddp = data_parallel(self.model)
        # Gradients travel with the last micro-batch's backward pass, and not before.
        config.no_sync_func = self.ddp.no_sync
        self.optimizer = build_optimizer(self.ddp, stage.optim)
        self.scheduler = build_scheduler(self.optimizer, stage.optim, steps)
        self.meter = Meter(self.model.shape, policy, dense_router=stage.router_gradient == "dense")
        self._start = self._trained_copy() if keep_start else None
        self._route()

    def _trained_copy(self) -> list[tuple[Tensor, Tensor]]:
        """Every parameter that trains with a copy of it; what is frozen is its own copy."""
        return [(param, param.detach().clone()) for param in self.model.parameters() if param.requires_grad]

    def _route(self) -> None:
        """Sets the routing of the step to come; what is sampled or scored before it is routed alike."""
        if not self.model.shape.num_experts:
            return
        routing = replace(
            self.model.routing,
            active=self.stage.active(self.written, self.done),
            disabled=(0,) if self.stage.is_alone(self.done) else (),
            dense_gradient=self.stage.router_gradient == "dense",
        )
        self.model.route(routing)
        self.meter.active(routing.active)

    @property
    def source_hash(self) -> str:
        """The hash of the folder that the stage starts from."""
        return folder_hash(self.source_units)

    @property
    def optimizer_parts(self) -> list:
        """Megatron's distributed optimizers of this rank."""
        return distributed_optimizers(self.optimizer)

    def resume_at(self, step: int, updates: int) -> None:
        """Goes on behind ``step``; weights and Adam's state are put back elsewhere (see pieces.restore)."""
        self.done = step
        self.updates = updates
        self.scheduler.step(step)
        self._route()

    @property
    def data_rank(self) -> int:
        """This rank's number among those that share the rows out."""
        return parallel_state.get_data_parallel_rank()

    @property
    def data_size(self) -> int:
        """How many ranks share the rows out."""
        return parallel_state.get_data_parallel_world_size()

    def step(self, micro_batches: list[Batch], objective: Objective) -> dict[str, float]:
        """Makes one optimizer step over this data-parallel rank's micro-batches, all of one shape.
        Collective.

        Returns the objective's sums per unit (loss token) of the whole batch, with ``grad_norm`` (before
        clipping), ``lr`` and the batch's ``tokens`` and ``loss_tokens``; the same on every rank. Where one of
        the sums or the norm is not finite, nothing moves, Adam's count of steps included, and ``skipped`` is
        among them; the schedule goes on.
        """
        counts = self._count(micro_batches, objective)
        if not counts.loss_tokens:
            raise BarError("a batch has no token to learn from: every label is masked")
        # The finalizer divides every gradient by the units; this makes the z-loss a mean over all tokens.
        z_loss = self.stage.router_z_loss / self.model.shape.num_layers * counts.units / counts.tokens
        self.model.route(replace(self.model.routing, z_loss=z_loss))
        watch = GradientWatch(self.model) if self.done == 0 else None
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        sums = self._passes(partial(_forward, objective), micro_batches)
        if watch is not None:
            on_all_ranks(watch.check)
        # Before the update: step n of the schedule has the rate of n, and none has rate 0.
        self.scheduler.step(1)
        metrics = self._metrics(sums, objective, counts.units)
        updated, grad_norm = update(self.optimizer, finite=all(map(math.isfinite, metrics.values())))
        self.meter.train(counts.tokens, counts.loss_tokens, counts.pairs)
        self.done += 1
        self.updates += updated
        self._route()
        values = metrics | {"grad_norm": grad_norm, "lr": self.scheduler.get_lr({})}
        values |= {"tokens": counts.tokens, "loss_tokens": counts.loss_tokens}
        return values if updated else values | {"skipped": 1.0}

    def _passes(
        self, step: Callable, micro_batches: list[Batch], *, forward_only: bool = False, **more
    ) -> list:
        """Runs Megatron's schedule; returns what each micro-batch left on the last pipeline rank."""
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
        """Returns every label's nll ``[b, s]`` in fp32, on all ranks of its model. Collective."""
        counts = self._count(micro_batches, objective)
        self.meter.score(counts.tokens, counts.loss_tokens, counts.pairs)
        rows, length = micro_batches[0].ids.shape
        nlls_bs = self._passes(
            partial(_score, objective), micro_batches, forward_only=True, collect_non_loss_data=True
        )
        # Only the last pipeline rank has them; the others bring memory for what it sends.
        values = torch.empty(len(micro_batches), rows, length, device=cpu.device())
        if parallel_state.is_pipeline_last_stage():
            values.copy_(torch.stack(nlls_bs))
        broadcast_from_last_stage(values)
        return list(values)

    def with_logprobs(self, micro_batches: list[Batch], name: str, objective: Objective) -> list[Batch]:
        """Returns the micro-batches with their labels' log-probabilities now as extra values. Collective."""
        nlls_bs = self.token_nll(micro_batches, objective)
        return [
            replace(batch, extras=batch.extras | {name: -nll_bs.cpu()})
            for batch, nll_bs in zip(micro_batches, nlls_bs, strict=True)
        ]

    @contextmanager
    def start_weights(self) -> Iterator[None]:
        """Makes the model what it was when the stage began, to score; needs ``keep_start``."""
        assert self._start is not None
        with torch.no_grad():
            now = [param.detach().clone() for param, _ in self._start]
            for param, start in self._start:
                param.copy_(start)
            try:
                yield
            finally:
                for (param, _), value in zip(self._start, now, strict=True):
                    param.copy_(value)

    def _count(self, micro_batches: list[Batch], objective: Objective) -> Counts:
        """Counts what is in the whole batch. Collective."""
        # Positions begin anew in every document, so a token attends to its position + 1.
        mine = [
            [b.ids.numel(), b.loss_tokens, objective.units(b), int((b.positions + 1).sum())]
            for b in micro_batches
        ]
        counts = torch.tensor(mine).sum(0)
        if self.data_size > 1:
            counts = counts.to(cpu.device())
            dist.all_reduce(counts, group=parallel_state.get_data_parallel_group())
        tokens, loss_tokens, units, pairs = counts.tolist()
        return Counts(tokens=tokens, loss_tokens=loss_tokens, units=units, pairs=pairs)

    def _metrics(self, sums: list, objective: Objective, units: int) -> dict[str, float]:
        total = torch.zeros(len(objective.names) + 1, dtype=torch.float64, device=cpu.device())
        # One rank of each model brings its sums: the last pipeline rank has them, and its tensor ranks the
        # same ones.
        if parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0:
            total[:-1] += torch.stack(sums).sum(0)
        # In this one exchange all ranks learn that one of them was asked to stop.
        total[-1].fill_(self.stop.asked)
        dist.all_reduce(total)
        *values, asked = total.tolist()
        self.stop.agreed = self.stop.agreed or asked > 0
        return {name: value / units for name, value in zip(objective.names, values, strict=True)}

    def save(self, out: Path, *, manifest: Callable[[Folder, Units], Manifest]) -> None:
        """Writes the folder and certifies that what was frozen is the source's, bit by bit. Collective."""
        on_all_ranks(lambda: check_unmoved(self.frozen, self.frozen_marks))

        def certified(written: Folder, units: Units) -> Manifest:
            certificate = certify(POLICIES[self.stage.policy], self.source_units, units)
            return replace(manifest(written, units), frozen=certificate)

        save_folder(
            self.model, Path(out), companions_from=self.source, manifest=certified, config=self.written
        )


def _proven(folder: Path) -> Units:
    """The hashes of all tensors, which are finite and what the folder's manifest says, if it has one."""
    return Proven.open(Folder.open(folder)).prove()


def _forward(objective: Objective, batches: Iterator[Batch], model: torch.nn.Module):
    """Megatron's forward step: the output of the next micro-batch, and what makes a loss of it."""
    host = next(batches)
    units = objective.units(host)  # on the host, where asking costs nothing
    batch = host.to(cpu.device())
    learnt = learnt_places(host.labels)  # likewise
    output = model(
        batch.ids,
        batch.positions,
        labels=batch.labels,
        learnt=learnt.to(cpu.device()),
        documents=batch.documents,
        temperature=objective.temperature,
    )
    return output, partial(_reduce, objective, batch, units)


def _score(objective: Objective, batches: Iterator[Batch], model: torch.nn.Module):
    """A forward step that does not train: what is wanted is the output itself, one tensor."""
    output, _ = _forward(objective, batches, model)
    # Earlier pipeline ranks hand on hidden states.
    nll_bs = output[0] if isinstance(output, tuple) else output
    return nll_bs, lambda values, non_loss_data: values


def _reduce(objective: Objective, batch: Batch, units: int, output: tuple[Tensor, Tensor]):
    loss, sums = objective(*output, batch)
    # Megatron sums the units over micro-batches and ranks, and divides the gradients by them once.
    return loss, torch.full((), units, dtype=torch.int, device=loss.device), sums
