"""The header reader on files made by hand, the writer against the safetensors library."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from megatron_bar.errors import BarError
from megatron_bar.weights.safetensors_io import read_blocks, read_header, tensor_bytes, write_file


def by_hand(path: Path, header, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, **changes) -> dict:
    return {"dtype": "F32", "shape": [(stop - start) // 4], "data_offsets": [start, stop]} | changes


BAD = {
    "a gap": ({"a": entry(0, 8), "b": entry(12, 16)}, 16, r"'b': data expected at byte 8, got 12"),
    "an overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, 12, r"'b': data expected at byte 8, got 4"),
    "a late start": ({"a": entry(4, 8)}, 8, r"'a': data expected at byte 0, got 4"),
    "missing data": ({"a": entry(0, 8)}, 7, r"truncated: tensor 'a' expected up to data byte 8, got 7"),
    "surplus data": ({"a": entry(0, 8)}, 9, r"expected 8 bytes of data, got 9"),
    "offsets against shape": ({"a": entry(0, 8, shape=[3])}, 8, r"'a': data_offsets expected 12 bytes"),
    "offsets backwards": ({"a": entry(0, 8, data_offsets=[8, 0])}, 8, r"'a': data_offsets expected 8 bytes"),
    "negative offset": (
        {"a": entry(0, 8, data_offsets=[-8, 0])},
        8,
        r"'a': data_offsets expected two byte offsets",
    ),
    "three offsets": ({"a": entry(0, 8, data_offsets=[0, 8, 8])}, 8, r"'a': data_offsets expected two"),
    "offsets no list": ({"a": entry(0, 8, data_offsets=8)}, 8, r"'a': data_offsets expected two"),
    "negative shape": (
        {"a": entry(0, 8, shape=[-2, -1])},
        8,
        r"'a': shape expected a list of sizes, got \[-2, -1\]",
    ),
    "true as a size": ({"a": entry(0, 4, shape=[True])}, 4, r"'a': shape expected a list of sizes"),
    "another dtype": (
        {"a": entry(0, 8, dtype="I32")},
        8,
        r"'a': dtype expected one of F32, BF16, F16, got 'I32'",
    ),
    "dtype no string": ({"a": entry(0, 8, dtype=["F32"])}, 8, r"'a': dtype expected one of .*got \['F32'\]"),
    "metadata no object": (
        {"__metadata__": [1], "a": entry(0, 8)},
        8,
        r"__metadata__ expected an object of strings, got \[1\]",
    ),
    "metadata no strings": (
        {"__metadata__": {"a": 1}, "a": entry(0, 8)},
        8,
        r"__metadata__ expected an object of strings",
    ),
    "no dtype": (
        {"a": {"shape": [2], "data_offsets": [0, 8]}},
        8,
        r"'a': expected dtype, shape and data_offsets",
    ),
    "entry no object": ({"a": 3}, 0, r"'a': expected dtype, shape and data_offsets"),
    "a name twice": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}',
        4,
        r"'a' expected once, got it 2 times",
    ),
    "no object": ([1], 0, r"malformed safetensors header: expected a JSON object, got b'\[1\]'"),
    "white space before": (
        b' {"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        4,
        r"expected a JSON object, got b' \{",
    ),
    "UTF-16": (
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.encode("utf-16-le"),
        4,
        r"malformed safetensors header",
    ),
    "a field more": (
        {"a": entry(0, 8, scale=float("nan"))},
        8,
        r"'a': expected dtype, shape and data_offsets in the header",
    ),
    "half a character": (
        {"\ud800": entry(0, 8)},
        8,
        r"malformed safetensors header: expected characters, got '\\ud800'",
    ),
    "no JSON": (b"{,}", 0, r"malformed safetensors header"),
    "no UTF-8": (b'{"\xff\xff":1}', 0, r"malformed safetensors header"),
    "deep nesting": (b"[" * 200_000, 0, r"malformed safetensors header"),
}


@pytest.mark.parametrize("header, size, message", BAD.values(), ids=BAD)
def test_a_malformed_file_is_refused_in_one_line_that_names_it(tmp_path, header, size, message):
    file = by_hand(tmp_path / "bad.safetensors", header, bytes(size))
    with pytest.raises(BarError, match=rf"bad\.safetensors.*{message}") as caught:
        read_header(file)
    assert "\n" not in str(caught.value)


def test_every_truncation_of_a_file_is_refused(tmp_path):
    file = tmp_path / "whole.safetensors"
    blocks = {"a": torch.ones(3, 2).bfloat16().split(2), "b": [torch.ones(1).bfloat16()]}
    write_file(file, {"a": (3, 2), "b": (1,)}, "bfloat16", blocks.items())
    size = file.stat().st_size
    assert read_header(file) == {"a": ("bfloat16", (3, 2), size - 14), "b": ("bfloat16", (1,), size - 2)}
    for length in reversed(range(size)):
        os.truncate(file, length)
        with pytest.raises(BarError, match=r"whole\.safetensors"):
            read_header(file)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(BarError, match="not readable"):
            read_header(path)


SHAPES = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    max_size=5,
)


@given(layout=SHAPES, dtype=st.sampled_from(["float32", "bfloat16", "float16"]), seed=st.integers(0, 99))
def test_what_is_written_is_what_the_library_reads(tmp_path_factory, layout, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator).to(getattr(torch, dtype))
        for name, shape in layout.items()
    }
    file = tmp_path_factory.mktemp("io") / "x.safetensors"
    write_file(file, layout, dtype, ((name, [tensor]) for name, tensor in tensors.items()))
    header = read_header(file)
    assert {name: (given, shape) for name, (given, shape, _) in header.items()} == {
        n: (dtype, s) for n, s in layout.items()
    }
    for name, (_, shape, offset) in header.items():
        for size in (1, 64, 1 << 20):
            assert torch.equal(torch.cat(list(read_blocks(file, dtype, shape, offset, size))), tensors[name])
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert set(opened.keys()) == set(layout)
        for name, tensor in tensors.items():
            assert opened.get_tensor(name).dtype == tensor.dtype
            assert torch.equal(opened.get_tensor(name), tensor)


def test_bytes_are_row_major_whatever_the_strides():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert bytes(tensor_bytes(tensor.t())) == tensor.t().contiguous().numpy().tobytes()


def test_the_writer_asserts_its_caller_keeps_the_plan(tmp_path):
    for n, tensors in enumerate(({"b": torch.ones(2)}, {"a": torch.ones(3)}, {"a": torch.ones(2).half()})):
        with pytest.raises(AssertionError, match="expects"):
            write_file(
                tmp_path / f"{n}",
                {"a": (2,)},
                "float32",
                ((name, [tensor]) for name, tensor in tensors.items()),
            )
    with pytest.raises(ValueError, match="shorter"):
        write_file(tmp_path / "short", {"a": (2,), "b": (2,)}, "float32", {"a": [torch.ones(2)]}.items())
