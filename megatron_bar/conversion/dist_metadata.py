"""The description of a torch_dist checkpoint: ``.metadata``, a pickle, read without executing anything.

It says which part of which tensor lies at which bytes of which .distcp file (torch.distributed.checkpoint's
format). Every part must lie within its tensor and within a file of the folder.
"""

import math
import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from megatron_bar.conversion.opcodes import LONGEST, Made, Name, plain
from megatron_bar.errors import BarError
from megatron_bar.weights.regular import read_regular, require_inside

_TORCH = "torch.distributed.checkpoint."
_KNOWN = re.compile(
    r"torch\.distributed\.checkpoint\.metadata\.(Metadata|MetadataIndex|TensorProperties"
    r"|TensorStorageMetadata|BytesStorageMetadata|ChunkStorageMetadata|StorageMeta|_MEM_FORMAT_ENCODING)"
    r"|torch\.distributed\.checkpoint\.filesystem\._StorageInfo"
    r"|torch\.distributed\.checkpoint\.planner\.(SavePlan|WriteItem|WriteItemType|TensorWriteData)"
    r"|torch\.(Size|float32|bfloat16|float16)|torch\.serialization\._get_layout"
    r"|pathlib\.(_local\.)?PosixPath"
)
_OPTIMIZER = "optimizer."
"""Optimizer state may lie beside the weights, is never read, and has parts of its own kind."""
DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
_MOST_AXES = 8
_TANGLED = 256
"""Parts that are compared pair by pair; those of a tensor that is cut as trainers cut it need none of it."""
_TURNS = 64
"""Times that each part is looked at, on average."""

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class TensorPart:
    """A part of a tensor, and the bytes of a file where it lies."""

    offsets: Numbers
    sizes: Numbers
    file: Path
    start: int
    length: int


@dataclass(frozen=True)
class Described:
    """A tensor as it is described; its parts fill it, side by side."""

    dtype: torch.dtype
    size: Numbers
    parts: list[TensorPart]


def read_metadata(folder: Path) -> dict[str, Described]:
    """Returns the weights of a checkpoint by key, and where in the folder's files they lie.

    Raises where ``.metadata`` contains anything but descriptions of tensors; nothing in it is executed.
    """
    path = folder / ".metadata"
    require_inside(path)
    try:
        metadata = _state(plain(read_regular(path, LONGEST), _KNOWN), "metadata.Metadata")
        places = _places(folder, metadata["storage_data"])
        tensors = {}
        for key, known in _dict(metadata["state_dict_metadata"]).items():
            if not isinstance(key, str):
                raise BarError(f"expected a tensor's key, got a {type(key).__name__}")
            if _is(known, "metadata.TensorStorageMetadata") and not key.startswith(_OPTIMIZER):
                tensors[key] = _described(key, known.state, places)
    except FileNotFoundError:
        raise BarError(f"{path}: not found; expected a checkpoint in Megatron's torch_dist format") from None
    except OSError as error:
        raise BarError(f"{path}: not readable: {error.strerror}") from None
    except (BarError, KeyError, TypeError) as error:
        raise BarError(f"{path}: refused: {f'no {error}' if type(error) is KeyError else error}") from None
    return tensors


def _is(value, kind: str) -> bool:
    return isinstance(value, Made) and value.by == f"{_TORCH}{kind}"


def _state(value, kind: str) -> dict:
    """Returns the fields of an object of torch's class ``kind``."""
    if not _is(value, kind):
        got = value.by if isinstance(value, Made) else type(value).__name__
        raise BarError(f"expected a {_TORCH}{kind}, got {got:.100}")
    return _dict(value.state)


def _dict(value) -> dict:
    if not isinstance(value, dict):
        raise BarError(f"expected fields, got a {type(value).__name__}")
    return value


def _numbers(key: str, value) -> Numbers:
    """Returns what a torch.Size is of."""
    numbers = value.given[0] if isinstance(value, Made) and value.by == "torch.Size" and value.given else None
    few = isinstance(numbers, tuple) and len(numbers) <= _MOST_AXES
    if not few or not all(type(n) is int and -(2**63) < n < 2**63 for n in numbers):
        raise BarError(f"tensor {key!r:.200}: expected sizes and offsets of tensors, got other values")
    return numbers


