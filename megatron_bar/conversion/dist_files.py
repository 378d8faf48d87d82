"""The files of a torch_dist checkpoint, read and written tensor by tensor, in one process without a model.

Format: torch.distributed.checkpoint as megatron-core 0.19.2 uses it: a part of a tensor is an item that
torch.save wrote into a .distcp file (dist_metadata.py says where). Its pickle is not unpickled (opcodes.py),
its values are a view of the mapped file. torch's writer is not used: it holds all tensors that it has written
until the end. Left out: compressed items, and optimizer state, which is left alone. Like torch and Megatron,
reading ignores the CRC of an item's values.
"""

import json
import math
import mmap
import os
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_bar.conversion.dist_items import values_in
from megatron_bar.conversion.dist_metadata import TensorPart, read_metadata
from megatron_bar.conversion.ops import GateUp, VocabularyRows, WeightOp, Whole
from megatron_bar.conversion.parameters import DTYPES, weight_ops
from megatron_bar.errors import BarError
from megatron_bar.weights.folder import blocks, fingerprint, is_finite
from megatron_bar.weights.hf_config import ModelConfig, tensor_shapes

Items = dict[str, list[int]]
"""Items of one data file: where that of each key begins, and how many bytes it takes."""
_COMMON = "common_state/shard_0_1"
"""Megatron's key of what is no tensor: in a checkpoint of weights, an empty dictionary."""


def checkpoint_ops(config: ModelConfig) -> dict[str, WeightOp]:
    """Returns how the tensor of every key is made of the folder's tensors; the one place that says so.

    Keys are the names of the whole model's parameters, but for two things: gate and up lie apart (a stacked
    parameter is cut differently on every layout), and an expert has its global number under
    ``experts.experts``.
    """
    ops: dict[str, WeightOp] = {}
    for name, op in weight_ops(config).items():
        key = name.replace(".local_experts.", ".experts.")
        ops |= {f"{key}_w": Whole(op.gate), f"{key}_v": Whole(op.up)} if isinstance(op, GateUp) else {key: op}
    assert sorted(name for op in ops.values() for name in op.names) == sorted(tensor_shapes(config))
    return ops


def require_dtype(config: ModelConfig, path: Path) -> None:
    if config.dtype not in DTYPES:
        raise BarError(f"{path}: dtype expected one of {', '.join(DTYPES)}, got {config.dtype!r}")


