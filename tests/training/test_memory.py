"""What the planner says a rank holds, against what the real objects hold after a real step: to the byte."""

from collections.abc import Iterable

import pytest
import torch
import torch.distributed as dist
from distributed import run_distributed
from folders import save_hf
from torch import Tensor

from megatron_bar.data.indexed import in_memory
from megatron_bar.data.loader import Loader
from megatron_bar.data.packing import PackedRows
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.training.memory import Spread, states
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.groups import POLICIES

LENGTH, ROWS = 16, 4
LAYOUTS = {
    "tp1": (ParallelConfig(), 1),
    "dp2": (ParallelConfig(), 2),
    "tp2": (ParallelConfig(tensor=2), 2),
    "ep2": (ParallelConfig(expert=2), 2),
    "pp2": (ParallelConfig(pipeline=2), 2),
    "tp2 dp2": (ParallelConfig(tensor=2), 4),
    "tp2 ep2": (ParallelConfig(tensor=2, expert=2), 4),
}
MOE = ("midtrain", "sft", "rlvr", "route")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root, shape = tmp_path_factory.mktemp("sources"), {"vocab_size": 61}
    cases = [(dtype, policy) for dtype in ("float32", "bfloat16") for policy in (*MOE, "dense_all")]
    return {
        case: save_hf(root / "-".join(case), experts={"route": 4, "dense_all": 0}.get(case[1], 2), dtype=case[0], **shape)
        for case in cases
    }


def stage(policy: str, layout: ParallelConfig, **changes) -> Stage:
    optim = OptimConfig(lr=1e-2)
    return Stage(
        name=policy, policy=policy, optim=optim, sequence=LENGTH, batch=ROWS, router_z_loss=1e-3, parallel=layout, **changes
    )


def step(trainer: Trainer) -> None:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, trainer.model.shape.vocab_size, (40, 7), generator=generator).tolist()
    rows = PackedRows([("x", in_memory([(document, [True] * 7) for document in ids]))], LENGTH, pad_id=0)
    ranks = {"data_rank": trainer.data_rank, "data_size": trainer.data_size}
    loader = Loader([rows], global_batch=ROWS, micro_batch=1, seed=0, steps=100, **ranks)
    trainer.step(loader.step(0).micro_batches, LanguageModelling())


def storages(tensors: Iterable[Tensor | None]) -> dict[int, int]:
    """Bytes of each different storage."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}


def held(sources: dict, layout: ParallelConfig) -> dict:
    """By case: (weights, gradients, optimizer) of this rank as they are, and as they were foretold."""
    found = {}
    for (dtype, policy), source in sources.items():
        if policy == "dense_all" and layout.expert > 1:
            continue
        trainer = Trainer(source, stage(policy, layout), steps=1)
        step(trainer)
        weights = storages(trainer.model.parameters())
        buffers = trainer.ddp.buffers + trainer.ddp.expert_parallel_buffers
        gradients = storages([b.grad_data for b in buffers] + [p.grad for p in trainer.model.parameters()])
        optimizer: dict[int, int] = {}
        for part in trainer.optimizer_parts:
            mains = [p for group in part.optimizer.param_groups for p in group["params"]]
            state = [v for values in part.optimizer.state.values() for v in values.values() if torch.is_tensor(v)]
            optimizer |= storages([*mains, *(main.grad for main in mains), *state])
        optimizer = {at: size for at, size in optimizer.items() if at not in weights and at not in gradients}
        shape = trainer.model.shape
        spread = Spread.of(shape, layout, dist.get_world_size())
        said = states(shape, POLICIES[policy], spread, spread.place(dist.get_rank()))
        real = tuple(sum(part.values()) for part in (weights, gradients, optimizer))
        found[dtype, policy] = real, (said.weights, said.gradients, said.optimizer)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_gradients_and_optimizer_are_foretold_to_the_byte(layout, sources):
    layout, processes = LAYOUTS[layout]
    for rank, found in enumerate(run_distributed(held, processes, sources, layout)):
        for case, (real, said) in found.items():
            assert real == said, (rank, case)
            assert real[0] > 0
