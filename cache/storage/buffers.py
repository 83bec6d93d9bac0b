"""Memory that batches are gathered into, used again as soon as nobody holds what lies in it.

Fresh memory of this size costs more in page faults than the copying, and twice as much in a thread of its own.
"""

import weakref

import torch
from jaxtyping import Float
from torch import Tensor

from cache.storage.mapping import Region


class Buffers:
    """Lends tensors of up to ``rows`` rows, or any number of ``pinned`` ones, which PyTorch itself uses again."""

    def __init__(self, *, rows: int, pinned: bool) -> None:
        self._rows, self._pinned = rows, pinned
        self._free: list[Region] = []

    def take(self, rows: int, *, width: int, dtype: torch.dtype) -> Float[Tensor, "rows width"]:
        """A tensor whose values are arbitrary; it is the caller's, and so are views of it, for as long as they live."""
        if self._pinned:
            return torch.empty(rows, width, dtype=dtype, pin_memory=True)
        region = self._region(max(rows, self._rows) * width * dtype.itemsize)
        array = region.bytes[: rows * width * dtype.itemsize]
        # PyTorch holds this very array, and nothing but PyTorch does: when it goes, so does the last view.
        weakref.finalize(array, self._free.append, region).atexit = False
        return torch.from_numpy(array).view(dtype).view(rows, width)

    def _region(self, size_bytes: int) -> Region:
        for place in range(len(self._free)):
            if self._free[place].bytes.size >= size_bytes:
                return self._free.pop(place)
        return Region(size_bytes, huge_pages=True)
