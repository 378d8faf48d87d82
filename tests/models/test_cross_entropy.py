"""The blockwise loss against torch's own over the whole of the logits, value and gradient; over several ranks
see test_parity."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.models.build import learnt_places
from megatron_bar.models.cross_entropy import token_nll
from megatron_bar.parallel import cpu
from megatron_bar.parallel.state import distributed


@pytest.fixture(scope="module", autouse=True)
def alone():
    with distributed():
        yield


def drawn(s: int, b: int, width: int, vocabulary: int, seed: int, dtype: torch.dtype):
    """Logits of which some are large, labels of which some are absent, and what the two results are weighted
    with."""
    generator = torch.Generator().manual_seed(seed)
    logits = (10 * torch.randn(s, b, width, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(-2, vocabulary, (b, s), generator=generator)
    return logits, labels, torch.randn(2, b, s, generator=generator)


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 40)),
    padding=st.integers(0, 3),
    block=st.integers(1, 300),
    seed=st.integers(0, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_equals_torch(size, padding, block, seed, dtype):
    compare_with_torch(size, padding, block, seed, dtype, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torch_on_a_gpu(dtype):
    compare_with_torch((64, 2, 1003), 5, 50_000, 0, dtype, cpu.device())


def compare_with_torch(size, padding, block, seed, dtype, device) -> None:
    """On ``device``, against fp64 on the CPU."""
    s, b, vocabulary = size
    logits, labels, weights = drawn(s, b, vocabulary + padding, vocabulary, seed, dtype)
    there = logits.detach().to(device).requires_grad_()
    nll, lse = token_nll(there, labels.to(device), vocab_size=vocabulary, group=dist.group.WORLD, block=block)
    (weights[0].to(device) * nll + weights[1].to(device) * lse).sum().backward()
    nll, lse, gradient = nll.cpu(), lse.cpu(), there.grad.cpu()

    exact = logits.detach().double().requires_grad_()
    of_rows = exact.transpose(0, 1)[..., :vocabulary]
    wanted = F.cross_entropy(of_rows.transpose(1, 2), labels.clamp(min=-1), ignore_index=-1, reduction="none")
    sums = of_rows.logsumexp(-1)
    (weights[0].double() * wanted + weights[1].double() * sums).sum().backward()
    torch.testing.assert_close(nll.double(), wanted, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(lse.double(), sums, rtol=1e-6, atol=1e-5)
    half = dtype is torch.bfloat16  # the gradient is rounded to the logits' dtype
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=2**-8 if half else 1e-5, atol=1e-6)
    assert (gradient[..., vocabulary:] == 0).all()


def test_only_the_logits_are_kept():
    logits, labels, weights = drawn(64, 2, 500, 500, 0, torch.bfloat16)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        nll, _ = token_nll(logits, labels, vocab_size=500, group=dist.group.WORLD)
    (weights[0] * nll).sum().backward()
    assert kept.pop(logits.untyped_storage().data_ptr()) == 2 * logits.numel()
    assert sum(kept.values()) <= 64 * 2 * 24  # labels, places and masks


@given(b=st.integers(1, 4), s=st.integers(1, 70), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_what_is_learnt_is_among_the_places(b, s, share, seed):
    """Each place once, and at most an eighth of them, or a single one, for nothing."""
    labels = torch.randint(0, 9, (b, s), generator=torch.Generator().manual_seed(seed))
    labels[torch.rand(b, s, generator=torch.Generator().manual_seed(seed)) >= share] = -1
    places = learnt_places(labels)
    assert 1 <= len(places) == len(set(places.tolist()))
    learnt = {row + place * b for row, place in (labels >= 0).nonzero().tolist()}
    assert learnt <= set(places.tolist()) <= set(range(b * s))
    assert len(places) <= max(1, 9 / 8 * len(learnt))
