"""What a stage moves and what it may not, and that a stage goes on where it stopped: on every layout, from
the files alone."""

from dataclasses import replace
from itertools import count

import pytest
import torch
from distributed import run_distributed
from folders import load_tensors, save_hf

from megatron_bar.data.indexed import in_memory
from megatron_bar.data.loader import Loader
from megatron_bar.data.packing import PackedRows
from megatron_bar.errors import BarError
from megatron_bar.experts.proof import verify_frozen
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.training.checkpoint import Checkpoints
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.optim import OptimConfig
from megatron_bar.training.stage import Stage
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.groups import POLICIES, ParamGroup, classify
from megatron_bar.weights.manifest import Manifest

LENGTH, ROWS = 16, 4
LAYOUTS = {
    "tp1": (ParallelConfig(), 1),
    "tp2": (ParallelConfig(tensor=2), 2),
    "ep2": (ParallelConfig(expert=2), 2),
    "pp2": (ParallelConfig(pipeline=2), 2),
}
MOE = ("midtrain", "sft", "rlvr", "route", "sft_shared_frozen", "rlvr_open", "rlvr_shared_frozen")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    shape = {"vocab_size": 61}
    return {
        "two": save_hf(root / "two", experts=2, **shape),
        "bf16": save_hf(root / "bf16", experts=2, dtype="bfloat16", **shape),
        "four": save_hf(root / "four", experts=4, **shape),
        "dense": save_hf(root / "dense", **shape),
    }


def stage(policy: str, layout: ParallelConfig, *, recompute: bool = False) -> Stage:
    return Stage(
        name=policy,
        policy=policy,
        optim=OptimConfig(lr=1e-2, schedule="linear"),
        sequence=LENGTH,
        batch=ROWS,
        router_z_loss=1e-3,
        parallel=layout,
        recompute=recompute,
    )


