"""How many bytes of tensors were alive at the same time, counted operation by operation: the same on every machine."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """`peak` is the most that tensors made inside the block took at once, in bytes."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and tensor.untyped_storage()._cdata not in before:
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _count(self, storage):
        if storage in self._known:
            return
        self._known[storage] = True
        self.live += storage.nbytes()
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size):
        self.live -= size
