"""How many bytes of tensors were there at once, counted operation by operation."""

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """While it is entered; storages at the addresses ``known`` do not count."""

    def __init__(self, known: set[int]):
        super().__init__()
        self.known, self.live, self.bytes = known, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {at: one for at, one in self.live.items() if not one[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.live.values()))
        return out
