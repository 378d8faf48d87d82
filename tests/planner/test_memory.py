"""What the planner says a rank holds, against what the real objects hold after a real step: to the byte."""

import time
import weakref
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed import run_distributed
from folders import save_hf
from peak import Peak
from torch import Tensor

from megatron_bar.data.indexed import in_memory
from megatron_bar.data.loader import Loader
from megatron_bar.data.packing import Batch, PackedRows
from megatron_bar.models.build import build_model
from megatron_bar.models.shards import load_folder
from megatron_bar.parallel.state import ParallelConfig, set_layout
from megatron_bar.planner.activations import Pass, activations
from megatron_bar.planner.memory import Spread, cache, states
from megatron_bar.recipes import load_recipe
from megatron_bar.training.freeze import freeze
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer, _forward
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import MIDTRAIN, POLICIES, RLVR, ROUTE, SFT, FreezePolicy, ParamGroup

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
OTHERS = {"qwen3": {"head_dim": 24, "num_key_value_heads": 2}, "llama": {"head_dim": 24}, "qwen2": {}}
"""Families beside OLMo 2, with heads that are not hidden / heads wide where they have them."""
CASES = [
    *product(["olmo2"], ("float32", "bfloat16"), (*MOE, "dense_all")),
    *product(OTHERS, ["bfloat16"], ("midtrain", "rlvr", "dense_all")),
]
"""Of a family, a dtype and a policy."""


def saved(root: Path, **shape) -> dict[tuple[str, str, str], Path]:
    return {
        (family, dtype, policy): save_hf(
            root / f"{family}-{dtype}-{policy}",
            family=family,
            experts={"route": 4, "dense_all": 0}.get(policy, 2),
            dtype=dtype,
            **shape | OTHERS.get(family, {}),
        )
        for family, dtype, policy in CASES
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("sources"), vocab_size=61)


def stage(policy: str, layout: ParallelConfig, **changes) -> Stage:
    optim = OptimConfig(lr=1e-2)
    return Stage(
        name=policy,
        policy=policy,
        optim=optim,
        sequence=LENGTH,
        batch=ROWS,
        router_z_loss=1e-3,
        parallel=layout,
        **changes,
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
    for case, source in sources.items():
        policy = case[-1]
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
            state = [
                v for values in part.optimizer.state.values() for v in values.values() if torch.is_tensor(v)
            ]
            optimizer |= storages([*mains, *(main.grad for main in mains), *state])
        optimizer = {at: size for at, size in optimizer.items() if at not in weights and at not in gradients}
        shape = trainer.model.shape
        spread = Spread.of(shape, layout, dist.get_world_size())
        said = states(shape, POLICIES[policy], spread, spread.place(dist.get_rank()))
        real = tuple(sum(part.values()) for part in (weights, gradients, optimizer))
        found[case] = real, (said.weights, said.gradients, said.optimizer)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_gradients_and_optimizer_are_foretold_to_the_byte(layout, sources):
    layout, processes = LAYOUTS[layout]
    for rank, found in enumerate(run_distributed(held, processes, sources, layout)):
        for case, (real, said) in found.items():
            assert real == said, (rank, case)
            assert real[0] > 0


ROW = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "vocab_size": 61,
}
TOKENS = {"rows": 2, "length": 48}


@pytest.fixture(scope="module")
def wider(tmp_path_factory):
    """So wide that a token's few numbers, which the arithmetic leaves out, are few."""
    return saved(tmp_path_factory.mktemp("wider"), **ROW)


