"""An item of a .distcp file: a tensor as torch.save writes it, an archive of a pickle and of values.

Format: torch/csrc/jit/serialization of torch 2 (a zip file whose members are stored as they are).
"""

import io
import math
import re
import struct
import zipfile
from typing import BinaryIO

import torch

from megatron_bar.conversion.dist_metadata import TensorPart
from megatron_bar.conversion.opcodes import Made, Name, Stored, plain
from megatron_bar.errors import BarError

_AROUND = 1 << 16
"""Bytes of an item besides its values: 1,300 in fact."""
_KNOWN = re.compile(r"torch\._utils\._rebuild_tensor_v2|torch\.\w+Storage|collections\.OrderedDict")
_STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.HalfStorage": torch.float16,
}


class _Item(io.RawIOBase):
    """The bytes of an item, as a file of its own."""

    def __init__(self, file: BinaryIO, part: TensorPart):
        self.file = file
        self.start, self.length, self.at = part.start, part.length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, to: int, whence: int = io.SEEK_SET) -> int:
        self.at = to + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence]
        if self.at < 0:
            raise OSError("seek before the beginning")
        return self.at

    def readinto(self, into: memoryview) -> int:
        self.file.seek(self.start + self.at)
        count = self.file.readinto(memoryview(into)[: max(0, self.length - self.at)])
        self.at += count
        return count


def values_in(file: BinaryIO, part: TensorPart, dtype: torch.dtype) -> int:
    """Returns where in the item of ``part`` the values begin; raises BarError unless it is a contiguous
    tensor of the part's sizes and of ``dtype``, whole."""
    nbytes = math.prod(part.sizes) * dtype.itemsize
    item = _Item(file, part)
    _require_few_members(item, part.length)
    try:
        with zipfile.ZipFile(item) as archive:
            members = {name.partition("/")[2]: archive.getinfo(name) for name in archive.namelist()}
            pickle = members["data.pkl"]
            if pickle.compress_type != zipfile.ZIP_STORED or pickle.file_size > _AROUND:
                raise BarError("expected a small pickle, stored as it is")
            made = plain(archive.read(pickle), _KNOWN)
        storage, offset, size, stride = _tensor(made)
        _, kind, name, *_ = storage.key
        values = members[f"data/{name}"]
        found = (_STORAGES.get(kind.text), size)
        item.seek(values.header_offset)
        header = item.read(30)
        begin = values.header_offset + 30 + sum(struct.unpack("<HH", header[26:30])) + offset * dtype.itemsize
        stored = values.compress_type == zipfile.ZIP_STORED
        room = values.file_size - offset * dtype.itemsize
    except BarError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, struct.error) as error:
        raise BarError(f"expected an item of torch.save, got {type(error).__name__}") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise BarError(f"expected an item of torch.save, got another file: {error!s:.200}") from None
    if found != (dtype, part.sizes) or stride != _contiguous(part.sizes):
        raise BarError(f"expected {list(part.sizes)} in {dtype}, got {list(size)!r:.200} in {found[0]}")
    if not stored or offset < 0 or room < nbytes or begin + nbytes > part.length:
        raise BarError(f"expected {nbytes} bytes of values, got the end of the item")
    return begin


def _tensor(made: object) -> tuple[Stored, int, tuple[int, ...], tuple[int, ...]]:
    """Returns storage, offset, size and stride of what torch._utils._rebuild_tensor_v2 is called with."""
    if not isinstance(made, Made) or made.by != "torch._utils._rebuild_tensor_v2":
        raise BarError("expected a tensor, got another value")
    storage, offset, size, stride, *_ = made.given
    plainly = isinstance(storage, Stored) and isinstance(storage.key[1], Name) and type(offset) is int
    if not plainly or not all(type(n) is int for n in (*size, *stride)):
        raise BarError("expected a tensor's storage and sizes, got other values")
    return storage, offset, size, stride


def _contiguous(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))


def _require_few_members(item: BinaryIO, length: int) -> None:
    """Raises for an archive whose list of members is long: all of it would be read."""
    item.seek(max(0, length - _AROUND))
    tail = item.read(_AROUND)
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise BarError("expected an item of torch.save, got the end of the file")
    listed = struct.unpack_from("<L", tail, end + 12)[0]
    if listed == 0xFFFFFFFF and (long := tail.rfind(b"PK\6\6")) >= 0 and len(tail) >= long + 48:
        listed = struct.unpack_from("<Q", tail, long + 40)[0]
    if listed > _AROUND:
        raise BarError(f"expected an archive of a few members, got a list of {listed} bytes")
