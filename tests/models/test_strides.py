"""What a model hands to its products has a fresh tensor's strides.

Of one row a transposed tensor counts as contiguous and keeps its strides; `torch.matmul` then multiplies its
tokens one by one. On an H200 the attention's output projection alone took 45 % of a step so.
"""

import pytest
import torch

from megatron_bar.models.build import build_model
from megatron_bar.models.sampler import Sampler
from megatron_bar.parallel.state import ParallelConfig, distributed, set_layout
from megatron_bar.weights.hf_config import ModelConfig

SHAPE = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    max_positions=64,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    dtype="float32",
)


@pytest.fixture(scope="module", autouse=True)
def alone():
    with distributed():
        yield


@pytest.fixture(params=[0, 2], ids=["dense", "experts"])
def model(request):
    shape = SHAPE.with_experts(request.param) if request.param else SHAPE
    set_layout(ParallelConfig(), shape, seed=0)
    model = build_model(shape, ParallelConfig())
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.1)
    return model


@pytest.fixture
def odd(model) -> dict[str, tuple]:
    """Module -> the strides of an input that is laid out otherwise."""
    found = {}

    def look(name):
        def hook(_, given):
            x = given[0]
            if x.stride() != torch.empty(x.shape, device="meta").stride():
                found[name] = (tuple(x.shape), x.stride())

        return hook

    seen = [
        name
        for name, module in model.named_modules()
        if "Linear" in type(module).__name__ or name.endswith("router")
    ]
    assert len(seen) >= 2 * SHAPE.num_layers + 1
    for name in seen:
        model.get_submodule(name).register_forward_pre_hook(look(name))
    return found


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("packed", [True, False])
def test_in_training(model, odd, rows, packed):
    ids = torch.arange(8).expand(rows, 8).contiguous()
    documents = (ids >= 5).long() if packed else None
    nll, _ = model(
        ids, torch.where(ids >= 5, ids - 5, ids) if packed else ids, labels=ids, documents=documents
    )
    nll.sum().backward()
    assert odd == {}


@pytest.mark.parametrize("plain", [False, True])
def test_in_sampling(model, odd, plain):
    Sampler(model, eos_ids=set(), pad_id=0, plain=plain).generate([[1, 2, 3], [4]], max_new_tokens=4)
    assert odd == {}