class Kept:
    """What autograd holds for a saved tensor; gone when its operation is: Megatron lets a graph begin inside
    a checkpoint."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def kept(sources: dict, layout: ParallelConfig) -> dict:
    """By case: bytes that a real forward pass of one micro-batch keeps besides parameters, and as they were
    foretold."""
    found = {}
    rows, length = TOKENS.values()
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 61, (rows, length), generator=generator)
    cases = product(sources.items(), (False, True), ("kernel", "mask"))
    for (case, source), recompute, attention in cases:
        policy = case[-1]
        if policy == "dense_all" and layout.expert > 1:
            continue
        folder, wanted = Folder.open(source), stage(policy, layout, recompute=recompute)
        set_layout(layout, folder.config, seed=0)
        model = build_model(folder.config, layout, recompute=recompute)
        load_folder(model, folder)
        freeze(model, POLICIES[policy])
        model.route(replace(model.routing, z_loss=wanted.router_z_loss))
        if not model.pre_process:
            shape = (length // layout.tensor, rows, folder.config.hidden_size)
            model.set_input_tensor(torch.randn(shape, dtype=model.config.params_dtype, requires_grad=True))
        alive, shared = weakref.WeakSet(), []

        def pack(tensor: Tensor, alive=alive) -> Kept:
            alive.add(kept := Kept(tensor))
            return kept

        def note(_, __, given: dict, shared=shared) -> None:
            shared += [given["packed_seq_params"].cos, given["packed_seq_params"].sin]

        model.decoder.register_forward_pre_hook(note, with_kwargs=True)
        documents = (torch.arange(length) // 20).expand(rows, length) if attention == "mask" else None
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            out = model(ids, torch.arange(length).expand(rows, length), labels=ids, documents=documents)
        dist.barrier()
        time.sleep(0.05)  # gloo's threads let go of what they have sent a moment later
        parameters, everything = (
            storages(model.parameters()),
            storages([*shared, *(kept.tensor for kept in alive)]),
        )
        real = sum(size for at, size in everything.items() if at not in parameters)
        spread = Spread.of(folder.config, layout, dist.get_world_size())
        one = Pass(
            shape=folder.config,
            trains=POLICIES[policy].trains,
            spread=spread,
            place=spread.place(dist.get_rank()),
            attention=attention,
            z_loss=True,
            **TOKENS,
        )
        said = activations(one, recompute=recompute, micro_batches=1)
        found[*case, recompute, attention] = real, said.kept + said.logits_kept
        del out
    return found


@pytest.mark.parametrize("layout", ["tp1", "tp2", "ep2", "pp2", "tp2 ep2"])
def test_what_a_forward_pass_keeps_is_foretold(layout, wider):
    layout, processes = LAYOUTS[layout]
    close = (
        0.03 if layout.tensor == 1 else 0.04
    )  # labels and loss of all tokens are beside a part of the rest
    for rank, found in enumerate(run_distributed(kept, processes, wider, layout)):
        for case, (real, said) in found.items():
            assert said == pytest.approx(real, rel=close), (rank, case)


def peaks(sources: dict) -> dict:
    """By case: bytes that were there at once in a real pass forward and back beside weights and gradients,
    and as foretold."""
    found = {}
    rows, length = 2, 512
    pass_of = {"rows": rows, "length": length, "attention": "kernel", "z_loss": True}
    for (case, source), recompute in product(sources.items(), (False, True)):
        *_, vocabulary, _, policy = case
        wanted = replace(
            stage(policy, ParallelConfig(), recompute=recompute),
            sequence=length,
            batch=rows,
            micro_batch=rows,
        )
        trainer = Trainer(source, wanted, steps=1)
        trainer.model.route(replace(trainer.model.routing, z_loss=1e-3))
        ids = torch.randint(1, vocabulary, (rows, length))
        positions = torch.arange(length).repeat(rows, 1)
        batch = Batch(ids=ids, positions=positions, labels=ids, documents=None)
        known = storages([*trainer.model.parameters(), *(buffer.grad_data for buffer in trainer.ddp.buffers)])
        with Peak(set(known)) as peak:
            trainer._passes(partial(_forward, LanguageModelling()), [batch])
        shape, trains = trainer.model.shape, POLICIES[policy].trains
        spread = Spread.of(shape, wanted.parallel, 1)
        one = Pass(shape=shape, trains=trains, spread=spread, place=spread.place(0), **pass_of)
        said = activations(one, recompute=recompute, micro_batches=1).peak
        said += states(shape, POLICIES[policy], spread, spread.place(0)).gradient
        found[*case, recompute] = peak.bytes, said
    return found


def test_the_most_that_is_there_at_once_is_foretold(tmp_path):
    """By what is estimated besides: temporaries, which free each other in an order that the arithmetic does
    not follow."""
    shape = {"hidden_size": 128, "intermediate_size": 384, "max_position_embeddings": 512}
    cases = [
        *product(["olmo2"], (61, 4000), ("float32", "bfloat16"), ("midtrain", "rlvr", "dense_all")),
        *product(OTHERS, [61], ["bfloat16"], ("midtrain", "rlvr", "dense_all")),
    ]
    sources = {
        (family, vocabulary, dtype, policy): save_hf(
            tmp_path / f"{family}-{vocabulary}-{dtype}-{policy}",
            family=family,
            experts=0 if policy == "dense_all" else 2,
            dtype=dtype,
            vocab_size=vocabulary,
            **shape | OTHERS.get(family, {}),
        )
        for family, vocabulary, dtype, policy in cases
    }
    (found,) = run_distributed(peaks, 1, sources)
    for case, (real, said) in found.items():
        assert 0.98 * real <= said <= 1.2 * real, (case, real, said)


def kept_by_rlvr(source) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bytes of the copy of what trains, and of a cache: real and foretold."""
    layout = ParallelConfig(tensor=2)
    trainer = Trainer(source, stage("rlvr", layout), steps=1, keep_start=True)
    copied = sum(storages(start for _, start in trainer._start).values())
    shape, spread = trainer.model.shape, Spread.of(trainer.model.shape, layout, dist.get_world_size())
    real = trainer.model.new_cache(rows=6, max_length=24)
    said = states(shape, POLICIES["rlvr"], spread, spread.place(dist.get_rank())).trains
    return (copied, said), (
        sum(storages([real.keys, real.values]).values()),
        cache(shape, spread, rows=6, length=24),
    )


def test_the_copy_of_what_trains_and_the_cache_are_foretold_to_the_byte(sources):
    for found in run_distributed(kept_by_rlvr, 2, sources["qwen3", "bfloat16", "rlvr"]):
        for real, said in found:
            assert real == said > 0


OLMO2_7B = load_recipe("olmo2_7b").shape
MASKED = FreezePolicy(name="masked", trains=MIDTRAIN.trains | {ParamGroup.ANCHOR_EXPERT})
"""As the authors' scripts freeze: by zeroing the anchor's gradients, so that it has gradients and state."""


@pytest.mark.parametrize(
    "policy, experts, published",
    [(MIDTRAIN, 2, 92.5), (SFT, 2, 105.7), (RLVR, 2, 140.0), (ROUTE, 5, 49.2), (MASKED, 2, 161.8)],
    ids=lambda value: getattr(value, "name", value),
)
def test_one_gpu_takes_the_published_gigabytes(policy, experts, published):
    """18 bytes for every parameter that trains, 2 for every frozen one, in 1e9 bytes; no activations."""
    spread = Spread(pipeline=1, tensor=1, expert=1, expert_tensor=1, ranks=1)
    found = states(OLMO2_7B.with_experts(experts), policy, spread, spread.place(0))
    assert round(found.total / 1e9, 1) == published
