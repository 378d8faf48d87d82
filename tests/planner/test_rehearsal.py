"""A rehearsal builds what real processes build, finds the published run right on 64 ranks, and sees what is
broken on purpose."""

import re
import signal
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed import run_distributed
from folders import save_hf
from megatron.core import parallel_state
from scripts import run_here

from megatron_bar.conversion import ops
from megatron_bar.conversion.regions import cut_regions
from megatron_bar.data.indexed import in_memory
from megatron_bar.data.loader import Loader
from megatron_bar.data.packing import PackedRows
from megatron_bar.errors import BarError
from megatron_bar.models import build, layers
from megatron_bar.models.build import build_model
from megatron_bar.parallel.state import ParallelConfig, set_layout
from megatron_bar.planner import rehearsal
from megatron_bar.planner.dry_run import rehearsed
from megatron_bar.planner.rehearsal import build_rank, rehearse
from megatron_bar.recipes import load_recipe
from megatron_bar.run.pipeline import Pipeline
from megatron_bar.training.freeze import Frozen, freeze
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.optim import OptimConfig, build_optimizer, data_parallel, distributed_optimizers
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.groups import POLICIES, FreezePolicy, ParamGroup
from megatron_bar.weights.hf_config import ModelConfig, num_parameters

ROOT = Path(__file__).parents[2]
DENSE = ModelConfig(
    vocab_size=61,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    max_positions=32,
    rope_theta=5e3,
    rms_norm_eps=1e-6,
)
THREE, FOUR = DENSE.with_experts(3), DENSE.with_experts(4)
SPARSE = replace(FOUR, experts_per_token=2)
"""Whose experts stay whole where they are spread."""


def stage(policy: str, **layout: int) -> Stage:
    optim = OptimConfig(lr=1e-3)
    return Stage(
        name="x", policy=policy, optim=optim, sequence=16, batch=8, parallel=ParallelConfig(**layout)
    )


def built(shape: ModelConfig, wanted: Stage) -> list[tuple]:
    """Of every parameter of this real process: name, shape, whether it trains, DDP's ranks, and the range it
    updates."""
    set_layout(wanted.parallel, shape, seed=0)
    model = build_model(shape, wanted.parallel)
    freeze(model, POLICIES[wanted.policy])
    ddp = data_parallel(model)
    ranges = {}
    for part in distributed_optimizers(build_optimizer(ddp, wanted.optim)):
        for param in () if part.is_stub_optimizer else part.model_param_group_index_map:
            span = part._get_model_param_range_map(param)["param"]
            ranges[param] = (span.start, span.end)
    found = []
    for name, param in model.named_parameters():
        ranks = ()
        if param.requires_grad:
            ranks = tuple(
                dist.get_process_group_ranks(
                    ddp.param_to_bucket_group[param].intra_distributed_optimizer_instance_group
                )
            )
        found.append((name, tuple(param.shape), param.requires_grad, ranks, ranges.get(param, (0, 0))))
    return found


@pytest.mark.parametrize(
    "processes, shape, policy, layout",
    [
        (2, FOUR, "midtrain", {}),
        (2, FOUR, "rlvr", {"tensor": 2}),
        (2, SPARSE, "midtrain", {"expert": 2}),
        (2, THREE, "sft", {"expert": 2}),
        (2, DENSE, "dense_all", {"pipeline": 2}),
        (4, FOUR, "sft", {"tensor": 2, "pipeline": 2}),
        (4, SPARSE, "midtrain", {"tensor": 2, "expert": 2}),
        (4, THREE, "route", {"pipeline": 2, "expert": 2}),
    ],
)
def test_every_rank_is_what_a_real_process_builds(processes, shape, policy, layout):
    wanted = stage(policy, **layout)
    ranks = [build_rank(number, processes, shape, wanted) for number in range(processes)]
    rehearsed = [
        [(part.name, part.shape, part.trains, part.data, part.updates) for part in rank.parts]
        for rank in ranks
    ]
    assert rehearsed == run_distributed(built, processes, shape, wanted)


LAYOUTS = [
    ({}, 1),
    ({"tensor": 2}, 2),
    ({"pipeline": 2}, 2),
    ({"expert": 2}, 2),
    ({"expert": 4}, 4),
    ({"tensor": 2, "expert": 2}, 2),
    ({"tensor": 4, "expert": 2}, 4),
    ({"tensor": 2, "pipeline": 2, "expert": 4}, 8),
]


@pytest.mark.parametrize("policy", ["midtrain", "sft", "rlvr", "route", "rlvr_open"])
@pytest.mark.parametrize("layout, kinds", LAYOUTS)
def test_every_policy_fits_every_layout(policy, layout, kinds):
    for shape in (FOUR, SPARSE, replace(FOUR, dtype="bfloat16")):
        found = rehearse("x", shape, stage(policy, **layout), 8)
        assert (found.ranks, found.kinds, found.idle) == (8, kinds, ())


