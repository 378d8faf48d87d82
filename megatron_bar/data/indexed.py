"""Token files: Megatron's .bin/.idx, checked before a token is believed, memory-mapped, never unpickled.

    .idx   magic 9 bytes, version u64 = 1, dtype code u8, sequences u64, documents u64 (one more than there
           are), sequence lengths i32, byte offsets i64, first sequence of each document i64 and the end
    .bin   the ids, end to end
    .learn (ours, beside them; only where not every token is learnt) one byte a token: 1 where the model
           learns to produce it

Source of the format: megatron/core/datasets/indexed_dataset.py, whose own reader opens a .bin that is too
short without a word.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from blake3 import blake3

from megatron_bar.errors import BarError

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_CODES = {4: np.dtype(np.int32), 8: np.dtype(np.uint16), 5: np.dtype(np.int64)}
"""Dtypes that ids are stored in, by Megatron's code."""
_HEADER = struct.Struct("<9sQBQQ")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Documents end to end, in memory or mapped from a file."""

    ids: np.ndarray
    """``[tokens]`` integers."""
    starts: np.ndarray
    """``[documents + 1]`` int64: where each document begins, and the end of the last."""
    learn: np.ndarray | None = None
    """``[tokens]`` bool: which tokens the model learns to produce; None: all."""
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    """``[tokens]`` fp32 each: further values of a token, such as its log-probability when it was sampled."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    @property
    def fingerprint(self) -> str:
        """Hash of the documents' lengths, the mask, and the ids up to the first and last million."""
        digest = blake3(self.starts.tobytes())
        for array in (self.ids[:1_000_000], self.ids[-1_000_000:], self.learn):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def learnt(self) -> int:
        """Tokens that the model learns to produce."""
        return len(self.ids) if self.learn is None else int(np.count_nonzero(self.learn))


Document = tuple[list[int], list[bool]]
"""Token ids, and for each whether the model learns to produce it."""


def in_memory(documents: Iterable[Document], **extras: list[list[float]]) -> Tokens:
    """Puts documents end to end. ``extras``: per document one value per token."""
    documents = list(documents)

    def flat(parts: list, dtype) -> np.ndarray:
        return np.concatenate([np.asarray(part, dtype=dtype) for part in parts] or [np.empty(0, dtype)])

    return Tokens(
        ids=flat([ids for ids, _ in documents], np.int32),
        starts=np.cumsum([0, *(len(ids) for ids, _ in documents)], dtype=np.int64),
        learn=flat([learn for _, learn in documents], np.bool_),
        extras={name: flat(values, np.float32) for name, values in extras.items()},
    )


def id_dtype(vocab_size: int) -> np.dtype:
    """Returns the dtype in which Megatron stores a vocabulary of this size."""
    return np.dtype(np.uint16 if vocab_size < 65_500 else np.int32)


def read_indexed(prefix: Path | str, *, vocab_size: int | None = None) -> Tokens:
    """Maps ``prefix``.bin, .idx and, if there is one, .learn; checks that all ids are below
    ``vocab_size``."""
    bin_path, idx_path, learn_path = (_beside(prefix, suffix) for suffix in (".bin", ".idx", ".learn"))
    for path in (idx_path, bin_path):
        if not path.is_file():
            raise BarError(
                f"{path}: not found; expected token files {Path(prefix).name}.bin and .idx, got no such file"
            )
    dtype, lengths, documents = _read_index(idx_path)
    if (lengths < 0).any():
        first = int(np.argmax(lengths < 0))
        raise BarError(
            f"{idx_path}: sequence {first} expected with a length of at least 0, got {lengths[first]}"
        )
    ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    wanted = int(ends[-1]) * dtype.itemsize
    found = bin_path.stat().st_size
    if wanted != found:
        raise BarError(f"{bin_path}: expected {wanted:,} bytes, as its index says, got {found:,}")
    ids = np.memmap(bin_path, dtype, "r") if found else np.empty(0, dtype)
    if vocab_size is not None:
        _check_ids(bin_path, ids, vocab_size)
    learn = _read_learn(learn_path, len(ids)) if learn_path.is_file() else None
    return Tokens(ids=ids, starts=ends[documents], learn=learn)


