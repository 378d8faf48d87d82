"""Routers that nobody trained, against the mean states that transformers' routers are given; and folders
rewritten with them."""

import json

import pytest
import torch
from distributed import run_distributed
from folders import load_tensors

from megatron_bar.data.indexed import in_memory
from megatron_bar.data.packing import PackedRows
from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import load_model
from megatron_bar.experts.merge import merge
from megatron_bar.experts.routers import best_scale, rewrite, untrained_rows
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.weights.folder import Folder
from megatron_bar.weights.manifest import read_manifest

LENGTH = 12
GATES = [f"model.layers.{n}.mlp.gate.weight" for n in range(2)]


@pytest.fixture(scope="module")
def merged(tmp_path_factory, branched, experts):
    return merge(anchor=branched, experts=experts, out=tmp_path_factory.mktemp("routers") / "merged").path


def texts(count: int = 4) -> list[list[list[int]]]:
    """Of each domain, rows of LENGTH tokens and one more that is the last label."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(1, 19, (3 * LENGTH + 1,), generator=generator).tolist() for _ in range(count)]


def rows_of(folder, kind: str, layout: ParallelConfig, count: int = 4) -> torch.Tensor:
    model = load_model(folder, layout)
    return untrained_rows(
        model, kind, [in_memory([(ids, [True] * len(ids))]) for ids in texts(count)], length=LENGTH
    )


@torch.no_grad()
def theirs(folder, kind: str) -> torch.Tensor:
    """``[layers, E, h]`` of mean norm 1."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    means = []
    for ids in texts():
        batch = torch.tensor(ids[:-1]).view(-1, LENGTH)
        seen = {}
        hooks = [
            layer.mlp.gate.register_forward_pre_hook(
                lambda _, given, n=n, s=seen: s.update({n: given[0].reshape(-1, 16)})
            )
            for n, layer in enumerate(model.model.layers)
        ]
        model(batch)
        for hook in hooks:
            hook.remove()
        embedding = model.model.embed_tokens(batch).reshape(-1, 16).mean(0)
        means.append([embedding if kind == "embedding" else seen[n].mean(0) for n in range(2)])
    found = torch.stack([torch.stack(mean) for mean in means], dim=1)
    return found / found.norm(dim=-1).mean(-1)[:, None, None]


@pytest.mark.parametrize(
    "layout, processes", [(ParallelConfig(), 1), (ParallelConfig(tensor=2), 2)], ids=["tp1", "tp2"]
)
@pytest.mark.parametrize("kind", ["embedding", "hidden"])
def test_rows_are_the_mean_of_what_transformers_routers_see(kind, layout, processes, merged):
    for found in run_distributed(rows_of, processes, merged, kind, layout):
        torch.testing.assert_close(found, theirs(merged, kind), atol=1e-5, rtol=1e-4)


def test_zeros_and_the_folders_own_rows(merged):
    assert not run_distributed(rows_of, 1, merged, "zero", ParallelConfig())[0].any()
    copied, tensors = run_distributed(rows_of, 1, merged, "copied", ParallelConfig())[0], load_tensors(merged)
    for rows, name in zip(copied, GATES, strict=True):
        torch.testing.assert_close(rows, tensors[name] / tensors[name].norm(dim=-1).mean())


def test_a_text_for_every_expert(merged):
    with pytest.raises(Exception, match="routers: expected a text for each of the 4 experts, got 3"):
        run_distributed(rows_of, 1, merged, "hidden", ParallelConfig(), 3)


def chosen(folder) -> tuple[float, dict, list[torch.Tensor], float]:
    model = load_model(folder, ParallelConfig())
    before = [router.weight.clone() for router in model.routers()]
    rows = torch.stack([weight.float() for weight in before])
    held_out = [PackedRows([("x", in_memory([(ids, [True] * len(ids)) for ids in texts()]))], 64, pad_id=0)]
    scale, losses = best_scale(model, rows, held_out, scales=(0.0, 1.0, 4.0))
    assert all(torch.equal(a, b.weight) for a, b in zip(before, model.routers(), strict=True))
    assert best_scale(model, 0 * rows, held_out)[0] == 0.0
    with pytest.raises(BarError, match="expected held-out texts to choose the scale by, got none"):
        best_scale(model, rows, [])
    from megatron_bar.evaluation.validation import mean_loss

    return scale, losses, before, mean_loss(model, held_out[0])


def test_the_scale_is_the_one_with_the_lowest_loss(merged):
    scale, losses, _, as_it_is = run_distributed(chosen, 1, merged)[0]
    assert losses[scale] == min(losses.values()) and len(set(losses.values())) == 3
    assert losses[1.0] == as_it_is


def test_only_the_routers_of_a_rewritten_folder_are_others(merged, tmp_path):
    rows = torch.randn(2, 4, 16)
    rewrite(merged, tmp_path / "out", rows=rows, active=(4, 2), note="by hand")
    before, after = load_tensors(merged), load_tensors(tmp_path / "out")
    for name, tensor in after.items():
        assert torch.equal(tensor, rows[GATES.index(name)] if name in GATES else before[name]), name
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.kind, manifest.notes[-1], manifest.experts_per_layer) == ("merged", "by hand", (4, 2))
    assert manifest.ledger == read_manifest(merged).ledger
    assert json.loads((tmp_path / "out/config.json").read_text())["num_experts_per_tok"] == 4
    assert Folder.open(tmp_path / "out").config.active == (4, 2)


def test_what_cannot_be_rewritten_is_refused_and_leaves_nothing(merged, dense, tmp_path):
    for folder, active, message in (
        (merged, 5, "active experts expected from 1 to 4, got 5"),
        (dense, None, "expected a model with experts, got a dense one"),
    ):
        with pytest.raises(BarError, match=message):
            rewrite(folder, tmp_path / "out", active=active, note="")
    assert not list(tmp_path.iterdir())
