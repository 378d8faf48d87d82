"""The safetensors file format: a strict header reader and a streaming writer.

Format: https://github.com/huggingface/safetensors#format. The library itself reads the data (folder.py); it
accepts duplicate keys, so the header is read here. The writer takes blocks of rows: neither a shard nor a
tensor has to fit in memory. Left out: dtypes other than the three a model folder may have, and metadata
beyond {"format": "pt"}.
"""

import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch

from megatron_bar.errors import BarError
from megatron_bar.weights.json_file import loads, no_duplicates, why
from megatron_bar.weights.regular import open_regular

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CODES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_HEADER_LIMIT = 16 << 20
"""Bytes of a header: 160,000 tensors. The library takes 100 MB, of which parsing makes gigabytes."""
_MOST_AXES = 8

Header = dict[str, tuple[str, tuple[int, ...], int]]
"""Tensor name -> (dtype, shape, where in the file its data begin), in file order."""


def _is_size(value) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _parse_entry(path: Path, name: str, entry) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or {"dtype", "shape", "data_offsets"} != entry.keys():
        raise BarError(
            f"{path}: tensor {name!r}: expected dtype, shape and data_offsets in the header, "
            f"got {entry!r:.200}"
        )
    dtype = entry["dtype"]
    shape = entry["shape"]
    offsets = entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _CODES:
        raise BarError(
            f"{path}: tensor {name!r}: dtype expected one of {', '.join(_CODES)}, got {dtype!r:.200}"
        )
    few = isinstance(shape, list) and 1 <= len(shape) <= _MOST_AXES
    if not few or not all(map(_is_size, shape)) or 0 in shape:
        raise BarError(f"{path}: tensor {name!r}: shape expected a list of sizes, got {shape!r:.200}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise BarError(
            f"{path}: tensor {name!r}: data_offsets expected two byte offsets, got {offsets!r:.200}"
        )
    expected = math.prod(shape) * ITEMSIZE[_CODES[dtype]]
    if offsets[1] - offsets[0] != expected:
        raise BarError(
            f"{path}: tensor {name!r}: data_offsets expected {expected} bytes for {dtype} {shape}, "
            f"got {offsets!r}"
        )
    return _CODES[dtype], tuple(shape), *offsets


def _read_json(path: Path) -> tuple[dict, int]:
    """Returns the raw header and the number of data bytes that follow it."""
    try:
        size = path.stat().st_size
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise BarError(
                    f"{path}: not a whole safetensors file: expected at least {8 + length} bytes, got {size}"
                )
            raw = file.read(length)
    except OSError as error:
        raise BarError(f"{path}: not readable: {error.strerror}") from None
    try:
        header = loads(raw.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise BarError(f"{path}: malformed safetensors header: {why(error)}") from None
    if not isinstance(header, dict) or not raw.startswith(b"{"):  # the library takes no white space before it
        raise BarError(f"{path}: malformed safetensors header: expected a JSON object, got {raw[:20]!r}")
    return header, size - 8 - length


def read_header(path: Path) -> Header:
    """Returns dtype, shape and place by name; the data must lie gapless up to the file's last byte."""
    header, data_bytes = _read_json(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BarError(f"{path}: __metadata__ expected an object of strings, got {metadata!r:.200}")
    entries = {name: _parse_entry(path, name, entry) for name, entry in header.items()}
    position = 0
    for name, (_, _, start, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if start != position:
            raise BarError(
                f"{path}: tensor {name!r}: data expected at byte {position}, "
                f"got {start} (a gap or an overlap)"
            )
        if stop > data_bytes:
            raise BarError(
                f"{path}: truncated: tensor {name!r} expected up to data byte {stop}, "
                f"got {data_bytes} bytes of data"
            )
        position = stop
    if position != data_bytes:
        raise BarError(
            f"{path}: expected {position} bytes of data, got {data_bytes}: the last ones belong to no tensor"
        )
    data = path.stat().st_size - data_bytes
    return {name: (dtype, shape, data + start) for name, (dtype, shape, start, _) in entries.items()}


def read_blocks(
    path: Path, dtype: str, shape: tuple[int, ...], offset: int, block_bytes: int
) -> Iterator[torch.Tensor]:
    """Yields the tensor that begins at ``offset``, by blocks of rows that belong to the caller.

    Read, not mapped: to hash and to copy each byte once, page faults cost more than the copy into memory that
    is used again.
    """
    rows = max(1, block_bytes // max(1, math.prod(shape[1:]) * ITEMSIZE[dtype]))
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # the system reads twice as far ahead
        for start in range(0, shape[0], rows):
            block = torch.empty(min(rows, shape[0] - start), *shape[1:], dtype=TORCH_DTYPES[dtype])
            left = tensor_bytes(block)
            while left:
                count = file.readinto(left)
                if not count:
                    raise BarError(f"{path}: expected {len(left)} bytes more, got the end of the file")
                left = left[count:]
            yield block


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Returns the tensor's bytes as the file has them (row-major, little-endian), without a copy where it is
    contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())


class _Behind:
    """Writes what it is given, in order, in a thread a few blocks behind; raises what that raised."""

    LAG = 8

    def __init__(self, file: BinaryIO):
        self._file = file
        self._pending = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")

    def __enter__(self) -> "_Behind":
        return self

    def __exit__(self, *_) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __call__(self, data: memoryview | bytes) -> None:
        if len(self._pending) == self.LAG:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._file.write, data))

    def finish(self) -> None:
        while self._pending:
            self._pending.popleft().result()


Tensors = Iterable[tuple[str, Iterable[torch.Tensor]]]
"""Names, each with the tensor as blocks of rows in order: none has to be in memory whole."""


def write_file(path: Path, layout: dict[str, tuple[int, ...]], dtype: str, tensors: Tensors) -> None:
    """Writes and fsyncs a new file; ``tensors`` come in the order of ``layout``.

    A thread writes while the next blocks are made: writing is the system's work and hashing ours, so taking
    turns would only lose time.
    """
    header, data_bytes = file_header(layout, dtype)
    try:
        with path.open("xb") as file, _Behind(file) as write:
            write(len(header).to_bytes(8, "little") + header)
            for (name, shape), (given, blocks) in zip(layout.items(), tensors, strict=True):
                rows = 0
                for block in blocks:
                    found = (given, *block.shape[1:], block.dtype)
                    expected = (name, *shape[1:], TORCH_DTYPES[dtype])
                    assert found == expected, f"{path.name} expects {expected}, the caller gave {found}"
                    write(tensor_bytes(block))
                    rows += len(block)
                wrong = f"{path.name} expects {shape[0]} rows of {name}, the caller gave {rows}"
                assert rows == shape[0], wrong
            write.finish()
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        size = 8 + len(header) + data_bytes
        raise BarError(f"{path}: could not write {size} bytes: {error.strerror}") from None


def file_header(layout: dict[str, tuple[int, ...]], dtype: str) -> tuple[bytes, int]:
    """Returns the header of a file, and the bytes of the data that follow it."""
    codes = {name: code for code, name in _CODES.items()}
    header = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in layout.items():
        stop = position + math.prod(shape) * ITEMSIZE[dtype]
        header[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8), position  # the data begin aligned
