"""Counts on a CPU how often a host would wait for its GPU.

On a CPU every tensor lies on the host, so `Waits` follows what would lie on the device: what was made or
moved there by name (``device=``, ``.to(device)``), and all that is computed from it; ``tensor.device`` says
which side a tensor is on. A wait is an operation on such a tensor whose result the host must know before it
can go on: a number taken from it, a copy to the host, and operations whose result has as many elements as the
values say (``nonzero`` and what it is made of). Left out: uploads from memory that is not pinned, and what
waits inside a library's own code.
"""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST = torch.device("cpu", 0)
"""Device that tensors of the host are said to be on; the project's name for the device is without number."""
TORCH = str(Path(torch.__file__).parent)
aten = torch.ops.aten
SIZED_BY_VALUES = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
    aten.equal.default,
}
READ_BY_INDEX = {aten.index.Tensor}
WRITTEN_BY_INDEX = {aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
TO_HOST = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}
"""Methods that copy nothing on a CPU, and are not dispatched there."""


class Waits:
    """Counts within its block, by file and line: ``places``."""

    def __init__(self):
        self.places: Counter[str] = Counter()
        self.device: set[StorageWeakRef] = set()
        """Memory on the device. The references keep an address from being used twice."""
        self.modes = (_Operations(self), _Calls(self))

    def __enter__(self) -> "Waits":
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)

    def on_device(self, *values) -> bool:
        return any(
            StorageWeakRef(value.untyped_storage()) in self.device
            for value in tree_leaves(values)
            if isinstance(value, Tensor)
        )

    def put_on_device(self, values) -> None:
        tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
        self.device.update(StorageWeakRef(value.untyped_storage()) for value in tensors)

    def note(self) -> None:
        """Counts a wait at the innermost line that is not torch's."""
        frame = sys._getframe(1)
        while frame.f_code.co_filename.startswith(TORCH) or frame.f_code.co_filename == __file__:
            frame = frame.f_back
        self.places[f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"] += 1

    def copied(self, tensor: Tensor, *, to_host: bool) -> Tensor:
        """Returns what a copy to the other side is, where a CPU would make none."""
        copy = tensor.clone()
        reference = StorageWeakRef(copy.untyped_storage())
        if to_host:
            self.device.discard(reference)
        else:
            self.device.add(reference)
        return copy


class _Calls(TorchFunctionMode):
    """What is called from Python, where host and device still have names."""

    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        waits = self.waits
        if func == Tensor.device.__get__:
            return func(*args) if waits.on_device(args[0]) else HOST
        if func in TO_HOST or (func is Tensor.to and "cpu" in args):
            if not waits.on_device(args[0]):
                return func(*args, **kwargs)
            waits.note()
            return waits.copied(args[0], to_host=True) if func is Tensor.cpu else func(*args, **kwargs)
        result = func(*args, **kwargs)
        if func is Tensor.to:
            device = kwargs.get("device", next((x for x in args[1:] if isinstance(x, torch.device)), None))
            if device is None or waits.on_device(result) == (device != HOST):
                return result
            if device == HOST:
                waits.note()
            return waits.copied(result, to_host=device == HOST)
        if kwargs.get("device") not in (None, HOST):
            waits.put_on_device(result)
        return result


class _Operations(TorchDispatchMode):
    """Everything that is computed, the backward pass and the optimizer included."""

    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        waits = self.waits
        if not waits.on_device(args, kwargs):
            return func(*args, **kwargs)
        if func is aten.copy_.default:  # its target stays where it is
            if not waits.on_device(args[0]):
                waits.note()
            return func(*args, **kwargs)
        if func in SIZED_BY_VALUES or self._by_mask(func, args):
            waits.note()
        result = func(*args, **kwargs)
        waits.put_on_device(result)
        return result

    def _by_mask(self, func, args) -> bool:
        """Whether values are picked by a mask, whose places are looked up; one number of the host's is filled
        in without."""
        if func not in READ_BY_INDEX | WRITTEN_BY_INDEX or not any(
            x is not None and x.dtype == torch.bool for x in args[1]
        ):
            return False
        return func in READ_BY_INDEX or args[2].numel() > 1 or self.waits.on_device(args[2])