def test_the_numbers_are_those_of_the_shape():
    found = rehearse("x", FOUR, stage("route", pipeline=2), 4)
    h, v = FOUR.hidden_size, FOUR.vocab_size
    layer = (num_parameters(FOUR) - 2 * v * h - h) // 2
    assert (found.data_size, found.parameters, found.trainable) == (
        2,
        (layer + v * h, layer + v * h + h),
        (4 * h, 4 * h),
    )


def published_parameters(shape: ModelConfig, *, tensor: int = 1, expert: int = 1) -> int:
    """On one rank: matrices cut over the tensor ranks, of experts over theirs where they have some, the
    vocabulary padded, norms and router whole."""
    h, f, experts = shape.hidden_size, shape.intermediate_size, shape.num_experts
    cut = expert if expert > 1 else tensor
    layer = 4 * h * h // tensor + 3 * experts * h * f // cut + (experts + 4) * h
    return shape.num_layers * layer + 2 * 64 * -(-shape.vocab_size // (64 * tensor)) * h + h


def test_the_router_training_fits_64_ranks(tmp_path):
    recipe = load_recipe("olmo2_7b")
    recipe = replace(
        recipe, shape=replace(recipe.shape, num_layers=1)
    )  # as wide and as cut, for a test of seconds
    pipeline = Pipeline(recipe, tmp_path)
    assert list(rehearsed(pipeline, pipeline.select(stage="route"), 64)) == [router_line(recipe.shape)]


@pytest.mark.slow
def test_the_published_run_fits_64_ranks(tmp_path):
    pipeline = Pipeline(load_recipe("olmo2_7b"), tmp_path)
    lines = list(rehearsed(pipeline, pipeline.select(), 64))
    assert [line.partition(":")[0] for line in lines] == [
        step.name for step in pipeline.steps.values() if step.run
    ]
    two = pipeline.shape.with_experts(2)
    layouts = {
        "midtrain": ("2 kinds (tensor 2 pipeline 1 expert 1, 32 data-parallel)", {"tensor": 2}),
        "sft": ("2 kinds (tensor 1 pipeline 1 expert 2, 64 data-parallel)", {"expert": 2}),
        "rlvr": ("4 kinds (tensor 4 pipeline 1 expert 1, 16 data-parallel)", {"tensor": 4}),
    }
    for line in lines[:-1]:
        text, layout = layouts[line.partition(":")[0].partition("-")[2]]
        held = published_parameters(two, **layout)
        assert f": 64 ranks of {text}; parameters per rank {held:,}, trainable " in line
        assert line.endswith(": OK")
    assert lines[-1] == router_line(pipeline.shape)


def router_line(dense: ModelConfig) -> str:
    held = published_parameters(dense.with_experts(5), expert=2)
    trained = dense.num_layers * 5 * dense.hidden_size
    return (
        "final: 64 ranks of 2 kinds (tensor 1 pipeline 1 expert 2, 64 data-parallel); "
        f"parameters per rank {held:,}, trainable {trained:,}: OK"
    )


OTHERS = sorted(
    path.stem for path in (ROOT / "megatron_bar" / "recipes").glob("olmo2_*.py") if path.stem != "olmo2_7b"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_shipped_shape_fits_64_ranks(name, tmp_path):
    pipeline = Pipeline(load_recipe(name), tmp_path)
    assert all(line.endswith(": OK") for line in rehearsed(pipeline, pipeline.select(), 64))


HEAD = FreezePolicy(name="head", trains=frozenset({ParamGroup.LM_HEAD}), anchor_row_frozen=False)


def test_ranks_on_which_nothing_trains_are_found(monkeypatch):
    monkeypatch.setitem(POLICIES, "head", HEAD)
    found = rehearse("x", DENSE, stage("head", pipeline=2), 4)
    assert (
        found.idle == (0, 1)
        and "nothing trains on 2 of them" in str(found)
        and found.trainable == (0, 61 * 16)
    )


def norms(folder: Path, layout: dict[str, int]) -> list[float]:
    POLICIES["head"] = HEAD
    try:
        trainer = Trainer(folder, stage("head", **layout), steps=2)
    finally:
        del POLICIES["head"]
    texts = torch.randint(1, 61, (40, 7), generator=torch.Generator().manual_seed(3)).tolist()
    rows = PackedRows([("x", in_memory([(text, [n > 1 for n in range(7)]) for text in texts]))], 16, pad_id=0)
    ranks = {"data_rank": trainer.data_rank, "data_size": trainer.data_size}
    loader = Loader([rows], global_batch=8, micro_batch=1, seed=0, steps=2, **ranks)
    steps = (loader.step(n).micro_batches for n in count())
    return [trainer.step(next(steps), LanguageModelling())["grad_norm"] for _ in range(2)]


def test_such_a_rank_trains_along(tmp_path):
    folder = save_hf(tmp_path / "model", vocab_size=61)
    (alone,), both = run_distributed(norms, 1, folder, {}), run_distributed(norms, 2, folder, {"pipeline": 2})
    assert both == [pytest.approx(alone, rel=1e-5)] * 2


@pytest.fixture(autouse=True)
def _nothing_remembered():
    """What an operation cuts is remembered; here some are broken."""
    cut_regions.cache_clear()
    yield
    cut_regions.cache_clear()


def refuses(message: str, shape: ModelConfig, wanted: Stage, world_size: int) -> None:
    with pytest.raises(BarError, match=f"^math-sft on {world_size} ranks: {message}") as caught:
        rehearse("math-sft", shape, wanted, world_size)
    assert "\n" not in str(caught.value)


def test_an_expert_held_twice_and_one_held_by_nobody(monkeypatch):
    monkeypatch.setattr(
        parallel_state, "get_expert_model_parallel_rank", lambda: 0
    )  # so the names stay the first rank's
    held = (
        r"tensor model\.layers\.0\.mlp\.experts\.0\.gate_proj\.weight, replica 0, held by rank 0 \S+, "
        r"rank 1 \S+: "
    )
    refuses(held + "expected rows from 24 on, got 0 to 24", SPARSE, stage("sft", expert=2), 2)


def test_a_part_held_twice(monkeypatch):
    monkeypatch.setattr(parallel_state, "get_tensor_model_parallel_rank", lambda: 0)
    refuses(
        r"tensor model\.embed_tokens\.weight, .*rank 0 embedding\S+, rank 1 embedding\S+: ",
        FOUR,
        stage("sft", tensor=2),
        2,
    )


def test_rows_that_nobody_holds(monkeypatch):
    monkeypatch.setattr(build, "padded_vocab_size", lambda rows, tensor, unit: rows // tensor * tensor)
    monkeypatch.setattr(
        ops.VocabularyRows,
        "cut",
        lambda op, read, rank, size: read(op.name)[
            rank * (op.total // size) : (rank + 1) * (op.total // size)
        ],
    )
    refuses(
        r"tensor model\.embed_tokens\.weight, replica 0, .*: expected 61 rows, got 60",
        FOUR,
        stage("sft", tensor=2),
        4,
    )


def test_a_vocabulary_whose_padding_is_written(monkeypatch):
    monkeypatch.setattr(ops.VocabularyRows, "join", lambda op, parts: {op.name: torch.cat(parts)})
    refuses(
        r"tensor model\.embed_tokens\.weight: its parts make \(62, 16\), expected \(61, 16\)",
        FOUR,
        stage("sft", tensor=2),
        4,
    )


def test_parts_of_another_shape_than_the_folder_gives(monkeypatch):
    monkeypatch.setattr(build, "padded_vocab_size", lambda rows, tensor, unit: 2 * rows)
    with pytest.raises(
        BarError,
        match=r"rank 0: parameter embedding\S+ has shape \(61, 16\), its part of the folder \(31, 16\)",
    ):
        rehearse("x", FOUR, stage("sft", tensor=2), 2)


def test_a_replica_too_few(monkeypatch):
    monkeypatch.setattr(parallel_state, "get_data_parallel_rank", lambda: 0)
    refuses(r"tensor model\.embed_tokens\.weight: expected 4 replicas, got 1", FOUR, stage("sft"), 4)


def test_a_norm_whose_gradient_stays_apart(monkeypatch):
    monkeypatch.setattr(layers.RMSNorm, "__init__", unmarked(layers.RMSNorm.__init__, "sequence_parallel"))
    name = r"decoder\.layers\.0\.self_attn_bda\.norm\.weight"
    refuses(
        rf"rank 0: the gradient of parameter {name} is summed over ranks \[0, 2\], and held by \[0, 1, "
        rf"2, 3\]",
        FOUR,
        stage("rlvr", tensor=2),
        4,
    )


def unmarked(init, attribute: str):
    def marked_wrong(module, *args, **kwargs):
        init(module, *args, **kwargs)
        setattr(module.weight, attribute, False)

    return marked_wrong


def changed_model(monkeypatch, change) -> None:
    """The rehearsal builds a model whose every (name, parameter) goes through ``change``."""

    def build_changed(*args, **kwargs):
        model = build_model(*args, **kwargs)
        for name, param in model.named_parameters():
            change(name, param)
        return model

    monkeypatch.setattr(rehearsal, "build_model", build_changed)


def test_spread_experts_that_are_averaged_with_others(monkeypatch):
    changed_model(monkeypatch, lambda name, param: setattr(param, "allreduce", True))
    refuses(
        r"rank 0: the gradient of parameter \S+local_experts\.1\S+ is summed over",
        SPARSE,
        stage("sft", expert=2),
        4,
    )


def test_a_part_that_the_gradient_norm_leaves_out(monkeypatch):
    changed_model(monkeypatch, lambda name, param: setattr(param, "tensor_model_parallel", False))
    refuses(
        r"parameter embedding\S+, part 1: the gradient norm: expected 496 rows, got 0",
        FOUR,
        stage("sft", tensor=2),
        4,
    )


def test_a_whole_parameter_that_the_gradient_norm_counts_twice(monkeypatch):
    changed_model(monkeypatch, lambda name, param: setattr(param, "tensor_model_parallel", True))
    refuses(
        r"parameter \S+router\S+, part \d: the gradient norm: expected rows from",
        FOUR,
        stage("route", tensor=2),
        4,
    )


def test_gradients_that_are_averaged_over_the_ranks(monkeypatch):
    def averaged(model):
        model.config.calculate_per_token_loss = False
        return data_parallel(model)

    monkeypatch.setattr(rehearsal, "data_parallel", averaged)
    refuses(
        r"rank 0: gradients are multiplied by \[0\.25\] before they are summed, expected 1",
        FOUR,
        stage("sft"),
        4,
    )


def test_a_trained_anchor(monkeypatch):
    def freeze_less(model, policy):
        frozen = freeze(model, policy)
        for name, param in model.named_parameters():
            param.requires_grad |= "local_experts.0." in name
        return frozen

    monkeypatch.setattr(rehearsal, "freeze", freeze_less)
    refuses(
        r"rank 0: parameter \S+local_experts\.0\S+ is trainable, and policy sft says frozen",
        FOUR,
        stage("sft"),
        2,
    )


def test_an_anchor_row_without_a_mask(monkeypatch):
    monkeypatch.setattr(
        rehearsal, "freeze", lambda model, policy: (freeze(model, policy), Frozen(parts={}))[1]
    )
    refuses(r"rank 0: parameter \S+router\.weight: the anchor's row is not masked", FOUR, stage("sft"), 2)


def test_groups_of_which_two_ranks_disagree():
    wanted = stage("sft", tensor=2)
    ranks = [build_rank(number, 4, FOUR, wanted) for number in range(4)]
    rehearsal.check_ranks(ranks, FOUR, wanted)
    ranks[3] = replace(ranks[3], groups=ranks[3].groups | {"tensor": (1, 3)})
    with pytest.raises(BarError, match=r"rank 2: tensor group is \(2, 3\), and rank 3 of it has \(1, 3\)"):
        rehearsal.check_ranks(ranks, FOUR, wanted)


def test_values_that_no_rank_updates():
    wanted = stage("sft")
    ranks = [build_rank(number, 2, FOUR, wanted) for number in range(2)]
    parts = [
        replace(part, updates=(part.updates[0], part.updates[1] - 1)) if part.updates[1] else part
        for part in ranks[1].parts
    ]
    ranks[1] = replace(ranks[1], parts=tuple(parts))
    with pytest.raises(BarError, match=r"^parameter \S+, part 0: updates: expected"):
        rehearsal.check_ranks(ranks, FOUR, wanted)


def test_a_process_of_a_job_is_refused():
    assert run_distributed(refused, 1) == [
        "a process of a job cannot stand for others: expected to be started alone, not under torchrun"
    ]


def refused() -> str:
    with pytest.raises(BarError) as caught:
        build_rank(0, 2, DENSE, stage("dense_all"))
    return str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ("--dry-run", "--world-size", "6"),
            r"error: stage midtrain: batch of 128 rows is not divisible by micro-batch 1 x 3 ",
        ),
        (
            ("--dry-run", "--world-size", "7"),
            r"error: stage midtrain: tensor 2 x pipeline 1 = 2 does not divide the 7 processes",
        ),
        (
            ("--dry-run", "--world-size", "1024"),
            r"error: stage midtrain: batch of 128 rows is not divisible by micro-batch 1 x 512",
        ),
        (("--world-size", "64"), r"error: --world-size: expected a positive number, and --dry-run"),
    ],
)
def test_what_does_not_divide_is_refused_before_anything_is_built(
    arguments, message, monkeypatch, capsys, tmp_path
):
    handler, script = signal.getsignal(signal.SIGTERM), ROOT / "examples" / "pretrain_bar.py"
    status, out, err = run_here(
        monkeypatch, capsys.readouterr, script, "olmo2_7b", *arguments, "--out", tmp_path
    )
    signal.signal(signal.SIGTERM, handler)
    assert status and not out and re.search(message, err)
