"""The formulas give the bytes that torch.distributed really moves in a step of real processes."""

from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed import run_distributed
from folders import save_hf
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_bar.data.packing import Batch
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.planner.dry_run import traffic
from megatron_bar.planner.traffic import Exchange, bubble, exchanges
from megatron_bar.recipes import load_recipe
from megatron_bar.run.pipeline import Pipeline
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.hf_config import ModelConfig, read_config

SMALL = 64
"""Bytes of what the formulas leave out: counts, losses, the gradient norm."""
OPS = {
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "broadcast_": "all_gather",  # of the parameters: each rank its shard (parallel/cpu.py)
    "allreduce_": "all_reduce",
    "alltoall_base_": "all_to_all",
}


class Counted(TorchDispatchMode):
    """Bytes of what the block's collectives put together, sum or send: by operation and ranks in the
    group."""

    def __init__(self):
        super().__init__()
        self.bytes: Counter = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            name = function._schema.name.removeprefix("c10d::")
            op = OPS.get(name, name)
            group = next(dist.ProcessGroup.unbox(arg) for arg in args if isinstance(arg, torch.ScriptObject))
            sides = [arg if isinstance(arg, list) else [arg] for arg in args[:2]]
            sizes = [sum(t.nbytes for t in side if isinstance(t, torch.Tensor)) for side in sides]
            size = (
                sizes[1] if op == "all_to_all" else max(sizes)
            )  # what goes in; of the others, one side is the whole
            if op != "recv_" and group.size() > 1 and size > SMALL:  # a send was counted where it was sent
                self.bytes[op, 2 if op == "send" else group.size()] += size
        return function(*args, **kwargs or {})


def step_bytes(folder: Path, wanted: Stage) -> Counter:
    """Of this process in the second step; the first also asks whether every parameter got a gradient."""
    trainer = Trainer(folder, wanted, steps=2)
    shape = (wanted.micro_batch, wanted.sequence)
    ids = torch.randint(1, 61, shape, generator=torch.Generator().manual_seed(trainer.data_rank))
    positions = torch.arange(wanted.sequence).expand(shape)
    batches = [Batch(ids=ids, positions=positions, labels=ids, documents=None)] * (
        wanted.batch // trainer.data_size
    )
    trainer.step(batches, LanguageModelling())
    with Counted() as counted:
        trainer.step(batches, LanguageModelling())
    return counted.bytes


def formula(shape: ModelConfig, wanted: Stage, world_size: int, pipeline_rank: int) -> Counter:
    found = Counter()
    for exchange in exchanges(shape, wanted, world_size, pipeline_rank=pipeline_rank):
        # On a CPU the gradient buffers are summed for all (parallel/cpu.py).
        summed = exchange.part == "data" and exchange.op == "reduce_scatter"
        found["all_reduce" if summed else exchange.op, exchange.ranks] += exchange.payload
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of sizes that the gradient buffers need not round up."""
    root = tmp_path_factory.mktemp("folders")
    sizes = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 128, "num_key_value_heads": 4}
    return {
        "dense": save_hf(root / "dense", **sizes),
        "two": save_hf(root / "two", experts=2, **sizes),
        "sparse": save_hf(root / "sparse", experts=4, num_experts_per_tok=2, **sizes),
        "qwen3": save_hf(root / "qwen3", family="qwen3", **sizes | {"head_dim": 64}),
        "qwen3-two": save_hf(root / "qwen3-two", family="qwen3", experts=2, **sizes | {"head_dim": 64}),
        "llama-two": save_hf(root / "llama-two", family="llama", experts=2, **sizes | {"head_dim": 64}),
        "qwen2": save_hf(root / "qwen2", family="qwen2", **sizes),
        "qwen2-two": save_hf(root / "qwen2-two", family="qwen2", experts=2, **sizes),
    }


@pytest.mark.parametrize(
    "name, policy, processes, layout",
    [
        ("dense", "dense_all", 2, {"tensor": 2}),
        ("two", "midtrain", 2, {"tensor": 2}),
        ("two", "rlvr", 2, {"tensor": 2}),
        ("two", "route", 2, {"tensor": 2}),
        ("two", "midtrain", 2, {"expert": 2}),
        ("two", "rlvr", 2, {"expert": 2}),
        ("sparse", "midtrain", 2, {"expert": 2}),
        ("two", "sft", 2, {}),
        ("two", "sft", 2, {"pipeline": 2}),
        ("two", "rlvr", 4, {"tensor": 2, "pipeline": 2}),
        ("qwen3", "dense_all", 2, {"tensor": 2}),
        ("qwen3-two", "rlvr", 2, {"tensor": 2}),
        ("qwen3-two", "midtrain", 2, {"expert": 2}),
        ("llama-two", "rlvr", 2, {"tensor": 2}),
        ("qwen2", "dense_all", 2, {"tensor": 2}),
        ("qwen2-two", "rlvr", 2, {"tensor": 2}),
    ],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_formulas_are_what_a_step_moves(name, policy, processes, layout, recompute, folders):
    wanted = Stage(
        name="x",
        policy=policy,
        optim=OptimConfig(lr=1e-3),
        sequence=32,
        batch=4,
        parallel=ParallelConfig(**layout),
        recompute=recompute,
    )
    shape = read_config(folders[name])
    counted = run_distributed(step_bytes, processes, folders[name], wanted)
    per_stage = processes // wanted.parallel.pipeline
    expected = [formula(shape, wanted, processes, rank // per_stage) for rank in range(processes)]
    # Of all ranks together: how many tokens go where is the router's choice.
    assert sum(counted, Counter()) == sum(expected, Counter())


def test_the_document_has_the_table_as_it_is():
    pipeline = Pipeline(load_recipe("olmo2_7b"), Path())
    table = list(traffic(pipeline, pipeline.select(), (8, 16, 32, 64)))
    document = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert len(table) == 2 + 4 * 4 and "\n".join(table) in document


def ring(ranks: int, blocks: int) -> int:
    """Blocks that one rank sends until every rank has all of them: each passes on, ``ranks - 1`` times, what
    it got last."""
    held, sent = [{rank} for rank in range(ranks)], 0
    last = list(range(ranks))
    while any(len(have) < ranks for have in held):
        last = [last[rank - 1] for rank in range(ranks)]
        for rank, block in enumerate(last):
            held[rank].add(block)
        sent += blocks // ranks
    return sent


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_ring_sends_what_the_formula_says(ranks):
    once = ring(ranks, 24)
    for op, rounds in {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}.items():
        assert Exchange(part="layers", op=op, ranks=ranks, payload=24).sent == rounds * once


def test_a_pipeline_waits_for_its_first_and_last_micro_batches():
    """Of m micro-batches through 4 ranks, one a tick: the last leaves m + 3 ticks after the first came."""
    wanted = Stage(
        name="x",
        policy="dense_all",
        optim=OptimConfig(lr=1e-3),
        sequence=8,
        batch=16,
        micro_batch=2,
        parallel=ParallelConfig(pipeline=4),
    )
    assert bubble(wanted, 4) == 3 / 11
