"""One branch and three experts of it, made once; tests copy what they change."""

import pytest
import torch
from folders import save_hf, train_with

from megatron_bar.experts.branch import branch
from megatron_bar.weights.groups import RLVR, ParamGroup, classify


def moved(seed: int):
    """A change of everything that RLVR may move: router row 0 and the anchor's FFN stay."""
    generator = torch.Generator().manual_seed(seed)

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not RLVR.trainable(name):
            return tensor
        step = 0.1 * torch.randn(tensor.shape, generator=generator)
        if classify(name) is ParamGroup.ROUTER:
            step[0] = 0
        return (tensor + step).to(tensor.dtype)

    return change


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("experts") / "dense", seed=1)


@pytest.fixture(scope="session")
def other_dense(tmp_path_factory):
    return save_hf(tmp_path_factory.mktemp("experts") / "other_dense", seed=2)


@pytest.fixture(scope="session")
def branched(tmp_path_factory, dense, other_dense):
    return branch(
        dense, other_dense, tmp_path_factory.mktemp("experts") / "branched", router_init="normal", seed=3
    )[0].path


@pytest.fixture(scope="session")
def experts(tmp_path_factory, branched):
    root = tmp_path_factory.mktemp("experts")
    return {
        name: train_with(branched, root / f"{name}-folder", "rlvr", moved(seed), expert=name)
        for seed, name in enumerate(("math", "code", "tool"))
    }
