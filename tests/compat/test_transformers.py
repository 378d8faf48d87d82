"""Folders as our writer writes them give the same logits in transformers 5 and in 4.57, which has an
environment of its own."""

import json
import os
import subprocess
from itertools import product
from pathlib import Path

import pytest
import torch
import transformers
from compat.logits import logits
from folders import LLAMA3, SHAPE, add_tokenizer
from safetensors.torch import load_file
from scripts import ROOT

from megatron_bar.weights.folder import INDEX, SINGLE
from megatron_bar.weights.hf_config import ModelConfig, tensor_shapes
from megatron_bar.weights.manifest import Manifest
from megatron_bar.weights.writer import WriteOptions, write_folder

pytestmark = pytest.mark.compat
OLDER = ROOT / ".venv-compat/bin/python"
TOLERANCE = 1e-5
EXPERTS = {
    "dense": {},
    "two": {"num_experts": 2, "num_experts_per_tok": 2},
    "five": {"num_experts": 5, "num_experts_per_tok": 3},
}
OTHERS = {
    "qwen3": {"head_dim": 12},
    "llama": {"head_dim": 12, "rope_parameters": LLAMA3},
    "mistral": {"head_dim": 12},
    "qwen2": {},
}
"""What is asked of the families beside OLMo 2."""


def exported(
    out: Path, tokenizer: Path, experts: dict, dtype: str, shard: int, *, family: str = "olmo2", **changes
) -> Path:
    """Every tensor random, norms and biases too; ``changes``: of the shape."""
    given = {"model_type": family, "dtype": dtype, "rms_norm_eps": 1e-5}
    config = ModelConfig.from_hf(SHAPE | given | changes)
    if experts:
        config = config.with_experts(experts["num_experts"]).with_active(experts["num_experts_per_tok"])
    shapes, generator = tensor_shapes(config), torch.Generator().manual_seed(len(out.name))

    def tensor(name: str) -> torch.Tensor:
        values = torch.randn(shapes[name], generator=generator) * 0.3 + (len(shapes[name]) == 1)
        return values.to(getattr(torch, dtype))

    manifest = Manifest(family=config.model_type, kind="routed" if experts else "dense")
    write_folder(
        out,
        config,
        lambda name: [tensor(name)],
        companions_from=tokenizer,
        manifest=lambda *_: manifest,
        options=WriteOptions(max_shard_bytes=shard),
    )
    assert (out / (SINGLE if shard > 10**6 else INDEX)).is_file()
    return out


def test_exports_give_the_same_logits_in_both(tmp_path, record_property):
    assert OLDER.is_file(), f"{OLDER} is not there: make test-compat makes it"
    (tmp_path / "tokenizer").mkdir()
    add_tokenizer(tmp_path / "tokenizer")
    kinds = [
        *product(["olmo2"], EXPERTS, ("float32", "bfloat16"), (9000, 10**9)),
        *product(OTHERS, EXPERTS, ["float32"], [9000]),
        *product(OTHERS, EXPERTS, ["bfloat16"], [10**9]),
    ]
    folders = [
        exported(
            tmp_path / f"{family}-{name}-{dtype}-{shard}",
            tmp_path / "tokenizer",
            EXPERTS[name],
            dtype,
            shard,
            family=family,
            **OTHERS.get(family, {}),
        )
        for family, name, dtype, shard in kinds
    ]
    (tmp_path / "older").mkdir()
    env = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [OLDER, Path(__file__).with_name("logits.py"), tmp_path / "older", *folders]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "older/said.json").read_text())
    assert said["version"].startswith("4.57.") and transformers.__version__.startswith("5.")
    worst, seen = 0.0, set()
    for n, folder in enumerate(folders):
        ours, names = logits(folder)
        theirs = load_file(tmp_path / f"older/{n}.safetensors")["logits"]
        assert not any(names.values()) and not any(said["folders"][n].values()), (
            folder.name,
            names,
            said["folders"][n],
        )
        figure = float((ours - theirs).abs().max() / max(1.0, float(ours.abs().max())))
        assert ours.isfinite().all() and figure <= TOLERANCE, (folder.name, figure)
        worst = max(worst, figure)
        seen.add(round(float(ours.double().sum()), 6))
    assert len(seen) == len(folders), "two folders hold the same model"
    version = f"transformers {transformers.__version__} and {said['version']}"
    record_property(
        "figure",
        f"exports: {len(folders)} folders, logits of {version} within {worst:.1e} (limit {TOLERANCE:g})",
    )
