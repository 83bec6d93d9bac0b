"""Memory that batches are gathered into, used again as soon as nobody refers to what lies in it.

Fresh memory of this size costs more in page faults than the copying does, and twice as much when a background thread
makes it. PyTorch's own CPU allocator gives memory of this size back to the system each time. So the memory is ours: a
tensor over it is handed out, and when the last view of that tensor is gone, the memory goes back to the list.
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
        """A tensor whose values are arbitrary; it is the caller's, and so are views of it, for as long as they live."""
        if self._pinned:
            return torch.empty(rows, width, dtype=dtype, pin_memory=True)
        region = self._region(max(rows, self._rows) * width * dtype.itemsize)
        array = region.bytes[: rows * width * dtype.itemsize]
        # PyTorch refers to this very array, and nothing but PyTorch does: when it goes, the last view is gone.
        weakref.finalize(array, self._free.append, region).atexit = False
        return torch.from_numpy(array).view(dtype).view(rows, width)

    def _region(self, size_bytes: int) -> Region:
        for index in range(len(self._free)):
            if self._free[index].bytes.size >= size_bytes:
                return self._free.pop(index)
        return Region(size_bytes, huge_pages=True)
