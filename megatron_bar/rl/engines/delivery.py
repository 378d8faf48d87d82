"""The tensors that a trainer hands to an engine: a safetensors file in memory, and a checksum of each."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

MASK = 2**64 - 1


def checksum(tensor: Tensor) -> int:
    """Returns the exclusive or of a tensor's bytes, taken as 64-bit words: any one bit that changes shows."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    whole = len(flat) // 8 * 8
    words = torch.hash_tensor(flat[:whole].view(torch.int64)).view(torch.int64).item() if whole else 0
    return (words ^ int.from_bytes(bytes(flat[whole:].tolist()), "little")) & MASK


def read(path: str, sums: dict[str, int]) -> dict[str, Tensor]:
    """Returns the tensors of the file at ``path``, which stay in it; raises with the name of one that is not
    as sent.

    ``sums``: the checksum of each tensor that was sent.
    """
    with safe_open(path, "pt") as file:
        arrived = {name: file.get_tensor(name) for name in file.keys()}
    if apart := sorted(arrived.keys() ^ sums.keys()):
        raise ValueError(
            f"tensor {apart[0]}: expected {len(sums)} tensors as they were sent, got {len(arrived)}"
        )
    for name, tensor in arrived.items():
        if checksum(tensor) != sums[name]:
            raise ValueError(f"tensor {name}: expected the checksum {sums[name]:x}, got {checksum(tensor):x}")
    return arrived


def files_of(folder: str) -> dict[str, str]:
    """Returns which file of a Hugging Face folder holds each tensor."""
    held = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            held |= dict.fromkeys(file.keys(), str(path))
    return held


def with_others(
    arrived: dict[str, Tensor], folder: str, wanted: Callable[[str], bool] = lambda name: True
) -> Iterable[tuple[str, Tensor]]:
    """Yields the tensors that arrived, and from ``folder`` the ``wanted`` ones of those that did not."""
    yield from arrived.items()
    for name, path in files_of(folder).items():
        if name not in arrived and wanted(name):
            with safe_open(path, "pt") as file:
                yield name, file.get_tensor(name)
