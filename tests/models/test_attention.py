"""Attention over packed documents against each document's own softmax in fp64: forward, backward, GQA, every
kernel."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_bar.models.attention import CORES, MOVING, Rope, Sequences
from megatron_bar.parallel import cpu

HEADS, KV_HEADS, WIDTH, THETA = 4, 2, 8, 10000.0


def core(kernels: str, dtype: torch.dtype):
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * WIDTH,
        num_attention_heads=HEADS,
        num_query_groups=KV_HEADS,
        attention_dropout=0.0,
        params_dtype=dtype,
    )
    return CORES[kernels](config, 1, AttnMaskType.causal, "self")


def packed(
    rows: list[list[int]], kernels: str, dtype: torch.dtype, device: torch.device, moving: int = MOVING
) -> Sequences:
    """``rows``: the lengths of each row's documents."""
    documents = torch.stack(
        [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in rows]
    )
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])
    seqs = Sequences(positions=positions.to(device), documents=documents.to(device))
    return seqs.prepare(rope=Rope(theta=THETA, width=WIDTH), kernels=kernels, dtype=dtype, moving=moving)


def alone(query, key, value) -> torch.Tensor:
    """One document ``[s, n, d]``, in the order of the paper's equations."""
    s = len(query)
    angles = torch.arange(s, dtype=torch.float64)[:, None] / THETA ** (
        torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH
    )

    def rotate(x):
        left, right = x[..., : WIDTH // 2], x[..., WIDTH // 2 :]
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)

    query, key = rotate(query), rotate(key)
    out = []
    for head in range(HEADS):
        group = head // (HEADS // KV_HEADS)
        scores = query[:, head] @ key[:, group].T / WIDTH**0.5
        scores = scores.masked_fill(torch.ones(s, s).triu(1).bool(), float("-inf"))
        out.append(scores.softmax(-1) @ value[:, group])
    return torch.cat(out, -1)


def errors(
    rows: list[list[int]], kernels: str, dtype: torch.dtype, device: torch.device, moving: int = MOVING
) -> tuple[Sequences, list[float]]:
    """The largest differences of the output and of the three gradients, relative to the largest value (or
    1)."""
    generator = torch.Generator().manual_seed(0)
    s = sum(rows[0])
    draws = [torch.randn(s, len(rows), n, WIDTH, generator=generator) for n in (HEADS, KV_HEADS, KV_HEADS)]
    mine = [x.to(device, dtype).requires_grad_() for x in draws]
    exact = [x.detach().cpu().double().requires_grad_() for x in mine]
    seqs = packed(rows, kernels, dtype, device, moving)
    got = core(kernels, dtype)(*mine, None, packed_seq_params=seqs)
    want = []
    for number, row in enumerate(rows):
        parts = [x[:, number].split(row) for x in exact]
        want.append(torch.cat([alone(*document) for document in zip(*parts, strict=True)]))
    want = torch.stack(want, 1)
    towards = torch.randn(want.shape, generator=generator)
    got.backward(towards.to(device, dtype))
    want.backward(towards.to(dtype).double())
    pairs = [(got, want), *((a.grad, b.grad) for a, b in zip(mine, exact, strict=True))]
    return seqs, [
        ((a.detach().cpu().double() - b.detach()).abs().max() / b.abs().max().clamp(min=1)).item()
        for a, b in pairs
    ]


@st.composite
def layouts(draw) -> list[list[int]]:
    length = draw(st.integers(1, 40))

    def row() -> list[int]:
        borders = sorted(draw(st.sets(st.integers(1, max(1, length - 1)), max_size=8))) if length > 1 else []
        return [b - a for a, b in zip([0, *borders], [*borders, length], strict=True)]

    return [row() for _ in range(draw(st.integers(1, 3)))]


@pytest.mark.parametrize("moving", [-(10**9), 10**9], ids=["documents", "mask"])
def test_documents_attend_as_if_alone(moving):
    @given(layouts())
    @example([[40]])
    @example([[38, 1, 1]])
    @example([[4] * 10, [5] * 8])
    def compare(rows):
        seqs, found = errors(rows, "torch", torch.float32, torch.device("cpu"), moving)
        assert (seqs.mask is None) == (moving < 0)
        assert max(found) < 1e-5

    compare()


def test_what_computes_less_is_chosen():
    cpu_device = torch.device("cpu")
    assert packed([[40] * 10], "torch", torch.float32, cpu_device).offsets is not None
    assert packed([[398, 1, 1]], "torch", torch.float32, cpu_device).mask is not None
    assert packed([[4] * 10], "torch", torch.float32, cpu_device).mask is not None


def test_transformer_engine_gets_the_borders_and_is_named_where_it_is_missing():
    seqs = packed([[3, 5], [8]], "transformer_engine", torch.bfloat16, torch.device("cpu"))
    got = seqs.borders
    assert (got.qkv_format, got.cu_seqlens_q.tolist(), got.cu_seqlens_kv.tolist()) == (
        "thd",
        [0, 3, 8, 16],
        [0, 3, 8, 16],
    )
    assert got.cu_seqlens_q.dtype == torch.int32 and got.max_seqlen_q == got.max_seqlen_kv == 8
    rows = Sequences(positions=torch.arange(8).expand(2, 8))  # without documents, each row is one
    rows.prepare(rope=Rope(theta=THETA, width=WIDTH), kernels="transformer_engine", dtype=torch.bfloat16)
    assert rows.borders.cu_seqlens_q.tolist() == [0, 8, 16]
    try:
        import transformer_engine  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="transformer_engine is not installed"):
            core("transformer_engine", torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [[[4] * 10], [[38, 1, 1]], [[7, 33], [40]]])
def test_the_kernels_of_a_gpu_compute_the_same(rows, dtype):
    seqs, found = errors(rows, "torch", dtype, cpu.device())
    assert dtype == torch.float32 or (seqs.borders and seqs.offsets is None)
    assert max(found) < (1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [[[4] * 10], [[38, 1, 1]], [[7, 33], [40]]])
def test_transformer_engine_computes_the_same(rows):
    pytest.importorskip("transformer_engine.pytorch")
    assert max(errors(rows, "transformer_engine", torch.bfloat16, cpu.device())[1]) < 3e-2
