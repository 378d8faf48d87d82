"""The order of training: the same under any layout and after any restart; shares by weight; batches ahead,
and few of them."""

import threading
import time
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_bar.data.indexed import Tokens, in_memory
from megatron_bar.data.loader import AHEAD, Loader
from megatron_bar.data.mixture import mix, summary
from megatron_bar.data.packing import CutRows, PackedRows
from megatron_bar.errors import BarError

SEED = st.integers(0, 3)


def numbered(count: int, name: str = "x", first: int = 0) -> CutRows:
    """Rows of 3 tokens, in which row n begins with 3 (first + n)."""
    ids = np.arange(3 * first, 3 * (first + count) + 1, dtype=np.int32)
    return CutRows(name, Tokens(ids=ids, starts=np.array([0, len(ids)])), 3)


def row_numbers(step) -> list[int]:
    return [int(first) // 3 for batch in step.micro_batches for first in batch.ids[:, 0]]


def taken(parts, steps: int, *, data_size: int, micro_batch: int, start: int = 0, **more) -> list[list[int]]:
    """Row numbers of every global batch: what the ranks see, one after the other."""
    together = []
    loaders = [
        Loader(parts, data_rank=rank, data_size=data_size, micro_batch=micro_batch, steps=steps, **more)
        for rank in range(data_size)
    ]
    for step in range(start, steps):
        made = [loader.step(step) for loader in loaders]
        assert all(len(batch.ids) == micro_batch for part in made for batch in part.micro_batches)
        assert all(part.shares == made[0].shares for part in made), "shares are of the whole step"
        together.append([number for part in made for number in row_numbers(part)])
    return together


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 30),
    micro=st.integers(1, 3),
    per_rank=st.integers(1, 3),
    seed=SEED,
    start=st.integers(0, 6),
    weights=st.sampled_from([None, [0.3, 0.7]]),
)
def test_every_layout_and_every_restart_sees_the_same_batches(count, micro, per_rank, seed, start, weights):
    parts = [numbered(count), numbered(7, first=count)]
    batch, steps = 4 * micro * per_rank, 8
    options = {"global_batch": batch, "seed": seed, "weights": weights}
    expected = taken(parts, steps, data_size=1, micro_batch=batch, **options)
    for data_size in (1, 2, 4):
        assert taken(parts, steps, data_size=data_size, micro_batch=micro, **options) == expected
    assert taken(parts, steps, data_size=2, micro_batch=micro, start=start, **options) == expected[start:]


