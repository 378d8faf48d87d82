"""Reading a folder against its receipts: the hashes of every tensor in its manifest.

Tensors are hashed as they are read, in the pass that uses them, so proving a folder costs no pass of its own.
"""

from collections.abc import Iterator

import torch

from megatron_bar.errors import BarError
from megatron_bar.weights.folder import Folder, Progress, silent
from megatron_bar.weights.hashes import Units, hash_units, read_hashed, require_units, units_of
from megatron_bar.weights.manifest import MANIFEST, Manifest, has_manifest, read_manifest


def receipts(folder: Folder, manifest: Manifest) -> Units:
    """Returns the manifest's receipts, which must name each tensor of the folder and no other."""
    path = folder.path / MANIFEST
    expected = [unit for name, i in folder.tensors.items() for unit in units_of(name, i.shape)]
    if missing := [unit for unit in expected if unit not in manifest.tensors]:
        raise BarError(
            f"{path}: tensors expected the hash of {missing[0]!r}, got none ({len(missing)} are missing)"
        )
    if len(expected) < len(manifest.tensors):
        raise BarError(
            f"{path}: tensors expected only what config.json has, "
            f"got {min(manifest.tensors.keys() - expected)!r}"
        )
    return manifest.tensors


class Proven:
    """A folder whose tensors are hashed as they are read, and compared with its receipts if it has any.

    ``finite``: their values are checked too; NaN and infinity are refused.
    """

    def __init__(self, folder: Folder, recorded: Units | None, *, finite: bool = True):
        self.folder = folder
        self.recorded = recorded
        self.finite = finite
        self._seen: Units = {}

    @classmethod
    def open(cls, folder: Folder, *, finite: bool = True) -> "Proven":
        recorded = receipts(folder, read_manifest(folder.path)) if has_manifest(folder.path) else None
        return cls(folder, recorded, finite=finite)

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Yields the tensor by blocks of rows; raises for NaN or infinity, and at the end if it was
        changed."""
        yield from read_hashed(self.folder, name, self._seen, finite=self.finite)
        if self.recorded is not None:
            require_units(self.folder, name, self._seen, self.recorded, "its manifest was written")

    def whole(self, name: str) -> torch.Tensor:
        return torch.cat(list(self.blocks(name)))

    def units(self, progress: Progress = silent) -> Units:
        """Returns the hashes of the whole folder: recorded ones, else it reads what has not been read yet."""
        if self.recorded is not None:
            return self.recorded
        left = [n for n, info in self.folder.tensors.items() if units_of(n, info.shape)[0] not in self._seen]
        return self._seen | hash_units(self.folder, left, finite=self.finite, progress=progress)

    def prove(self, progress: Progress = silent) -> Units:
        """Reads everything."""
        with progress(f"checking {self.folder.path.name}", self.folder.nbytes) as advance:
            for name in self.folder.tensors:
                for block in self.blocks(name):
                    advance(block.nbytes)
        return self._seen
