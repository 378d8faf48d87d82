"""Packing: properties over any documents."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_bar.data.indexed import Document, Tokens, in_memory
from megatron_bar.data.packing import NO_LOSS, CutRows, PackedRows, PairRows, best_fit
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


def everything(rows) -> dict[str, np.ndarray]:
    batch = rows.take(range(len(rows)))
    arrays = {name: getattr(batch, name) for name in ("ids", "positions", "labels", "documents")}
    assert {array.dtype for array in arrays.values() if array is not None} == {torch.int64}
    return {name: None if array is None else array.numpy() for name, array in arrays.items()}


def owners(docs: list[Document]) -> list[int]:
    return [n for n, (ids, _) in enumerate(docs) for _ in ids]


@given(documents(), LENGTH)
def test_a_stream_is_cut_without_losing_a_prediction(docs, length):
    ids = [token for tokens, _ in docs for token in tokens]
    learn = [flag for _, mask in docs for flag in mask]
    if len(ids) < length + 1:
        with pytest.raises(
            BarError, match=f"x: holds {len(ids)} tokens, fewer than one row of {length} and its last label"
        ):
            CutRows("x", in_memory(docs), length)
        return
    rows = CutRows("x", in_memory(docs), length)
    got, used = everything(rows), len(rows) * length
    assert len(ids) - 1 - length < used <= len(ids) - 1
    assert got["ids"].shape == (len(rows), length)
    assert got["ids"].ravel().tolist() == ids[:used]
    assert got["labels"].ravel().tolist() == [ids[n] if learn[n] else NO_LOSS for n in range(1, used + 1)]
    assert got["positions"].tolist() == [list(range(length))] * len(rows)
    assert got["documents"] is None
    assert rows.source_tokens(range(len(rows))).tolist() == [used]


@given(documents(), LENGTH)
def test_a_masked_stream_keeps_to_its_documents(docs, length):
    ids = [token for tokens, _ in docs for token in tokens]
    learn, owner = [flag for _, mask in docs for flag in mask], owners(docs)
    if len(ids) < length + 1:
        return
    rows = CutRows("x", in_memory(docs), length, masked=True)
    got = everything(rows)
    for place in range(len(rows) * length):
        row, at = divmod(place, length)
        begin = max(owner.index(owner[place]), row * length)
        assert got["ids"][row, at] == ids[place] and got["positions"][row, at] == place - begin
        trained = learn[place + 1] and owner[place + 1] == owner[place]
        assert got["labels"][row, at] == (ids[place + 1] if trained else NO_LOSS)
    for number, mine in zip(
        got["documents"], np.reshape(owner[: len(rows) * length], (-1, length)), strict=True
    ):
        same = mine[:, None] == mine
        assert np.array_equal(number[:, None] == number, same)


@given(documents(min_size=1), LENGTH)
def test_whole_documents_are_packed_once_each(docs, length):
    rows = PackedRows([("x", in_memory(docs))], length, pad_id=PAD)
    got = everything(rows)
    ids, labels = np.full(got["ids"].shape, PAD), np.full(got["ids"].shape, NO_LOSS)
    positions, owner = np.zeros(ids.shape, int), np.full(ids.shape, -1)
    assert sorted(n for row in range(len(rows)) for n in rows.row(row)) == list(range(len(docs)))
    for row in range(len(rows)):
        start = 0
        for n in rows.row(row):
            tokens, learn = docs[n]
            kept = min(len(tokens), length)  # what is longer loses its end
            for at in range(kept):
                owner[row, start + at] = n
                ids[row, start + at], positions[row, start + at] = tokens[at], at
                if at + 1 < kept and learn[at + 1]:
                    labels[row, start + at] = tokens[at + 1]
            start += kept
        assert start <= length
    assert np.array_equal(got["ids"], ids)
    assert np.array_equal(got["labels"], labels)
    assert np.array_equal(got["positions"], positions)
    for number, mine in zip(got["documents"], owner, strict=True):
        assert np.array_equal(number < 0, mine < 0)
        # The same number in a row means the same document, and a different one another.
        pairs = {(a, b) for a, b in zip(number.tolist(), mine.tolist(), strict=True) if b >= 0}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert rows.efficiency == pytest.approx((owner >= 0).mean())
    used = sorted((owner >= 0).sum(1).tolist())
    assert len(used) == 1 or used[0] + used[1] > length, "two rows would fit into one"


@given(documents(min_size=2), st.integers(4, 20))
def test_pairs_stay_together(docs, length):
    docs = docs[: len(docs) // 2 * 2]
    fitting = [n for n in range(0, len(docs), 2) if len(docs[n][0]) + len(docs[n + 1][0]) <= length]
    if not fitting:
        with pytest.raises(BarError, match="x: no document to pack"):
            PairRows([("x", in_memory(docs))], length, pad_id=PAD)
        return
    rows = PairRows([("x", in_memory(docs))], length, pad_id=PAD)
    assert (rows.pairs, rows.too_long) == (len(fitting), len(docs) // 2 - len(fitting))
    seen, got = [], everything(rows)
    for number in range(len(rows)):
        found = rows.row(number)
        assert found[1::2] == [n + 1 for n in found[::2]]
        seen += found[::2]
        wanted = [list(docs[n][0]) for n in found]
        assert [
            got["ids"][number][got["documents"][number] == d].tolist() for d in range(len(found))
        ] == wanted
    assert sorted(seen) == fitting


def slow_best_fit(sizes: list[int], length: int) -> list[list[int]]:
    """The definition, by looking at every row."""
    rows: list[list[int]] = []
    for n in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        rooms = [length - sum(sizes[m] for m in row) for row in rows]
        fitting = [(room, row) for row, room in enumerate(rooms) if room >= sizes[n]]
        if fitting:
            least = min(room for room, _ in fitting)
            rows[next(row for room, row in fitting if room == least)].append(n)
        else:
            rows.append([n])
    return rows


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(12, 20))
def test_best_fit_fills_as_the_definition_does(sizes, length):
    order, starts = best_fit(np.array(sizes, np.int32), length)
    rows = [order[a:b].tolist() for a, b in pairwise(starts)]
    # Among rows with as much room any will do, so rows may hold other documents, but never other amounts.
    assert sorted(sum(sizes[n] for n in row) for row in rows) == sorted(
        sum(sizes[n] for n in row) for row in slow_best_fit(sizes, length)
    )
    assert sorted(order.tolist()) == list(range(len(sizes)))


def test_best_fit_prefers_the_fullest_row():
    docs = [([n] * size, [True] * size) for n, size in enumerate((6, 5, 4, 3))]
    rows = PackedRows([("x", in_memory(docs))], 9, pad_id=PAD)
    assert [rows.row(0), rows.row(1)] == [[0, 3], [1, 2]] and rows.efficiency == 1


def test_sources_are_packed_together_and_counted_apart():
    long, short = ([([n] * 5, [True] * 5) for n in range(4)], [([9] * 3, [True] * 3) for _ in range(4)])
    rows = PackedRows([("general", in_memory(long)), ("math", in_memory(short))], 8, pad_id=PAD)
    assert len(rows) == 4 and rows.efficiency == 1 and rows.sources == ("general", "math")
    assert rows.source_tokens([0, 1, -1]).tolist() == [10, 6]


@pytest.mark.parametrize("too_long, kept", [("truncate", [[0] * 4, [1] * 3]), ("drop", [[1] * 3])])
def test_what_becomes_of_a_document_that_is_too_long_is_a_choice(too_long, kept):
    tokens = in_memory([([0] * 6, [True] * 6), ([1] * 3, [True] * 3)])
    rows = PackedRows([("x", tokens)], 4, pad_id=PAD, too_long=too_long)
    got = everything(rows)
    assert [
        ids[documents >= 0].tolist() for ids, documents in zip(got["ids"], got["documents"], strict=True)
    ] == kept
    assert (rows.too_long, rows.documents) == (1, len(kept))
    with pytest.raises(BarError, match=r"^x: document 0 has 6 tokens; a row holds 4"):
        PackedRows([("x", tokens)], 4, pad_id=PAD, too_long="error")


def test_extra_values_belong_to_the_label():
    tokens = in_memory(
        [([1, 2, 3], [False, True, True]), ([4, 5], [False, True])], value=[[0.0, 0.2, 0.3], [0.0, 0.5]]
    )
    batch = PackedRows([("x", tokens)], 6, pad_id=PAD).take([0, -1])
    assert batch.labels.tolist() == [[2, 3, -1, 5, -1, -1], [-1] * 6]
    assert batch.extras["value"].dtype == torch.float32
    assert batch.extras["value"].tolist() == [pytest.approx([0.2, 0.3, 0, 0.5, 0, 0]), [0] * 6]
    assert batch.loss_tokens == 3


def test_empty_documents_take_no_place():
    tokens = Tokens(ids=np.array([1, 2], np.uint16), starts=np.array([0, 0, 2, 2]))
    rows = PackedRows([("x", tokens)], 4, pad_id=PAD)
    assert len(rows) == 1 and rows.documents == 1
    with pytest.raises(BarError, match=r"^x: no document to pack into rows of 4"):
        PackedRows([("x", in_memory([]))], 4, pad_id=PAD)
