"""Token files: the same as Megatron's own builder writes, and nothing believed that the index and the data
disagree on."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from megatron_bar.data.indexed import id_dtype, in_memory, read_indexed, write_index
from megatron_bar.errors import BarError

DOCUMENTS = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14]]


def built(prefix: Path, documents: list[list[int]], dtype=np.uint16) -> Path:
    """By Megatron's builder; each document is one sequence."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for ids in documents:
        builder.add_item(torch.tensor(ids))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return prefix


def ours(prefix: Path, documents: list[list[int]], dtype=np.uint16) -> Path:
    np.concatenate([np.asarray(ids, dtype) for ids in documents]).tofile(f"{prefix}.bin")
    write_index(Path(f"{prefix}.idx"), np.array([len(ids) for ids in documents], np.int32), np.dtype(dtype))
    return prefix


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@settings(max_examples=20, deadline=None)
@given(documents=st.lists(st.lists(st.integers(0, 65_535), min_size=1, max_size=9), min_size=1, max_size=9))
def test_files_are_megatrons(tmp_path_factory, dtype, documents):
    folder = tmp_path_factory.mktemp("indexed")
    theirs, mine = built(folder / "theirs", documents, dtype), ours(folder / "mine", documents, dtype)
    for suffix in (".bin", ".idx"):
        assert Path(f"{theirs}{suffix}").read_bytes() == Path(f"{mine}{suffix}").read_bytes()
    tokens = read_indexed(theirs, vocab_size=65_536)
    assert [
        tokens.ids[a:b].tolist() for a, b in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)
    ] == documents
    read = IndexedDataset(str(mine))  # kept: its arrays point into a map that it closes when it goes
    assert [read[n].tolist() for n in range(len(documents))] == documents
    assert tokens.learnt == len(tokens.ids) and len(tokens) == len(documents)


def test_documents_of_several_sequences_and_modes_are_read(tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "x.bin"), dtype=np.int32, multimodal=True)
    builder.add_document(torch.tensor([1, 2, 3, 4, 5]), [2, 3], [0, 1])
    builder.add_document(torch.tensor([6]), [1], [0])
    builder.finalize(str(tmp_path / "x.idx"))
    assert read_indexed(tmp_path / "x").starts.tolist() == [0, 5, 6]


def test_the_dtype_is_megatrons_choice():
    for size in (1000, 65_499, 65_500, 65_536, 100_278):
        assert id_dtype(size) == DType.optimal_dtype(size)


def test_masks_lie_beside(tmp_path):
    prefix = ours(tmp_path / "x", DOCUMENTS)
    learn = np.array([n % 3 == 0 for n in range(10)])
    learn.tofile(f"{prefix}.learn")
    tokens = read_indexed(prefix)
    assert np.array_equal(tokens.learn, learn) and tokens.learnt == 4
    Path(f"{prefix}.learn").write_bytes(b"\1" * 9)
    with pytest.raises(BarError, match=r"x\.learn: expected one byte for each of 10 tokens, got 9"):
        read_indexed(prefix)


def index(
    *,
    magic=b"MMIDIDX\0\0",
    version=1,
    code=8,
    sequences=None,
    documents=None,
    lengths=(3, 1),
    offsets=None,
    starts=(0, 1, 2),
):
    sequences = len(lengths) if sequences is None else sequences
    documents = len(starts) if documents is None else documents
    offsets = np.cumsum([0, *lengths[:-1]]) * 2 if offsets is None else offsets
    return (
        struct.pack("<9sQBQQ", magic, version, code, sequences, documents)
        + np.array(lengths, np.int32).tobytes()
        + np.array(offsets, np.int64).tobytes()
        + np.array(starts, np.int64).tobytes()
    )