class Checkpoint:
    """The weights of a folder, checked when it is opened and read lazily: tensors of a single part are views
    of mapped files."""

    def __init__(self, folder: Path, config: ModelConfig):
        self.folder = Path(folder)
        self.config = config
        require_dtype(config, self.folder)
        self.tensors = read_metadata(self.folder)
        if config.least_tensors > len(self.tensors):  # before all their names are made
            raise BarError(
                f"{self.folder}/.metadata: another model's checkpoint: expected {config.layers_in_words}, "
                f"got {len(self.tensors)} tensors"
            )
        self._ops = checkpoint_ops(config)
        self._keys = {name: key for key, op in self._ops.items() for name in op.names}
        self._maps: dict[str, mmap.mmap] = {}
        self._joined: tuple[str, dict[str, Tensor]] = ("", {})
        self._compare()

    def fingerprint(self) -> list:
        return [str(self.folder.resolve()), *fingerprint(self.folder.iterdir())]

    def _compare(self) -> None:
        """Raises unless it has the model's tensors in the model's shapes and dtype, and no other."""
        path = self.folder / ".metadata"
        shapes = checkpoint_shapes(self.config)
        if missing := sorted(self._ops.keys() - self.tensors.keys()):
            raise BarError(
                f"{path}: another model's checkpoint: expected tensor {missing[0]!r}, got no such tensor"
            )
        if surplus := sorted(self.tensors.keys() - self._ops.keys()):
            raise BarError(f"{path}: another model's checkpoint: expected no tensor {surplus[0]!r}, got one")
        for key, op in self._ops.items():
            expected = (list(shapes[key]), DTYPES[self.config.dtype])
            found = (list(self.tensors[key].size), self.tensors[key].dtype)
            padding = found[0][0] - self.config.vocab_size if found[0] else -1
            if isinstance(op, VocabularyRows) and 0 <= padding < op.unit * self.config.num_kv_heads:
                # Padded for another tensor parallelism, at most one rank per key/value head.
                expected[0][0] = found[0][0]
            if found != expected:
                raise BarError(
                    f"{path}: another model's checkpoint: tensor {key!r}: expected {expected}, got {found}"
                )

    def read(self, name: str) -> Tensor:
        """Returns the Hugging Face tensor; the parts of a fused one are kept until another is asked for."""
        key = self._keys[name]
        if self._joined[0] != key:
            self._joined = (key, self._ops[key].join([self._whole(key)]))
        return self._joined[1][name]

    def blocks(self, name: str, *, finite: bool = True) -> Iterator[Tensor]:
        """Yields the Hugging Face tensor by blocks of rows; ``finite`` refuses NaN and infinity."""
        for block in blocks(self.read(name)):
            if finite and not is_finite(block):
                raise BarError(f"{self.folder}: tensor {name!r}: expected finite values, got NaN or infinity")
            yield block

    def _whole(self, key: str) -> Tensor:
        known = self.tensors[key]
        if len(known.parts) == 1:
            return self._part(key, known.parts[0], known.dtype)
        whole = torch.empty(known.size, dtype=known.dtype)
        for part in known.parts:
            there = tuple(slice(o, o + s) for o, s in zip(part.offsets, part.sizes, strict=True))
            whole[there] = self._part(key, part, known.dtype)
        return whole

    def _part(self, key: str, part: TensorPart, dtype: torch.dtype) -> Tensor:
        try:
            with part.file.open("rb") as file:
                start = values_in(file, part, dtype)
            flat = torch.frombuffer(
                self._map(part.file.name), dtype=dtype, count=math.prod(part.sizes), offset=part.start + start
            )
        except (BarError, OSError, ValueError) as error:
            raise BarError(f"{part.file}: tensor {key!r:.200} could not be read: {error}") from None
        return flat.view(part.sizes)

    def _map(self, name: str) -> mmap.mmap:
        if name not in self._maps:
            with (self.folder / name).open("rb") as file:
                # A private copy on write: torch wants memory that could be written to; nobody does.
                self._maps[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[name]


def checkpoint_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Returns the shape of every key's tensor as written here: whole, with the padding of one rank."""
    shapes = tensor_shapes(config)

    def empty(name: str) -> Tensor:
        return torch.empty(shapes[name], device="meta")

    return {key: op.cut(empty, 0, 1).shape for key, op in checkpoint_ops(config).items()}


def data_file(k: int) -> str:
    return f"__0_{k}.distcp"


def write_items(path: Path, tensors: Iterable[tuple[str, Tensor]], *, common: bool) -> Items:
    """Writes and fsyncs a data file of (key, tensor) pairs, one in memory at a time; ``common``: and of
    Megatron's common state."""
    items: Items = {}
    try:
        with path.open("wb") as file:

            def add(key: str, item) -> None:
                start = file.tell()
                torch.save(item, file)
                items[key] = [start, file.tell() - start]

            if common:
                add(_COMMON, [{}])
            for key, tensor in tensors:
                # torch.save would write all that a view is a part of.
                add(key, tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where it cannot write
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise BarError(f"{path}: the checkpoint could not be written: {reason}") from None
    return items


def write_description(folder: Path, config: ModelConfig, files: dict[str, Items]) -> None:
    """Writes ``.metadata`` and what Megatron wants beside it, for the data files and the items of each."""
    known: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    shapes = checkpoint_shapes(config)
    properties = TensorProperties(dtype=DTYPES[config.dtype])
    for name, items in files.items():
        for key, (start, length) in items.items():
            if key == _COMMON:
                known[key] = BytesStorageMetadata()
                index = MetadataIndex(key)
            else:
                chunk = ChunkStorageMetadata(offsets=torch.Size([0] * len(shapes[key])), sizes=shapes[key])
                known[key] = TensorStorageMetadata(properties=properties, size=shapes[key], chunks=[chunk])
                index = MetadataIndex(key, chunk.offsets)
            places[index] = _StorageInfo(name, start, length)
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(state_dict_metadata=known, storage_data=places)))
    backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(backend))