def stream(trainer: Trainer, start: int = 0):
    """Packed documents over the whole vocabulary, so that every embedding row is read."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, trainer.model.shape.vocab_size, (40, 7), generator=generator).tolist()
    rows = PackedRows(
        [("x", in_memory([(doc, [n > 1 for n in range(len(doc))]) for doc in ids]))], LENGTH, pad_id=0
    )
    ranks = {"data_rank": trainer.data_rank, "data_size": trainer.data_size}
    loader = Loader([rows], global_batch=ROWS, micro_batch=1, seed=0, steps=100, **ranks)
    return (loader.step(n).micro_batches for n in count(start))


def train(source, out, wanted: Stage, steps: int) -> list[dict]:
    trainer = Trainer(source, wanted, steps=steps)
    batch = stream(trainer)
    values = [trainer.step(next(batch), LanguageModelling()) for _ in range(steps)]
    manifest = Manifest(family=trainer.model.shape.model_type, kind="dense")
    trainer.save(out, manifest=lambda *_: manifest)
    return values


def test_dense_training_moves_everything(sources, tmp_path):
    run_distributed(train, 1, sources["dense"], tmp_path / "out", stage("dense_all", ParallelConfig()), 2)
    before, after = load_tensors(sources["dense"]), load_tensors(tmp_path / "out")
    assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("layout", ["tp1", "tp2", "ep2"])
@pytest.mark.parametrize("policy", MOE)
def test_only_the_stages_groups_move(policy, layout, recompute, sources, tmp_path):
    layout, processes = LAYOUTS[layout]
    source = sources["four" if policy == "route" else "two"]
    run_distributed(train, processes, source, tmp_path / "out", stage(policy, layout, recompute=recompute), 2)
    assert_moved(source, tmp_path / "out", policy)
    verify_frozen(Folder.open(source), Folder.open(tmp_path / "out"), POLICIES[policy], strict=True)


@pytest.mark.parametrize("layout", ["pp2", "ep2"])
def test_in_bfloat16(layout, sources, tmp_path):
    layout, processes = LAYOUTS[layout]
    run_distributed(train, processes, sources["bf16"], tmp_path / "out", stage("midtrain", layout), 2)
    assert_moved(sources["bf16"], tmp_path / "out", "midtrain")


# The published table, spelt out here once more so that the project's own table is checked by something else.
PUBLISHED = {
    "midtrain": "domain_expert router",
    "sft": "domain_expert router embedding lm_head final_norm",
    "rlvr": "domain_expert router embedding lm_head final_norm attention block_norm",
    "route": "router",
    "sft_shared_frozen": "domain_expert router",
    "rlvr_head_free": "domain_expert router lm_head",
    "rlvr_shared_frozen": "domain_expert router",
    "rlvr_open": "domain_expert router embedding lm_head final_norm attention block_norm anchor_expert",
}
ANCHOR_ROW_MOVES = ("route", "rlvr_open")


def assert_moved(source, out, policy: str) -> None:
    before, after = load_tensors(source), load_tensors(out)
    for name, old in before.items():
        new, group = after[name], classify(name)
        if group not in PUBLISHED[policy].split():
            assert torch.equal(old, new), f"{name} moved"
        elif group is ParamGroup.ROUTER:
            moved = (old != new).any(dim=1).tolist()
            assert moved == [policy in ANCHOR_ROW_MOVES] + [True] * (len(old) - 1), name
        else:
            assert not torch.equal(old, new), f"{name} did not move"


def interrupted(source, folder, wanted: Stage) -> list[dict]:
    """Two steps and a checkpoint; then a new trainer that resumes and takes two more."""
    first = Trainer(source, wanted, steps=4)
    batch = stream(first)
    values = [first.step(next(batch), LanguageModelling()) for _ in range(2)]
    checkpoints = Checkpoints(first, folder, name="x", origin={"data": "x"})
    checkpoints.save(2, {"seen": 2})
    checkpoints.wait()
    second = Trainer(source, wanted, steps=4)
    assert Checkpoints(second, folder, name="x", origin={"data": "x"}).resume() == {"seen": 2}
    batch = stream(second, start=second.done)
    values += [second.step(next(batch), LanguageModelling()) for _ in range(2)]
    manifest = Manifest(family=second.model.shape.model_type, kind="dense")
    second.save(folder / "out", manifest=lambda *_: manifest)
    return values


@pytest.mark.parametrize(
    "layout, source", [("tp1", "two"), ("tp2", "two"), ("ep2", "two"), ("ep2", "bf16"), ("pp2", "two")]
)
def test_resuming_changes_nothing(layout, source, sources, tmp_path):
    layout, processes = LAYOUTS[layout]
    wanted = stage("sft", layout)
    straight = run_distributed(train, processes, sources[source], tmp_path / "straight", wanted, 4)[0]
    resumed = run_distributed(interrupted, processes, sources[source], tmp_path / "resumed", wanted)[0]
    assert straight == resumed
    a, b = load_tensors(tmp_path / "straight"), load_tensors(tmp_path / "resumed" / "out")
    assert all(torch.equal(a[name], b[name]) for name in a)


def resume_as(source, folder, wanted: Stage, origin: str = "x") -> None:
    Checkpoints(Trainer(source, wanted, steps=4), folder, name="x", origin={"data": origin}).resume()


def test_resuming_another_stage_is_refused_with_the_difference(sources, tmp_path):
    wanted = stage("sft", ParallelConfig())
    run_distributed(interrupted, 1, sources["two"], tmp_path, wanted)
    with pytest.raises(AssertionError, match=r"BarError.*policy: .*sft.* -> .*midtrain"):
        run_distributed(resume_as, 1, sources["two"], tmp_path, replace(wanted, policy="midtrain"))
    with pytest.raises(
        AssertionError, match=r"BarError.*was written by another run of this stage \(another data\)"
    ):
        run_distributed(resume_as, 1, sources["two"], tmp_path, wanted, "y")


def spoil_frozen(source, out) -> None:
    trainer = Trainer(source, stage("midtrain", ParallelConfig()), steps=1)
    with torch.no_grad():
        trainer.model.decoder.final_layernorm.weight[3] += 1e-6
    trainer.save(out, manifest=lambda *_: Manifest(family="flex_olmo", kind="dense"))


def test_a_frozen_tensor_that_changed_stops_the_run(sources, tmp_path):
    with pytest.raises(AssertionError, match=r"frozen tensor 'model\.norm\.weight' changed"):
        run_distributed(spoil_frozen, 1, sources["two"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def hide_from_gradient(source) -> None:
    trainer = Trainer(source, stage("midtrain", ParallelConfig()), steps=1)
    trainer.model.decoder.layers[0].mlp.router.forward = lambda x, _=None: (
        torch.full((x.shape[0] * x.shape[1], 2), 0.5),
        None,
    )
    trainer.step(next(stream(trainer)), LanguageModelling())


def test_a_parameter_without_a_gradient_stops_the_first_step(sources):
    with pytest.raises(AssertionError, match=r"'model\.layers\.0\.mlp\.gate\.weight' received no gradient"):
        run_distributed(hide_from_gradient, 1, sources["two"])


def wrong_policy(source) -> None:
    Trainer(source, stage("midtrain", ParallelConfig()), steps=1)


def test_a_rule_that_matches_nothing_is_refused(sources):
    with pytest.raises(
        BarError, match="policy midtrain trains domain_expert, router, which the model does not have"
    ):
        raise_from(wrong_policy, sources["dense"])


def raise_from(fn, *args):
    try:
        run_distributed(fn, 1, *args)
    except AssertionError as error:
        raise BarError(str(error)) from None
