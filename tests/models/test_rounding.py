"""Where values are rounded to 16 bit: logits of one layer in bf16 against transformers', by the same kernel of
attention."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from folders import CLASSES, LLAMA3, save_hf
from torch import Tensor

from megatron_bar.evaluation.generative import load_model
from megatron_bar.parallel.state import ParallelConfig, distributed

ROWS, LENGTH, SEEDS = 4, 16, 3
SHAPE = {"vocab_size": 203, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
HEADS = {
    "qwen3": {"head_dim": 24},
    "llama": {"head_dim": 24, "rope_parameters": LLAMA3},
    "mistral": {"head_dim": 24},
}


@pytest.fixture(scope="module", autouse=True)
def alone():
    with distributed():
        yield


def bias_behind(model: torch.nn.Module) -> None:
    """Lets a projection round its product before the bias is added, as Megatron-Core's does."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            module.forward = lambda x, m=module: F.linear(x, m.weight) + m.bias


@torch.no_grad()
def logits(source: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Ours and transformers' in bf16, and transformers' in fp32."""
    ids = torch.randint(1, SHAPE["vocab_size"], (ROWS, LENGTH), generator=torch.Generator().manual_seed(3))
    ours = load_model(source, ParallelConfig()).eval()(ids, torch.arange(LENGTH).expand_as(ids))
    theirs = []
    for dtype in (torch.bfloat16, torch.float32):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, attn_implementation="sdpa", dtype=dtype
        ).eval()
        bias_behind(model)
        theirs.append(model(ids).logits)
    assert ours.dtype is theirs[0].dtype is torch.bfloat16
    return ours.float(), theirs[0].float(), theirs[1]


def made(tmp_path: Path, family: str, **experts: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    shape = SHAPE | HEADS.get(family, {}) | experts
    return [
        logits(save_hf(tmp_path / str(seed), family=family, seed=seed, dtype="bfloat16", **shape))
        for seed in range(SEEDS)
    ]


@pytest.mark.parametrize(
    "family, experts",
    [
        *((family, {}) for family in CLASSES),
        # Each expert sees the tokens that chose it, as in transformers; Mixtral keeps weights in fp32.
        *((family, {"experts": 5, "num_experts_per_tok": 2}) for family in ("olmo2", "qwen3", "qwen2")),
    ],
)
def test_values_are_rounded_where_transformers_rounds_them(family, experts, tmp_path):
    """Bit for bit, but for a hundredth: mean squares are summed in another order, which turns a rounding once
    in ten thousand values. One cast in another place turns every other logit."""
    found = made(tmp_path, family, **experts)
    turned = sum(float((ours != theirs).float().mean()) for ours, theirs, _ in found) / SEEDS
    assert turned < 0.01


@pytest.mark.parametrize(
    "family, experts, active",
    [
        *((family, n, n) for family in CLASSES for n in (2, 5)),
        ("llama", 5, 2),
    ],
)
def test_a_mixture_s_sums_are_as_near_as_transformers_are(family, experts, active, tmp_path):
    """Where all experts see all tokens, a share is added to the sum unrounded, which transformers rounds
    before; Mixtral weighs it in fp32. So they part, by less than the 2^-7 from a bf16 to the next, and are
    equally near to fp32."""
    for ours, theirs, exact in made(tmp_path, family, experts=experts, num_experts_per_tok=active):
        assert 0 < (ours - theirs).norm() < 2**-7 * exact.norm()
        assert (ours - exact).norm() < 1.05 * (theirs - exact).norm()