BAD = {
    # name: (.idx, .bin, message)
    "whole": (index(), 8, None),
    "no data": (index(), None, r"x\.bin: not found; expected token files x\.bin and \.idx"),
    "no index": (None, 8, r"x\.idx: not found; expected token files x\.bin and \.idx"),
    "data too short": (index(), 6, r"x\.bin: expected 8 bytes, as its index says, got 6"),
    "data too long": (index(), 10, r"x\.bin: expected 8 bytes, as its index says, got 10"),
    "data empty": (index(), 0, r"x\.bin: expected 8 bytes, as its index says, got 0"),
    "index empty": (b"", 8, r"x\.idx: not an index of Megatron's"),
    "header cut": (index()[:20], 8, r"x\.idx: not an index of Megatron's"),
    "another file": (b'{"text": "these are not tokens at all"}', 8, r"x\.idx: not an index of Megatron's"),
    "another version": (index(version=2), 8, r"x\.idx: expected index version 1, got 2"),
    "ids of floats": (index(code=6), 8, r"x\.idx: expected ids of int32, uint16, int64, got dtype code 6"),
    "dtype unknown": (index(code=77), 8, r"x\.idx: expected ids of int32, uint16, int64, got dtype code 77"),
    "index cut": (index()[:-3], 8, r"x\.idx: expected 82 bytes for 2 sequences and 3 documents, got 79"),
    "index longer": (
        index() + bytes(9),
        8,
        r"x\.idx: expected 82 bytes for 2 sequences and 3 documents, got 91",
    ),
    "count of noise": (
        index(sequences=1 << 61),
        8,
        r"x\.idx: expected 27,670,116,110,564,327,482 bytes for 2,305,843,009,213,693,952 sequences",
    ),
    "negative length": (
        index(lengths=(5, -1)),
        8,
        r"x\.idx: sequence 1 expected with a length of at least 0, got -1",
    ),
    "offsets that lie": (
        index(offsets=(0, 2)),
        8,
        r"x\.idx: sequence 1 expected to begin at byte 6, where the one before it ends, got 2",
    ),
    "documents that lie": (
        index(starts=(0, 1, 3)),
        8,
        r"x\.idx: documents expected to begin at sequence 0, to rise and to end at 2",
    ),
    "documents that fall": (
        index(starts=(0, 2, 1, 2)),
        8,
        r"x\.idx: documents expected to begin at sequence 0",
    ),
    "no documents": (index(starts=()), 8, r"x\.idx: documents expected to begin at sequence 0"),
}


@pytest.mark.parametrize("idx, size, message", BAD.values(), ids=BAD)
def test_files_that_disagree_are_refused(tmp_path, idx, size, message):
    if idx is not None:
        (tmp_path / "x.idx").write_bytes(idx)
    if size is not None:
        np.arange(size // 2, dtype=np.uint16).tofile(tmp_path / "x.bin")
    if message is None:
        assert read_indexed(tmp_path / "x").starts.tolist() == [0, 3, 4]
        return
    with pytest.raises(BarError, match=f"^{tmp_path}/{message}"):
        read_indexed(tmp_path / "x")


@pytest.mark.parametrize("bad", [1000, -1])
def test_an_id_outside_the_vocabulary_is_refused(tmp_path, bad):
    prefix = ours(tmp_path / "x", [*DOCUMENTS, [3, bad]], np.int32)
    assert len(read_indexed(prefix)) == 5
    with pytest.raises(
        BarError, match=rf"x\.bin: token 11 expected within the vocabulary of 1,000, got {bad}"
    ):
        read_indexed(prefix, vocab_size=1000)


def test_in_memory_is_the_same_thing():
    tokens = in_memory([([1, 2], [False, True]), ([3], [True])], value=[[0.5, 1.5], [2.5]])
    assert tokens.ids.tolist() == [1, 2, 3] and tokens.starts.tolist() == [0, 2, 3]
    assert tokens.learn.tolist() == [False, True, True] and tokens.extras["value"].tolist() == [0.5, 1.5, 2.5]
    assert len(in_memory([])) == 0
