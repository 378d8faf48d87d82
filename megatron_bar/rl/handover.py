"""The tensors that train, on their way to the engines beside the trainer.

They lie in a safetensors file without a name, in memory that the trainer and every engine on its machine map
(memfd_create(2)): written once a round by one copy, read where they are, and gone with the last process that
has it open. For engines on another machine it is a file in a folder that both see, a new one every round,
since what another machine has cached of the old one may be stale. What is frozen does not travel: the engines
read it from the folder that the stage starts from.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from megatron_bar.errors import BarError, writing
from megatron_bar.models.build import LanguageModel
from megatron_bar.models.shards import whole_tensors
from megatron_bar.parallel.state import on_rank_zero
from megatron_bar.rl.cache_check import union
from megatron_bar.rl.engines.delivery import checksum
from megatron_bar.weights.hf_config import tensor_shapes
from megatron_bar.weights.safetensors_io import TORCH_DTYPES, file_header


class SharedFile:
    """A safetensors file of tensors of ``shapes`` that others may map; ``path``: None for one without a
    name."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: str, path: Path | None = None):
        header, size = file_header(shapes, dtype)
        start = 8 + len(header)
        self.named = path
        self.descriptor = (
            os.memfd_create("weights") if path is None else os.open(path, os.O_RDWR | os.O_CREAT)
        )
        os.ftruncate(self.descriptor, start + size)
        self._memory = mmap.mmap(self.descriptor, start + size)
        self._memory[:start] = len(header).to_bytes(8, "little") + header
        flat = torch.frombuffer(self._memory, dtype=TORCH_DTYPES[dtype], offset=start)
        counts = [torch.Size(shape).numel() for shape in shapes.values()]
        parts = flat.split(counts)
        self.tensors = {
            name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        """The file's content, by name."""

    @property
    def path(self) -> str:
        """The path by which another process of this user opens it."""
        return str(self.named or f"/proc/{os.getpid()}/fd/{self.descriptor}")

    def flush(self) -> None:
        """Brings a named file to where other machines see it."""
        if self.named is not None:
            self._memory.flush()

    def close(self) -> None:
        """Removes it; the memory is given back once nobody else has it open."""
        self.tensors.clear()
        os.close(self.descriptor)
        if self.named is not None:
            self.named.unlink(missing_ok=True)


class Handover:
    """What trains in ``model``, in a `SharedFile` on rank 0, in ``folder`` if one is named. Collective."""

    def __init__(self, model: LanguageModel, folder: Path | None):
        mine = [
            name for _, param, op in model.parameters_with_ops() if param.requires_grad for name in op.names
        ]
        trained = set(union(mine))
        own = {name: shape for name, shape in tensor_shapes(model.shape).items() if name in trained}
        self.model = model
        self.folder = folder
        self.file_name = model.shape.form.file_name
        self.shapes = {self.file_name(name): shape for name, shape in own.items()}
        self.names = list(own)
        """Tensors that train, in the folder's order."""
        self.file: SharedFile | None = None
        """On rank 0, the file as it was written last."""
        self.written = 0
        self.sums: dict[str, int] = {}
        """On rank 0, the checksum of each tensor as it was written last."""

    def _now(self) -> Iterator[tuple[str, Tensor]]:
        """The trainer's tensors as they are, on rank 0, by the names that they have in a folder. Collective:
        every rank goes through all of it."""
        whole = whole_tensors(self.model, self.names, owner=0)
        return ((self.file_name(name), tensor) for name, tensor in whole)

    def write(self) -> None:
        """Writes the tensors as they are into the file. Collective."""
        on_rank_zero(self._make_file)
        for name, tensor in self._now():
            self.file.tensors[name].copy_(tensor)
            self.sums[name] = checksum(self.file.tensors[name])
        if self.file is not None:
            self.file.flush()
        self.written += 1

    def _make_file(self) -> None:
        if self.folder is None and self.file is not None:  # in memory the same is written again
            return
        self.close()
        path = None
        if self.folder is not None:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"weights-{self.written}.safetensors"
        try:
            self.file = SharedFile(self.shapes, self.model.shape.dtype, path)
        except OSError as error:
            raise BarError(f"{path or 'shared memory'}: could not be made: {error.strerror}") from None

    def changed(self) -> list[str]:
        """Returns, on rank 0, the tensors that are others than when they were written last. Collective."""
        return [name for name, tensor in self._now() if checksum(tensor) != self.sums[name]]

    def close(self) -> None:
        """Removes the file."""
        if self.file is not None:
            self.file.close()
            self.file = None