def _read_learn(path: Path, tokens: int) -> np.ndarray:
    found = path.stat().st_size
    if found != tokens:
        raise BarError(f"{path}: expected one byte for each of {tokens:,} tokens, got {found:,}")
    return np.memmap(path, np.bool_, "r") if tokens else np.empty(0, bool)


def _read_index(path: Path) -> tuple[np.dtype, np.ndarray, np.ndarray]:
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            start = _MAGIC[:7].decode()
            raise BarError(
                f"{path}: not an index of Megatron's: expected {_HEADER.size} bytes from {start} on, "
                f"got {header!r}"
            )
        _, version, code, sequences, documents = _HEADER.unpack(header)
        if version != _VERSION:
            raise BarError(f"{path}: expected index version {_VERSION}, got {version}")
        if code not in _CODES:
            raise BarError(
                f"{path}: expected ids of {', '.join(str(t) for t in _CODES.values())}, got dtype code {code}"
            )
        # Python integers: what a broken header multiplies to must not wrap around.
        wanted = _HEADER.size + 12 * sequences + 8 * documents
        if size not in (wanted, wanted + sequences):  # a byte a sequence more where it has modes
            counts = f"{sequences:,} sequences and {documents:,} documents"
            raise BarError(f"{path}: expected {wanted:,} bytes for {counts}, got {size:,}")
        lengths = np.fromfile(file, np.int32, sequences)
        offsets = np.fromfile(file, np.int64, sequences)
        starts = np.fromfile(file, np.int64, documents)
    _check_index(path, lengths, offsets, starts, _CODES[code].itemsize)
    return _CODES[code], lengths, starts


def _check_index(path: Path, lengths, offsets, starts, itemsize: int) -> None:
    """Raises unless sequences lie end to end and documents consist of all of them."""
    sequences = len(lengths)
    packed = np.concatenate(([0], np.cumsum(lengths[:-1], dtype=np.int64)))[:sequences] * itemsize
    if not np.array_equal(offsets, packed):
        first = int(np.argmax(offsets != packed))
        end = f"byte {packed[first]:,}, where the one before it ends"
        raise BarError(f"{path}: sequence {first} expected to begin at {end}, got {offsets[first]:,}")
    whole = len(starts) > 0 and starts[0] == 0 and starts[-1] == sequences and (np.diff(starts) >= 0).all()
    if not whole:
        wanted = f"to begin at sequence 0, to rise and to end at {sequences:,}"
        got = np.array2string(starts, threshold=8, max_line_width=200)
        raise BarError(f"{path}: documents expected {wanted}, got {got}")


def _check_ids(path: Path, ids: np.ndarray, vocab_size: int) -> None:
    block = 1 << 24
    for start in range(0, len(ids), block):
        part = ids[start : start + block]
        if part.min() < 0 or part.max() >= vocab_size:
            at = start + int(np.flatnonzero((part < 0) | (part >= vocab_size))[0])
            raise BarError(
                f"{path}: token {at:,} expected within the vocabulary of {vocab_size:,}, got {int(ids[at])}"
            )


def write_index(path: Path, lengths: np.ndarray, dtype: np.dtype) -> None:
    """Writes the .idx of one sequence per document; the same bytes as Megatron's own builder writes."""
    code = next(code for code, known in _CODES.items() if known == dtype)
    count = len(lengths)
    offsets = np.concatenate(([0], np.cumsum(lengths[:-1], dtype=np.int64)))[:count] * dtype.itemsize
    with path.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, _VERSION, code, count, count + 1))
        lengths.astype(np.int32).tofile(file)
        offsets.astype(np.int64).tofile(file)
        np.arange(count + 1, dtype=np.int64).tofile(file)


def _beside(prefix: Path | str, suffix: str) -> Path:
    return Path(f"{prefix}{suffix}")
