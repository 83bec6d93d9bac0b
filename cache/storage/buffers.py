"""Memory into which batches are gathered, used again as soon as nothing refers to its contents.

New memory of this size costs more time in page faults than the copying, and twice as much in a background thread.
PyTorch's own CPU allocator returns memory of this size to the system each time. So this module keeps the memory: it
lends a tensor on it, and when the last view of that tensor is deleted, the memory goes back to the list.
"""

import weakref

import torch
from jaxtyping import Float
from torch import Tensor

from cache.storage.mapping import Region


class Buffers:
    """Lends tensors of up to ``rows`` rows, or any number of ``pinned`` ones, which PyTorch itself keeps for reuse."""

    def __init__(self, *, rows: int, pinned: bool) -> None:
        self._rows = rows
        self._pinned = pinned
        self._free: list[Region] = []

    def lend(self, rows: int, *, width: int, dtype: torch.dtype) -> Float[Tensor, "rows width"]:
        """A tensor with arbitrary values. The caller may use it, and views of it, as long as they exist."""
        if self._pinned:
            return torch.empty(rows, width, dtype=dtype, pin_memory=True)
        region = self._region(max(rows, self._rows) * width * dtype.itemsize)
        array = region.bytes[: rows * width * dtype.itemsize]
        # Only PyTorch refers to this array, so the array is deleted together with the last view of the tensor.
        weakref.finalize(array, self._free.append, region).atexit = False
        return torch.from_numpy(array).view(dtype).view(rows, width)

    def _region(self, size_bytes: int) -> Region:
        for index in range(len(self._free)):
            if self._free[index].bytes.size >= size_bytes:
                return self._free.pop(index)
        return Region(size_bytes, huge_pages=True)
