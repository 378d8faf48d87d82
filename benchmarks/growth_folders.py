"""Folders and checkpoints of growing size, for bench_growth.py: what is widened is the number of layers.

Every tool verifies what it reads and writes, as it does for a user. Its inputs are dropped from the page cache
before each run, and what the last run wrote is removed.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from beside_cp import forget
from growth import Quantity, Work
from made_folders import SHAPES, dense, trained

from megatron_bar.conversion.convert import export_checkpoint, import_folder
from megatron_bar.data.packing import Batch
from megatron_bar.experts.branch import branch
from megatron_bar.experts.merge import merge
from megatron_bar.recipes import stages
from megatron_bar.training.checkpoint import Checkpoints
from megatron_bar.training.objective import LanguageModelling
from megatron_bar.training.trainer import Trainer
from megatron_bar.weights.hf_config import ModelConfig, num_parameters

ROWS, LENGTH = 1, 64
"""Of the step before a checkpoint."""


def shape(layers: int, *, hidden: int = 512, ffn: int = 1376) -> ModelConfig:
    """OLMo 2's blocks in bf16."""
    widths = {"hidden_size": hidden, "intermediate_size": ffn, "num_heads": 8, "num_kv_heads": 8}
    few = {"vocab_size": 2048, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return replace(SHAPES["olmo2_1b"], num_layers=layers, **few, **widths)


def two_dense(place: Path, config: ModelConfig) -> list[Path]:
    return [dense(place / f"dense-{seed}", config, seed) for seed in (1, 2)]


def branched(place: Path, config: ModelConfig) -> Path:
    return branch(*two_dense(place, config), place / "branched", router_init="normal")[0].path


def writing(config: ModelConfig, out: Path, inputs: list[Path], run: Callable[[], object]) -> Work:
    """The work of a tool that writes a folder of ``config`` in bf16."""

    def before() -> None:
        shutil.rmtree(out, ignore_errors=True)
        forget(inputs)

    return Work(size=2e-6 * num_parameters(config), run=run, before=before)


def branching(place: Path, sizes: tuple[int, ...]) -> list[Work]:
    def work(layers: int) -> Work:
        config, here = shape(layers), place / str(layers)
        inputs, out = two_dense(here, config), here / "out"
        return writing(
            config.with_experts(2), out, inputs, lambda: branch(*inputs, out, router_init="normal")
        )

    return [work(layers) for layers in sizes]


def merging(place: Path, sizes: tuple[int, ...]) -> list[Work]:
    def work(layers: int) -> Work:
        config, here = shape(layers), place / str(layers)
        anchor, out = branched(here, config), here / "out"
        experts = {name: trained(anchor, here / name, seed) for seed, name in ((3, "math"), (4, "code"))}
        inputs = [anchor, *experts.values()]
        return writing(config.with_experts(3), out, inputs, lambda: merge(anchor, experts, out))

    return [work(layers) for layers in sizes]


def exporting(place: Path, sizes: tuple[int, ...]) -> list[Work]:
    def work(layers: int) -> Work:
        config, here = shape(layers), place / str(layers)
        checkpoint, out = here / "checkpoint", here / "out"
        import_folder(branched(here, config), checkpoint)
        return writing(config.with_experts(2), out, [checkpoint], lambda: export_checkpoint(checkpoint, out))

    return [work(layers) for layers in sizes]


def resuming(place: Path, sizes: tuple[int, ...]) -> list[Work]:
    """The newest checkpoint of an expert's mid-training put back into a model that is there."""

    def work(layers: int) -> Work:
        here = place / str(layers)
        trainer = Trainer(branched(here, shape(layers, hidden=256, ffn=688)), stages.midtrain(), steps=2)
        ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
        positions = torch.arange(LENGTH).expand_as(ids)
        trainer.step([Batch(ids=ids, positions=positions, labels=ids, documents=None)], LanguageModelling())
        checkpoints = Checkpoints(trainer, here / "checkpoints", name="midtrain", origin={})
        checkpoints.save(1, {})
        checkpoints.wait()
        nbytes = sum(file.stat().st_size for file in checkpoints.folder.rglob("*.safetensors"))
        return Work(size=nbytes / 1e6, run=checkpoints.resume, before=lambda: forget([checkpoints.folder]))

    return [work(layers) for layers in sizes]


TENSORS = "every tensor is read, hashed and written once, a block of rows at a time"
QUANTITIES = (
    Quantity(name="branch", over="MB written", sizes=(4, 8, 16, 32), make=branching, expected=1, why=TENSORS),
    Quantity(
        name="merge",
        over="MB written",
        sizes=(4, 8, 16, 32),
        make=merging,
        expected=1,
        why="the same, and the mean of what is shared once for each input",
    ),
    Quantity(name="export", over="MB written", sizes=(4, 8, 16, 32), make=exporting, expected=1, why=TENSORS),
    Quantity(
        name="resume",
        over="MB of a checkpoint",
        sizes=(4, 8, 16, 32),
        make=resuming,
        expected=1,
        why="every file is hashed once, every value copied once into the optimizer",
    ),
)
