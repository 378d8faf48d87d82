"""Every operation between a folder's tensors and a rank's parameter: the parts of all ranks together are the
tensors.

That a part is the right one is shown by the parity of logits and gradients (test_parity.py), not here.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_bar.conversion.ops import Columns, GateUp, QueryKeyValue, VocabularyRows, WeightOp, Whole

SIZES = st.sampled_from([1, 2, 4, 8])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
SMALL = st.integers(1, 5)


def numbered(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, Tensor]:
    """All values different, as far as the dtype can tell them apart."""
    made, start = {}, 1
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        made[name] = torch.arange(start, start + count).reshape(shape).to(dtype)
        start += count
    return made


class Lazy:
    """A tensor that can only be sliced, like those of safetensors; notes how many values were read."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.read = tensor, 0

    def get_shape(self) -> list[int]:
        return list(self.tensor.shape)

    def __getitem__(self, index) -> Tensor:
        part = self.tensor[index]
        self.read += part.numel()
        return part


def check_identity(op: WeightOp, tensors: dict[str, Tensor], size: int) -> list[Tensor]:
    """join(cut) gives the tensors back, from plain tensors as from lazy ones, and no rank reads more than its
    part."""
    parts = [op.cut(tensors.__getitem__, rank, size) for rank in range(size)]
    joined = op.join(parts)
    assert joined.keys() == tensors.keys() == set(op.names)
    assert all(
        torch.equal(joined[name], tensors[name]) and joined[name].dtype == tensors[name].dtype
        for name in tensors
    )
    assert len({part.shape for part in parts}) == 1
    for rank, part in enumerate(parts):
        lazy = {name: Lazy(tensor) for name, tensor in tensors.items()}
        assert torch.equal(op.cut(lazy.__getitem__, rank, size), part)
        assert sum(one.read for one in lazy.values()) <= part.numel()
    return parts


@given(size=SIZES, width=SMALL, dtype=DTYPES)
def test_whole(size, width, dtype):
    tensors = numbered({"norm": (width,)}, dtype)
    op = Whole("norm")
    assert not op.sharded
    for part in check_identity(op, tensors, size):
        assert torch.equal(part, tensors["norm"])


@given(size=SIZES, vocabulary=st.integers(1, 40), width=SMALL, dtype=DTYPES)
def test_rows_of_a_vocabulary_that_need_not_divide(size, vocabulary, width, dtype):
    tensors = numbered({"embed": (vocabulary, width)}, dtype)
    op = VocabularyRows("embed", total=vocabulary)
    assert op.sharded
    padded = torch.cat(check_identity(op, tensors, size))
    assert len(padded) == -(-vocabulary // size) * size
    assert torch.equal(padded[:vocabulary], tensors["embed"])
    assert not padded[vocabulary:].any()


@given(size=SIZES, rows=SMALL, per_rank=SMALL, dtype=DTYPES)
def test_columns(size, rows, per_rank, dtype):
    tensors = numbered({"down": (rows, size * per_rank)}, dtype)
    op = Columns("down")
    assert op.sharded
    assert [part.shape for part in check_identity(op, tensors, size)] == [(rows, per_rank)] * size


@given(size=SIZES, per_rank=SMALL, width=SMALL, dtype=DTYPES)
def test_gate_and_up(size, per_rank, width, dtype):
    tensors = numbered({"gate": (size * per_rank, width), "up": (size * per_rank, width)}, dtype)
    op = GateUp("gate", "up")
    assert op.sharded
    for rank, part in enumerate(check_identity(op, tensors, size)):
        mine = slice(rank * per_rank, (rank + 1) * per_rank)
        assert torch.equal(part, torch.cat((tensors["gate"][mine], tensors["up"][mine])))


@given(size=SIZES, groups_per_rank=SMALL, per_group=SMALL, width=SMALL, hidden=SMALL, dtype=DTYPES)
def test_query_key_value(size, groups_per_rank, per_group, width, hidden, dtype):
    """``per_group`` 1 is multi-head attention, more is grouped-query attention."""
    groups = size * groups_per_rank
    heads = {"q": groups * per_group, "k": groups, "v": groups}
    tensors = numbered({name: (count * width, hidden) for name, count in heads.items()}, dtype)
    op = QueryKeyValue("q", "k", "v", groups=groups, per_group=per_group, width=width)
    assert op.sharded
    fused = torch.cat(check_identity(op, tensors, size)).view(groups, per_group + 2, width, hidden)
    by_head = {name: tensor.view(-1, width, hidden) for name, tensor in tensors.items()}
    for group in range(groups):
        wanted = [
            *by_head["q"][group * per_group : (group + 1) * per_group],
            by_head["k"][group],
            by_head["v"][group],
        ]
        assert torch.equal(fused[group], torch.stack(wanted))