def _places(folder: Path, storage) -> dict[tuple[str, str], tuple[Path, int, int]]:
    """Returns file, start and length of every part, by key and offsets; only those of tensors have offsets.

    Offsets are spelled: tuples of numbers can be chosen so that all have one hash, texts cannot."""
    sizes: dict[str, int] = {}
    places = {}
    for index, place in _dict(storage).items():
        at = _state(index, "metadata.MetadataIndex")
        found = _state(place, "filesystem._StorageInfo")
        key, name, start, length = at["fqn"], found["relative_path"], found["offset"], found["length"]
        if not isinstance(key, str) or type(start) is not int or type(length) is not int:
            raise BarError("expected a tensor's key and the place of its bytes, got other values")
        if not isinstance(name, str) or not re.fullmatch(r"\w+\.distcp", name):
            raise BarError(f"{key!r:.200}: expected in a .distcp file of this folder, got {name!r:.200}")
        file = folder / name
        if name not in sizes:
            if not file.is_file():
                raise BarError(f"{key!r:.200} expected in {name}, got no such file")
            require_inside(file)
            sizes[name] = file.stat().st_size
        if start < 0 or length <= 0 or start + length >= 2**63:
            got = (
                f"{length:.0e} from {start:.0e}"
                if max(abs(start), abs(length)) > 2**62
                else f"{length} from {start}"
            )
            raise BarError(f"{key!r:.200} expected at some bytes of {name}, got {got}")
        if start + length > sizes[name]:
            raise BarError(
                f"{name} is truncated: {key!r:.200} expected up to byte {start + length}, got {sizes[name]}"
            )
        if found.get("transform_descriptors"):
            raise BarError(f"{key!r:.200} expected as torch.save writes it, got it transformed")
        offsets = at.get("offset")
        places[key, repr(() if offsets is None else _numbers(key, offsets))] = (file, start, length)
    return places


def _described(key: str, state, places: dict) -> Described:
    """Returns a tensor whose parts lie within it, side by side, fill it, and are in the files."""
    state = _dict(state)
    properties = state["properties"]
    dtype = properties.state[0] if _is(properties, "metadata.TensorProperties") and properties.state else None
    if not isinstance(dtype, Name) or dtype.text not in DTYPES:
        got = dtype.text if isinstance(dtype, Name) else "none"
        known = ", ".join(DTYPES)
        raise BarError(
            f"tensor {key!r:.200}: expected properties with a dtype out of {known}, got {got:.100}"
        )
    size = _numbers(key, state["size"])
    if not isinstance(state["chunks"], list):
        raise BarError(f"tensor {key!r:.200}: expected a list of parts, got another value")
    parts = []
    for chunk in state["chunks"]:
        chunk = _state(chunk, "metadata.ChunkStorageMetadata")
        offsets, sizes = _numbers(key, chunk["offsets"]), _numbers(key, chunk["sizes"])
        box = [(o, o + s) for o, s in zip(offsets, sizes, strict=False)]
        inside = len(offsets) == len(sizes) == len(size)
        if not inside or not all(0 <= a < b <= n for (a, b), n in zip(box, size, strict=True)):
            raise BarError(
                f"tensor {key!r:.200}: expected parts within {list(size)!r:.200}, got one at {box!r:.200}"
            )
        parts.append(TensorPart(offsets, sizes, *places.get((key, repr(offsets)), (None, 0, 0))))
    found = sum(math.prod(part.sizes) for part in parts)
    if found != math.prod(size):
        raise BarError(f"tensor {key!r:.200}: expected {math.prod(size)} values, got {found}")
    _require_side_by_side(key, parts)
    for part in parts:
        if part.file is None:
            at = f"{part.offsets!r:.200}"
            raise BarError(f"tensor {key!r:.200}: expected the bytes of its part at {at}, got no place")
    return Described(DTYPES[dtype.text], size, parts)


def _require_side_by_side(key: str, parts: list[TensorPart]) -> None:
    """Raises where two parts overlap. They are parted by cuts right through, first along one axis, then along
    others; only what no cut parts is compared."""
    groups = [parts]
    left = _TURNS * len(parts)
    while groups:
        group = groups.pop()
        if len(group) == 1:
            continue
        left -= len(group)
        for axis in range(len(group[0].sizes)) if left >= 0 else ():
            if len(cut := _cut(group, axis)) > 1:
                groups += cut
                break
        else:
            if len(group) > _TANGLED or left < 0:
                raise BarError(
                    f"tensor {key!r:.200}: expected parts that cuts leave, got {len(group)} others"
                )
            for one, other in combinations(group, 2):
                if _overlap(one, other):
                    at = f"{one.offsets!r:.200} and {other.offsets!r:.200}"
                    raise BarError(f"tensor {key!r:.200}: expected parts side by side, got those at {at}")


def _cut(parts: list[TensorPart], axis: int) -> list[list[TensorPart]]:
    groups: list[list[TensorPart]] = []
    end = -1
    for part in sorted(parts, key=lambda part: part.offsets[axis]):
        if part.offsets[axis] >= end:
            groups.append([])
        groups[-1].append(part)
        end = max(end, part.offsets[axis] + part.sizes[axis])
    return groups


def _overlap(one: TensorPart, other: TensorPart) -> bool:
    axes = zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    return all(a < c + d and c < a + b for a, b, c, d in axes)