@settings(deadline=None)
@given(count=st.integers(1, 30), batch=st.integers(1, 12), seed=SEED)
def test_every_epoch_takes_every_row_once(count, batch, seed):
    epochs = 3
    steps = -(-epochs * count // batch)
    options = {"data_size": 1, "micro_batch": batch, "global_batch": batch}
    stream = [number for step in taken([numbered(count)], steps, seed=seed, **options) for number in step]
    orders = [stream[n * count : (n + 1) * count] for n in range(epochs)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count >= 15:  # 1 in 15! that two shuffles agree
        assert len({tuple(order) for order in orders}) == epochs


def test_the_seed_changes_the_order():
    options = {"data_size": 1, "micro_batch": 20, "global_batch": 20}
    assert taken([numbered(20)], 1, seed=0, **options) != taken([numbered(20)], 1, seed=1, **options)


def test_weights_hold_after_any_number_of_rows():
    parts = [numbered(5, "a"), numbered(40, "b", first=5)]
    options = {"data_size": 1, "micro_batch": 10, "global_batch": 10}
    stream = [n for step in taken(parts, 20, seed=0, weights=[0.25, 0.75], **options) for n in step]
    for end in range(1, len(stream) + 1):
        assert abs(sum(n < 5 for n in stream[:end]) - 0.25 * end) <= 1
    first, rest = [n for n in stream if n < 5], [n for n in stream if n >= 5]
    assert all(sorted(first[n : n + 5]) == [0, 1, 2, 3, 4] for n in range(0, 50, 5)), (
        "used up, then shuffled anew"
    )
    assert sorted(rest[:40]) == list(range(5, 45))


def test_a_step_names_the_rows_of_all_ranks():
    parts = [numbered(5, "general"), numbered(7, "math", first=5)]
    loaders = [
        Loader(
            parts,
            global_batch=4,
            micro_batch=1,
            data_rank=rank,
            data_size=2,
            seed=0,
            steps=3,
            weights=[0.5, 0.5],
        )
        for rank in (0, 1)
    ]
    for number in range(3):
        steps = [loader.step(number) for loader in loaders]
        assert steps[0].rows == steps[1].rows and set(steps[0].rows) == {"general", "math"}
        named = [*steps[0].rows["general"], *(5 + row for row in steps[0].rows["math"])]
        assert sorted(named) == sorted(row for step in steps for row in row_numbers(step))


def test_the_share_of_each_source_is_reported():
    long = in_memory([([n] * 5, [True] * 5) for n in range(4)])
    short = in_memory([([9] * 3, [True] * 3) for _ in range(4)])
    mixture = mix([("general", long), ("math", short)], packing="documents", length=8, pad_id=0)
    loader = Loader(mixture.parts, global_batch=2, micro_batch=1, data_rank=0, data_size=1, seed=0, steps=2)
    assert loader.step(0).shares == {"general": 5 / 8, "math": 3 / 8}
    assert summary(mixture.parts) == "8 documents in 4 rows, 100.0% filled, 0 longer than a row"


def test_weights_of_domains_are_spread_over_their_files():
    files = [("math", numbered(10).tokens), ("general", numbered(5).tokens), ("math", numbered(30).tokens)]
    cut = mix(files, packing="cut", length=3, pad_id=0, weights={"math": 0.8, "general": 0.2})
    assert cut.weights == pytest.approx([0.2, 0.2, 0.6])
    whole = mix(files, packing="documents", length=40, pad_id=0, weights={"math": 0.8, "general": 0.2})
    assert [part.sources for part in whole.parts] == [("math", "math"), ("general",)] and whole.weights == [
        0.8,
        0.2,
    ]
    assert mix(files, packing="cut", length=3, pad_id=0).weights is None


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"math": 0.5, "general": 0.6}, "weights: expected to add up to 1, got 1.1"),
        (
            {"math": 0.5, "genral": 0.5},
            "weights: expected one for each of math, general; genral is none of them",
        ),
        ({"math": 1.0}, "weights: expected one for each of math, general; general has none"),
        ({"math": 1.5, "general": -0.5}, "weights: general expected a positive share, got -0.5"),
        ({"math": float("nan"), "general": 1}, "weights: math expected a positive share, got nan"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights, message):
    files = [("math", numbered(10).tokens), ("general", numbered(5).tokens)]
    with pytest.raises(BarError, match=f"^{message}$"):
        mix(files, packing="cut", length=3, pad_id=0, weights=weights)


def test_a_batch_that_the_ranks_cannot_share_is_refused():
    with pytest.raises(
        BarError, match="batch of 6 rows is not divisible by micro-batch 2 x 2 data-parallel ranks"
    ):
        Loader([numbered(4)], global_batch=6, micro_batch=2, data_rank=0, data_size=2, seed=0, steps=1)


class Counting(CutRows):
    """Rows that say how often they were taken."""

    def take(self, index):
        made.append(list(index))
        return super().take(index)


made: list = []


def test_few_batches_are_made_ahead_and_the_thread_ends():
    made.clear()
    rows = Counting("x", numbered(50).tokens, 3)
    loader = Loader([rows], global_batch=5, micro_batch=5, data_rank=0, data_size=1, seed=0, steps=10)
    stream, first = loader.ahead(2), loader.step(2)
    made.clear()
    assert row_numbers(next(stream)) == row_numbers(first)
    deadline = time.monotonic() + 10
    while len(made) < 1 + AHEAD and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 1 + AHEAD
    assert len(list(stream)) == 7
    again = loader.ahead()
    next(again)
    again.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_an_error_in_the_thread_reaches_training():
    class Broken(CutRows):
        def take(self, index):
            raise BarError("a bad row")

    rows = Broken("x", numbered(5).tokens, 3)
    loader = Loader([rows], global_batch=1, micro_batch=1, data_rank=0, data_size=1, seed=0, steps=3)
    with pytest.raises(BarError, match="a bad row"):
        list(islice(loader.ahead(), 1))


def test_packed_rows_of_different_parts_share_a_batch():
    docs = [in_memory([([n] * 4, [True] * 4)] * 6) for n in (1, 2)]
    parts = [PackedRows([(name, tokens)], 6, pad_id=0) for name, tokens in zip("ab", docs, strict=True)]
    loader = Loader(
        parts, global_batch=4, micro_batch=4, data_rank=0, data_size=1, seed=0, steps=1, weights=[0.5, 0.5]
    )
    (batch,) = loader.step(0).micro_batches
    assert sorted(batch.ids[:, 0].tolist()) == [1, 1, 2, 2] and batch.documents.shape == (4, 6)
