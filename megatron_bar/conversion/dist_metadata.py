"""The description of a torch_dist checkpoint: ``.metadata``, a pickle, read without executing anything.

It says which part of which tensor lies at which bytes of which .distcp file (torch.distributed.checkpoint's
format). It passes an allow-list first, then every part must lie within its tensor and within a file of the
folder.
"""

import math
import pickle
import re
from itertools import combinations
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_bar.errors import BarError

Tensors = dict[str, TensorStorageMetadata]
Places = dict[MetadataIndex, _StorageInfo]

_OPTIMIZER = "optimizer."
"""Optimizer state may lie beside the weights, is never read, and has parts of its own kind."""
_ALLOWED = re.compile(
    r"torch\.distributed\.checkpoint\.metadata\.(Metadata|MetadataIndex|TensorProperties"
    r"|TensorStorageMetadata|BytesStorageMetadata|ChunkStorageMetadata|StorageMeta|_MEM_FORMAT_ENCODING)"
    r"|torch\.distributed\.checkpoint\.filesystem\._StorageInfo"
    r"|torch\.distributed\.checkpoint\.planner\.(SavePlan|WriteItem|WriteItemType|TensorWriteData)"
    r"|torch\.(Size|float32|bfloat16|float16)|torch\.serialization\._get_layout"
)


class _Restricted(pickle.Unpickler):
    def find_class(self, module, name):
        if not _ALLOWED.fullmatch(f"{module}.{name}"):
            raise BarError(
                f"it refers to {module}.{name}, which the description of a checkpoint has no use for"
            )
        return super().find_class(module, name)


def read_metadata(folder: Path) -> tuple[Tensors, Places]:
    """Returns the weights of a checkpoint by key, each whole, and where in the folder's files they lie.

    Raises where ``.metadata`` contains anything but descriptions of tensors; nothing in it is executed.
    """
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            metadata = _Restricted(file).load()
        if not isinstance(metadata, Metadata):
            raise BarError(f"expected the description of a checkpoint, got {type(metadata).__name__}")
        _check_places(folder, metadata.storage_data)
        tensors = {
            key: known
            for key, known in metadata.state_dict_metadata.items()
            if isinstance(known, TensorStorageMetadata)
        }
        for key, known in tensors.items():
            _check_chunks(key, known, metadata.storage_data)
    except FileNotFoundError:
        raise BarError(f"{path}: not found; expected a checkpoint in Megatron's torch_dist format") from None
    except Exception as error:  # noqa: BLE001  the objects of a hostile pickle may raise anything
        raise BarError(f"{path}: refused: {str(error) or type(error).__name__}") from None
    weights = {key: known for key, known in tensors.items() if not key.startswith(_OPTIMIZER)}
    return weights, metadata.storage_data


def _check_places(folder: Path, places: Places) -> None:
    for index, place in places.items():
        if not re.fullmatch(r"\w+\.distcp", place.relative_path):
            raise BarError(
                f"{index.fqn!r}: expected in a .distcp file of this folder, got {place.relative_path!r}"
            )
        file = folder / place.relative_path
        end = place.offset + place.length
        if not file.is_file():
            raise BarError(f"{index.fqn!r} expected in {file.name}, got no such file")
        if not 0 <= place.offset < end:
            raise BarError(
                f"{index.fqn!r} expected at some bytes of {file.name}, got {place.offset} to {end}"
            )
        if end > file.stat().st_size:
            raise BarError(
                f"{file.name} is truncated: {index.fqn!r} expected up to byte {end}, "
                f"got {file.stat().st_size}"
            )
        if getattr(place, "transform_descriptors", None):
            raise BarError(
                f"{index.fqn!r} expected as torch.save writes it, got {place.transform_descriptors}"
            )


def _check_chunks(key: str, known: TensorStorageMetadata, places: Places) -> None:
    """Raises unless the chunks lie within the tensor, side by side, fill it, and are in the files."""
    found = sum(math.prod(chunk.sizes) for chunk in known.chunks)
    if found != math.prod(known.size):
        raise BarError(f"tensor {key!r}: expected {math.prod(known.size)} values, got {found}")
    if key.startswith(_OPTIMIZER):
        return
    properties = known.properties
    if not isinstance(properties, TensorProperties) or not isinstance(properties.dtype, torch.dtype):
        raise BarError(f"tensor {key!r}: expected properties with a dtype, got {properties!r}")
    for numbers in (known.size, *(part for chunk in known.chunks for part in (chunk.offsets, chunk.sizes))):
        if not isinstance(numbers, torch.Size):
            raise BarError(f"tensor {key!r}: expected sizes and offsets of tensors, got {numbers!r}")
    boxes = [[(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True)] for chunk in known.chunks]
    for box in boxes:
        if not all(0 <= start < stop <= size for (start, stop), size in zip(box, known.size, strict=True)):
            raise BarError(f"tensor {key!r}: expected parts within {list(known.size)}, got one at {box}")
    for box, other in combinations(boxes, 2):
        if all(a < d and c < b for (a, b), (c, d) in zip(box, other, strict=True)):
            raise BarError(f"tensor {key!r}: expected parts side by side, got {box} and {other}")
    for chunk in known.chunks:
        if MetadataIndex(key, chunk.offsets) not in places:
            raise BarError(
                f"tensor {key!r}: expected the bytes of its part at {list(chunk.offsets)}, "
                "got no place of them"
            )
