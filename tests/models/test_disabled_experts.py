"""A mixture with an expert disabled is transformers' model of the folder without that expert, at every
layout."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from distributed import run_distributed
from folders import edit_json, load_tensors, save_hf, seal
from safetensors.torch import save_file

from megatron_bar.errors import BarError
from megatron_bar.evaluation.generative import load_model
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.weights.folder import SINGLE
from megatron_bar.weights.manifest import Expert, Manifest

IDS = torch.tensor([[3, 7, 2, 11, 18, 5, 9, 4]])
NAMES = ("anchor", "math", "code", "tools")


def named(path: Path) -> Path:
    seal(
        path,
        Manifest(
            family="flex_olmo",
            kind="merged",
            experts=tuple(Expert(index=n, name=e) for n, e in enumerate(NAMES)),
        ),
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return named(save_hf(tmp_path_factory.mktemp("four"), experts=4, seed=3))


def without(folder: Path, slot: int, active: int, target: Path) -> Path:
    """The folder of the other experts."""
    shutil.copytree(folder, target)
    tensors = {}
    for name, tensor in load_tensors(folder).items():
        if name.endswith("mlp.gate.weight"):
            tensor = torch.cat([tensor[:slot], tensor[slot + 1 :]])
        if ".experts." in name:
            before, _, after = name.partition(".experts.")
            index, _, rest = after.partition(".")
            if int(index) == slot:
                continue
            name = f"{before}.experts.{int(index) - (int(index) > slot)}.{rest}"
        tensors[name] = tensor
    save_file(tensors, target / SINGLE, metadata={"format": "pt"})
    edit_json(target / "config.json", num_experts=3, num_experts_per_tok=active)
    return target


@torch.no_grad()
def logits(
    folder: Path, layout: ParallelConfig, active: int | None, disabled: tuple[str, ...]
) -> torch.Tensor:
    positions = torch.arange(IDS.shape[1]).expand(IDS.shape)
    return load_model(folder, layout, active_experts=active, disabled=disabled)(IDS, positions)


@pytest.mark.parametrize("active", [None, 1, 2, 3])
@pytest.mark.parametrize(
    "layout, processes",
    [
        (ParallelConfig(), 1),
        (ParallelConfig(tensor=2), 2),
        (ParallelConfig(expert=2), 2),
        (ParallelConfig(tensor=2, expert=2), 4),
    ],
)
def test_a_disabled_expert_is_one_that_is_not_there(layout, processes, active, folder, tmp_path):
    import transformers

    other = transformers.AutoModelForCausalLM.from_pretrained(
        without(folder, 2, active or 3, tmp_path / "three")
    )
    with torch.no_grad():
        expected = other(IDS).logits
    for found in run_distributed(logits, processes, folder, layout, active, ("code",)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def refusals(folder: Path, dense: Path) -> None:
    for where, active, names, message in [
        (folder, None, ("poetry",), "one of anchor, math, code, tools, got 'poetry'"),
        (folder, None, ("math", "math"), "expected once, got 'math' 2 times"),
        (folder, None, NAMES, "at least 1 of the 4 experts to be left, got 0"),
        (folder, 4, ("math",), "at least 4 of the 4 experts to be left, got 3"),
        (folder, 5, (), "active experts expected from 1 to 4, got 5"),
        (folder, 0, (), "active experts expected from 1 to 4, got 0"),
        (dense, None, ("math",), "expected none of a dense model, got math"),
        (dense, 1, (), "none of a dense model, got 1"),
    ]:
        with pytest.raises(BarError, match=message):
            load_model(where, ParallelConfig(), active_experts=active, disabled=names)


def test_what_cannot_be_disabled_is_refused(folder, tmp_path):
    run_distributed(refusals, 1, folder, save_hf(tmp_path / "dense"))


def test_fewer_left_than_the_folder_uses(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "3of4")
    edit_json(tmp_path / "3of4" / "config.json", num_experts_per_tok=3)
    assert json.loads((tmp_path / "3of4" / "config.json").read_text())["num_experts"] == 4
    with pytest.raises(AssertionError, match="at least 3 of the 4 experts to be left, got 2"):
        run_distributed(logits, 1, tmp_path / "3of4", ParallelConfig(), None, ("math", "code"))
