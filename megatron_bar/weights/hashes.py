"""BLAKE3 hashes of tensors and folders, and the two that BAR needs: of the anchor and of the domain expert.

A folder is hashed by units: every tensor is one, and every ROW of a router, because row 0 belongs to the
anchor and the others to the domain experts. A unit's hash covers its dtype, shape and bytes, not its name, so
a copy under another expert's name has the same; the hash of a folder covers the names too. Never how the
tensors are split into files.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from blake3 import blake3

from megatron_bar.errors import BarError
from megatron_bar.weights.folder import Folder, Progress, silent
from megatron_bar.weights.groups import ParamGroup, classify
from megatron_bar.weights.hf_config import ModelConfig
from megatron_bar.weights.safetensors_io import tensor_bytes

Units = dict[str, str]
"""Unit -> hash. A unit is a tensor name, or `name[row]` for a router."""

_ROUTER_ROW = re.compile(r"(.+)\[(\d+)\]")


def units_of(name: str, shape: Sequence[int]) -> list[str]:
    return [f"{name}[{row}]" for row in range(shape[0])] if classify(name) is ParamGroup.ROUTER else [name]


def _begin(dtype: str, shape: Sequence[int]) -> blake3:
    return blake3(json.dumps([dtype, list(shape)]).encode(), max_threads=blake3.AUTO)


def hashed(
    name: str, dtype: str, shape: Sequence[int], blocks: Iterable[torch.Tensor], into: Units
) -> Iterator[torch.Tensor]:
    """Passes the tensor's blocks of rows on; once the last is taken, its hashes stand in ``into``."""
    if classify(name) is ParamGroup.ROUTER:
        row = 0
        for block in blocks:
            for values in block:
                into[f"{name}[{row}]"] = hash_tensor(dtype, values.shape, [values])
                row += 1
            yield block
        return
    digest = _begin(dtype, shape)
    for block in blocks:
        digest.update(tensor_bytes(block))
        yield block
    into[name] = digest.hexdigest()


def hash_tensor(dtype: str, shape: Sequence[int], blocks: Iterable[torch.Tensor]) -> str:
    digest = _begin(dtype, shape)
    for block in blocks:
        digest.update(tensor_bytes(block))
    return digest.hexdigest()


def read_hashed(folder: Folder, name: str, into: Units, *, finite: bool = False) -> Iterator[torch.Tensor]:
    """Yields the tensor by blocks of rows, like `Folder.chunks`; its hashes are then in ``into``."""
    return hashed(name, folder.dtype, folder.tensors[name].shape, folder.chunks(name, finite=finite), into)


def hash_units(
    folder: Folder, names: Iterable[str] | None = None, *, finite: bool = False, progress: Progress = silent
) -> Units:
    """Hashes the tensors ``names`` (None: all) in one pass; ``finite`` checks the values in the same pass."""
    units: Units = {}
    wanted = list(folder.tensors if names is None else names)
    nbytes = sum(folder.tensors[name].nbytes for name in wanted)
    with progress(f"hashing {folder.path.name}", nbytes) as advance:
        for name in wanted:
            for block in read_hashed(folder, name, units, finite=finite):
                advance(block.nbytes)
    return units


def require_units(folder: Folder, name: str, found: Units, recorded: Units, since: str) -> None:
    """Raises unless the tensor's hashes in ``found`` are those in ``recorded``."""
    for unit in units_of(name, folder.tensors[name].shape):
        if found[unit] != recorded.get(unit):
            raise BarError(
                f"{folder.tensors[name].file}: tensor {unit!r} changed since {since}: "
                f"expected hash {recorded.get(unit)}, got {found[unit]}"
            )


def is_domain(unit: str) -> bool:
    """Returns whether the unit belongs to an expert >= 1: its FFN or its router row."""
    row = _ROUTER_ROW.fullmatch(unit)
    return row[2] != "0" if row else classify(unit) is ParamGroup.DOMAIN_EXPERT


def is_anchors_own(unit: str) -> bool:
    """Returns whether the unit belongs to expert 0: its FFN or its router row. Units of neither this nor
    `is_domain` are shared."""
    row = _ROUTER_ROW.fullmatch(unit)
    return row[2] == "0" if row else classify(unit) is ParamGroup.ANCHOR_EXPERT


def combine(units: Units, keep: Callable[[str], bool] = lambda unit: True) -> str:
    """Returns one hash of many units."""
    return blake3(
        "\n".join(f"{unit} {digest}" for unit, digest in sorted(units.items()) if keep(unit)).encode()
    ).hexdigest()


def folder_hash(units: Units) -> str:
    return combine(units)


def anchor_hash(units: Units) -> str:
    """Returns the hash of what all experts of one branch share; the same for two branches that differ only in
    the domain expert's start."""
    return combine(units, lambda unit: not is_domain(unit))


def domain_hash(units: Units) -> str:
    return combine(units, is_domain)


def config_hash(config: ModelConfig) -> str:
    """Returns the hash of config.json as this project writes it."""
    return blake3(json.dumps(config.to_hf(), sort_keys=True).encode()).hexdigest()
