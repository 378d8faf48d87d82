"""BLAKE3 hashes of tensors and folders, and the two that BAR needs: of the anchor and of the domain expert.

A folder is hashed by units: every tensor is one, and every ROW of a router, because row 0 belongs to the anchor and the others
to the domain experts. A hash covers the unit's name, dtype, shape and bytes, never how the tensors are split into files.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence

import torch
from blake3 import blake3

from megatron_bar.weights.folder import Folder, Progress, silent
from megatron_bar.weights.groups import ParamGroup, classify
from megatron_bar.weights.safetensors_io import tensor_bytes

Units = dict[str, str]
"""Unit -> hash. A unit is a tensor name, or `name[row]` for a router."""

_ROUTER_ROW = re.compile(r"(.+)\[(\d+)\]")


def hash_tensor(name: str, dtype: str, shape: Sequence[int], chunks: Iterable[torch.Tensor]) -> str:
    digest = blake3(json.dumps([name, dtype, list(shape)]).encode(), max_threads=blake3.AUTO)
    for chunk in chunks:
        digest.update(tensor_bytes(chunk))
    return digest.hexdigest()


def tensor_hash(folder: Folder, name: str) -> str:
    return hash_tensor(name, folder.dtype, folder.tensors[name].shape, folder.chunks(name))


def hash_units(folder: Folder, *, finite: bool = False, progress: Progress = silent) -> Units:
    """One pass over the folder; ``finite`` checks the values in the same pass."""
    units = {}
    with progress(f"hashing {folder.path.name}", folder.nbytes) as advance:
        for name, info in folder.tensors.items():
            chunks = folder.chunks(name, finite=finite)
            if classify(name) is ParamGroup.ROUTER:
                for n, row in enumerate(row for chunk in chunks for row in chunk):
                    units[f"{name}[{n}]"] = hash_tensor(f"{name}[{n}]", folder.dtype, row.shape, [row])
            else:
                units[name] = hash_tensor(name, folder.dtype, info.shape, chunks)
            advance(info.nbytes)
    return units


def is_domain(unit: str) -> bool:
    """Whether the unit belongs to an expert >= 1: its FFN or its router row."""
    row = _ROUTER_ROW.fullmatch(unit)
    return row[2] != "0" if row else classify(unit) is ParamGroup.DOMAIN_EXPERT


def is_anchors_own(unit: str) -> bool:
    """Whether the unit belongs to expert 0: its FFN or its router row. What neither this nor `is_domain` holds is shared."""
    row = _ROUTER_ROW.fullmatch(unit)
    return row[2] == "0" if row else classify(unit) is ParamGroup.ANCHOR_EXPERT


def combine(units: Units, keep: Callable[[str], bool] = lambda unit: True) -> str:
    """One hash of many units."""
    return blake3("\n".join(f"{unit} {digest}" for unit, digest in sorted(units.items()) if keep(unit)).encode()).hexdigest()


def folder_hash(units: Units) -> str:
    return combine(units)


def anchor_hash(units: Units) -> str:
    """What all experts of one branch share; the same for two branches that differ only in the domain expert's start."""
    return combine(units, lambda unit: not is_domain(unit))


def domain_hash(units: Units) -> str:
    return combine(units, is_domain)
