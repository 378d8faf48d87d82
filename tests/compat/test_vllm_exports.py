"""Folders as our writer writes them load in vLLM, which has an environment of its own, and say what they say
in transformers.

vLLM runs OLMo 2 and FlexOlmo on its Transformers backend, experts and projections fused: a tensor in the wrong
place, renormalised weights of the chosen experts or another RoPE theta would show.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from compat.test_transformers import exported
from folders import LLAMA3, add_tokenizer
from rl.engines import VLLM, vllm
from scripts import ROOT

pytestmark = pytest.mark.vllm
TOLERANCE = 1e-4
WIDE = {"hidden_size": 128, "intermediate_size": 96}  # vLLM's kernels on a CPU want products of 32
TWO = {"num_experts": 2, "num_experts_per_tok": 2}
TWO_OF_FIVE = {"num_experts": 5, "num_experts_per_tok": 2}
CASES = {
    # name: (experts, bytes of a file, of the shape)
    "dense": ({}, 9000, {}),
    "two experts": (TWO, 9000, {}),
    "five experts": ({"num_experts": 5, "num_experts_per_tok": 5}, 10**9, {}),
    "two of five": (TWO_OF_FIVE, 9000, {}),
    "qwen3": ({}, 9000, {"family": "qwen3", "head_dim": 64}),
    "qwen3 two experts": (TWO, 9000, {"family": "qwen3", "head_dim": 64}),
    "qwen3 two of five": (TWO_OF_FIVE, 10**9, {"family": "qwen3", "head_dim": 64}),
    "llama": ({}, 9000, {"family": "llama", "rope_parameters": LLAMA3}),
    "llama two of five": (TWO_OF_FIVE, 9000, {"family": "llama", "rope_parameters": LLAMA3}),
    "qwen2": ({}, 9000, {"family": "qwen2"}),
    "qwen2 two of five": (TWO_OF_FIVE, 9000, {"family": "qwen2"}),
}


@torch.no_grad()
def by_transformers(folder: Path, rows: list[dict]) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    ids = torch.tensor([row["ids"] for row in rows])
    logprobs = model.eval()(ids).logits.log_softmax(-1)
    return logprobs[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)


def test_exports_say_the_same_in_vllm(tmp_path, record_property):
    vllm()
    (tmp_path / "tokenizer").mkdir()
    add_tokenizer(tmp_path / "tokenizer")
    folders = {
        name: exported(tmp_path / name, tmp_path / "tokenizer", experts, "float32", shard, **WIDE | shape)
        for name, (experts, shard, shape) in CASES.items()
    }
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    env |= {"PYTHONPATH": str(ROOT / "megatron_bar/rl/engines")}  # what it starts ends with it
    command = [VLLM, Path(__file__).with_name("vllm_logprobs.py"), tmp_path / "said.json", *folders.values()]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads((tmp_path / "said.json").read_text())
    worst = 0.0
    for (name, folder), rows in zip(folders.items(), said, strict=True):
        wanted = by_transformers(folder, rows)
        apart = float((wanted - torch.tensor([row["logprobs"] for row in rows])).abs().max())
        assert apart <= TOLERANCE, (name, apart)
        assert float(wanted.std()) > 1, name
        worst = max(worst, apart)
    record_property(
        "figure",
        f"exports in vLLM: {len(folders)} folders, log-probabilities within {worst:.1e} (limit {TOLERANCE:g})",
    )
