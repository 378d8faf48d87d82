"""Weights that an engine should not have stop the run, by the tensor's name: sent wrong, or held wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from distributed import run_distributed
from engines import ENGINES, folder_for
from test_grpo_training import Ids, stage
from torch import Tensor

from megatron_bar.errors import BarError
from megatron_bar.parallel.state import ParallelConfig
from megatron_bar.rl.apart import Engines
from megatron_bar.rl.engine import EngineConfig, SamplingParams
from megatron_bar.training.trainer import Trainer

PARAMS = SamplingParams(max_new_tokens=8, temperature=0.0, stop=(), slots=4)
LAYER = "model.layers.1."
Change = Callable[[dict[str, Tensor]], None]


def add(*parts: str) -> Change:
    """Changes one value of every tensor whose name has all of ``parts``, by the least that there is."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if all(part in name for part in parts):
                first = tensor.view(-1)[:1]
                first.copy_(torch.nextafter(first, first + 1))

    return change


def swap(tensors: dict[str, Tensor]) -> None:
    """The expert's projections change places."""
    gate, up = (tensors[f"{LAYER}mlp.experts.1.{kind}_proj.weight"] for kind in ("gate", "up"))
    kept = gate.clone()
    gate.copy_(up)
    up.copy_(kept)


def half(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors)[::2]:
        add(name)(tensors)


KINDS: dict[str, tuple[Change, str]] = {
    "a stale tensor of an expert": (
        add(LAYER, "experts.1.down_proj"),
        f"{LAYER}mlp.experts.1.down_proj.weight",
    ),
    "a stale layer": (add(LAYER), f"{LAYER}"),
    "swapped projections": (swap, f"{LAYER}mlp.experts.1.gate_proj.weight"),
    "a router's row": (add(LAYER, "mlp.gate."), f"{LAYER}mlp.gate.weight"),
    "a norm": (add(LAYER, "post_feedforward"), f"{LAYER}post_feedforward_layernorm.weight"),
    "half of the tensors": (half, ""),
}


def found(
    source: Path, place: Path, engine: dict, layout: ParallelConfig
) -> dict[str, tuple[str, list[str]]]:
    """By kind, what is said of wrong weights in transit, and which are named once an engine holds others."""
    trainer = Trainer(source, stage(layout), steps=1)
    engines = Engines(trainer, Ids(), EngineConfig(**engine), PARAMS, place=place)
    said = {}
    for kind, (change, _) in KINDS.items():
        engines.sync()
        tensors = engines.handover.file.tensors
        kept = {name: tensor.clone() for name, tensor in tensors.items()}
        change(tensors)  # the engine's copies are as they were
        held = engines.processes[0].ask("wrong")
        with pytest.raises(BarError) as caught:
            engines._update_all()  # what was sent has other checksums
        said[kind] = (str(caught.value), held)
        for name, tensor in kept.items():
            tensors[name].copy_(tensor)
    engines.sync()
    assert engines.processes[0].ask("wrong") == []
    engines.close()
    return said


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wrong_weights_are_named(engine, dtype, tmp_path, record_property):
    source = folder_for(engine, tmp_path, dtype=dtype)
    (said,) = run_distributed(
        found, 1, source, tmp_path / "links", ENGINES[engine](), ParallelConfig(), timeout=300
    )
    for kind, (_, named) in KINDS.items():
        line, held = said[kind]
        assert f"tensor {named}" in line and "checksum" in line, (kind, line)
        assert held and all(name.startswith(named) for name in held[:1]), (kind, held)
    record_property("figure", f"wrong weights in {engine}, {dtype}: {len(KINDS)} kinds, {len(said)} named")
    assert not (tmp_path / "links").exists()
