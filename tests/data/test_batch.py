"""Packing and the order of training: properties over any documents, any layout and any restart."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_bar.data.batch import NO_LOSS, Document, Rows, batches, concatenate_and_cut, pack_documents
from megatron_bar.errors import BarError

PAD = 7
LENGTH = st.integers(1, 9)


@st.composite
def documents(draw, min_size: int = 0) -> list[Document]:
    """Every token is one of a kind, so that it can be followed; the padding may be among them."""
    sizes = draw(st.lists(st.integers(1, 14), min_size=min_size, max_size=8))
    first = np.cumsum([0, *sizes])
    return [
        (list(range(start, start + size)), draw(st.lists(st.booleans(), min_size=size, max_size=size)))
        for start, size in zip(first.tolist(), sizes, strict=False)
    ]


@given(documents(), LENGTH)
def test_a_stream_is_cut_without_losing_a_prediction(docs, length):
    ids = [token for tokens, _ in docs for token in tokens]
    learn = [flag for _, mask in docs for flag in mask]
    if len(ids) < length + 1:
        with pytest.raises(BarError, match=f"hold {len(ids)} tokens, fewer than one row of {length} and its last label"):
            concatenate_and_cut(docs, length)
        return
    rows = concatenate_and_cut(docs, length)
    used = len(rows) * length
    assert len(ids) - 1 - length < used <= len(ids) - 1
    assert rows.ids.shape == rows.labels.shape == rows.positions.shape == (len(rows), length)
    assert rows.ids.ravel().tolist() == ids[:used]
    assert rows.labels.ravel().tolist() == [ids[n] if learn[n] else NO_LOSS for n in range(1, used + 1)]
    assert rows.positions.tolist() == [list(range(length))] * len(rows)
    assert rows.documents is None and rows.efficiency == 1


@given(documents(min_size=1), LENGTH)
def test_whole_documents_are_packed_once_each(docs, length):
    rows, places = pack_documents(docs, length, pad_id=PAD)
    assert rows.ids.shape == rows.labels.shape == rows.positions.shape == rows.documents.shape == (len(rows), length)
    ids, labels = np.full(rows.ids.shape, PAD), np.full(rows.ids.shape, NO_LOSS)
    positions, owner = np.zeros(rows.ids.shape, int), np.full(rows.ids.shape, -1)
    for n, ((tokens, learn), (row, start)) in enumerate(zip(docs, places, strict=True)):
        kept = min(len(tokens), length)  # what is longer loses its end
        assert start + kept <= length
        for at in range(kept):
            assert owner[row, start + at] == -1, "two documents in one place"
            owner[row, start + at] = n
            ids[row, start + at], positions[row, start + at] = tokens[at], at
            if at + 1 < kept and learn[at + 1]:
                labels[row, start + at] = tokens[at + 1]
    assert np.array_equal(rows.ids, ids)
    assert np.array_equal(rows.labels, labels)
    assert np.array_equal(rows.positions, positions)
    for number, mine in zip(rows.documents, owner, strict=True):
        assert np.array_equal(number < 0, mine < 0)
        # The same number in a row means the same document, and a different one another.
        pairs = {(a, b) for a, b in zip(number.tolist(), mine.tolist(), strict=True) if b >= 0}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert rows.efficiency == pytest.approx((owner >= 0).mean())
    used = sorted((owner >= 0).sum(1).tolist())
    assert len(used) == 1 or used[0] + used[1] > length, "two rows would fit into one"


def test_best_fit_prefers_the_fullest_row():
    docs = [([n] * size, [True] * size) for n, size in enumerate((6, 5, 4, 3))]
    rows, places = pack_documents(docs, 9, pad_id=PAD)
    assert places == [(0, 0), (1, 0), (1, 5), (0, 6)] and rows.efficiency == 1


def numbered_rows(count: int) -> Rows:
    ids = np.arange(count * 3, dtype=np.int32).reshape(count, 3)
    return Rows(ids=ids, positions=np.zeros_like(ids), labels=ids + 1, documents=ids % 2)


def row_numbers(step: list) -> list[int]:
    return [int(batch.ids[row, 0]) // 3 for batch in step for row in range(len(batch.ids))]


def taken(rows: Rows, steps: int, *, data_size: int, micro_batch: int, **more) -> list[list[int]]:
    """Row numbers of every global batch: what the ranks see, one after the other."""
    options = {"data_size": data_size, "micro_batch": micro_batch} | more
    ranks = [islice(batches(rows, data_rank=rank, **options), steps) for rank in range(data_size)]
    together = []
    for parts in zip(*ranks, strict=True):
        assert all(len(batch.ids) == micro_batch for part in parts for batch in part)
        together.append([number for part in parts for number in row_numbers(part)])
    return together


SEED = st.integers(0, 3)


@settings(max_examples=50)
@given(count=st.integers(1, 30), micro=st.integers(1, 3), per_rank=st.integers(1, 3), seed=SEED, start=st.integers(0, 6))
def test_every_layout_and_every_restart_sees_the_same_batches(count, micro, per_rank, seed, start):
    rows, batch, steps = numbered_rows(count), 4 * micro * per_rank, 8
    expected = taken(rows, steps, data_size=1, micro_batch=batch, global_batch=batch, seed=seed)
    for data_size in (1, 2, 4):
        assert taken(rows, steps, data_size=data_size, micro_batch=micro, global_batch=batch, seed=seed) == expected
    rest = taken(rows, steps - start, data_size=2, micro_batch=micro, global_batch=batch, seed=seed, start=start)
    assert rest == expected[start:]


@given(count=st.integers(1, 30), batch=st.integers(1, 12), seed=SEED)
def test_every_epoch_takes_every_row_once(count, batch, seed):
    epochs = 3
    steps = -(-epochs * count // batch)
    options = {"data_size": 1, "micro_batch": batch, "global_batch": batch}
    stream = [number for step in taken(numbered_rows(count), steps, seed=seed, **options) for number in step]
    orders = [stream[n * count : (n + 1) * count] for n in range(epochs)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count >= 15:  # 1 in 15! that two shuffles agree
        assert len({tuple(order) for order in orders}) == epochs


def test_the_seed_changes_the_order():
    options = {"data_size": 1, "micro_batch": 20, "global_batch": 20}
    assert taken(numbered_rows(20), 1, seed=0, **options) != taken(numbered_rows(20), 1, seed=1, **options)


def test_a_batch_that_the_ranks_cannot_share_is_refused():
    with pytest.raises(BarError, match="batch of 6 rows is not divisible by micro-batch 2 x 2 data-parallel ranks"):
        next(batches(numbered_rows(4), global_batch=6, micro_batch=2, data_rank=0, data_size=2, seed=0))


def test_a_batch_has_the_rows_asked_for_in_the_models_types():
    batch = numbered_rows(5).take(np.array([3, 1]))
    assert batch.ids.tolist() == [[9, 10, 11], [3, 4, 5]]
    assert {batch.ids.dtype, batch.positions.dtype, batch.labels.dtype, batch.documents.dtype} == {torch.int64}
    assert batch.loss_tokens == 6
    batch.labels[0, 1:] = NO_LOSS
    assert batch.loss_tokens == 4
