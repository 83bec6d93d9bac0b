"""A segment while it fills: rows at their final places in memory, and the files that it becomes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from cache.format.chunks import FileOut, cut
from cache.format.dtypes import read_as, to_array, to_tensor
from cache.format.int8 import quantise, restore
from cache.format.layout import STORED_AS, Array, Group
from cache.format.manifest import Manifest
from cache.format.statistics import measure
from cache.order import derive_key, permute
from cache.storage.recompute import Mlp
from common.errors import NumericalError
from common.hashing import Bytes

_FVU_LIMIT = 0.01
"""A recomputed target may differ from the harvested one by the rounding of another order of sums (FVU 1e-5 in bfloat16,
below 1e-3 where an outlying dimension is rounded); another source, or a forgotten norm, gives more than 0.1."""
_FEW_ROWS = 16
Block = dict[str, Shaped[np.ndarray, "rows ..."]]


class SegmentBuffer:
    """Holds one segment's rows; memory is kept for the group's next segment. ``mlp`` replaces stored targets."""

    def __init__(self, group: Group, manifest: Manifest, *, mlp: Mlp | None = None) -> None:
        self.group = group
        self._manifest = manifest
        self._mlp = mlp
        self._dtype = read_as(group.dtype)
        rows = min(group.segment_rows, group.rows)
        item = STORED_AS[self._dtype]
        widths = {"source": group.d_source, "target": group.d_target}
        self._columns: Block = {name: np.empty((rows, width), item) for name, width in widths.items()}
        self._columns |= {name: np.empty(rows, group.arrays[name].item) for name in ("tokens", "document", "position")}
        self._errors = {name: np.zeros(rows) for name in widths}

    def put(self, segment: int, first: int, block: Block, errors: dict[str, Float64[np.ndarray, " rows"]]) -> None:
        """Lay the segment's rows ``first`` and following (in the order of the text) at their places."""
        slots = self._slots(segment, first, len(block["tokens"]))
        for name, values in block.items():
            self._columns[name][slots] = values
        for name, values in errors.items():
            self._errors[name][slots] = values

    def _slots(self, segment: int, first: int, rows: int) -> Int64[np.ndarray, " rows"]:
        stream = np.arange(first, first + rows, dtype=np.int64)
        if not self.group.shuffled:
            return stream
        key = derive_key(self._manifest.shuffle_seed, segment)
        return permute(stream, self.group.rows_in(segment), key=key)

    def files(self, segment: int) -> Iterator[FileOut]:
        """Every file of the segment, which must be full."""
        columns = self._columns | self._quantised(segment)
        if self._mlp:
            self._recompute(self._mlp, segment)
        # Statistics come last in the order of files, so they are computed while the rows are written.
        with ThreadPoolExecutor(len(self._errors), thread_name_prefix="measure") as background:
            statistics = background.map(partial(self._measure, segment), self._errors)
            for array, number in self.group.segment_files(segment):
                column = np.concatenate(list(statistics)) if array.name == "statistics" else columns[array.name]
                yield FileOut(array, number, self._chunks(array, number, segment, column))

    def _quantised(self, segment: int) -> Block:
        """Source and target in 8 bits with their scales, when they are stored so; the rows become what will be read."""
        quantised: Block = {}
        for name in self.group.sides if self.group.dtype == "int8" else ():
            staged = self._columns[name][: self.group.rows_in(segment)]
            found = quantise(staged)
            self._errors[name][: len(staged)] += found.error
            tensors = (torch.from_numpy(array) for array in (found.values, found.scale, found.channel))
            staged[:] = to_array(restore(*tensors))
            quantised |= {name: found.values, f"{name}_scale": found.scale, f"{name}_channel": found.channel}
        return quantised

    def _chunks(self, array: Array, number: int, segment: int, column: Shaped[np.ndarray, "..."]) -> list[Bytes]:
        if array.is_per_segment:
            return [column.data.cast("B")]
        start = number * array.file_rows - segment * self.group.segment_rows
        stop = min(start + array.file_rows, self.group.rows_in(segment))
        return cut(array, column[start:stop].data.cast("B"), stop - start)

    def _measure(self, segment: int, name: str) -> Float64[np.ndarray, " packed"]:
        """The statistics of source or target."""
        count = self.group.rows_in(segment)
        first = segment * self.group.segment_rows
        kept = self._manifest.is_ordinary(self._columns["tokens"][:count])
        error = self._errors[name][:count]
        return measure(self._staged(name)[:count], kept=kept, first=first, error=error).pack()

    def _staged(self, name: str) -> Float[Tensor, "rows width"]:
        return to_tensor(self._columns[name], self._dtype)

    def _recompute(self, mlp: Mlp, segment: int) -> None:
        """Compare what the MLP gives with the harvested targets on a chunk, and take its mean error for every row.

        Raises NumericalError when the error is not small: then the source is not what this MLP reads.
        """
        count = min(self.group.chunk_rows, self.group.rows_in(segment))
        kept = torch.from_numpy(self._manifest.is_ordinary(self._columns["tokens"][:count]))
        harvested = self._staged("target")[:count][kept].double()
        error = (mlp.target(self._staged("source")[:count][kept]).cpu().double() - harvested).square().sum(dim=1)
        # The spread of a few rows about their mean says nothing: their error is compared with their size.
        center = harvested.mean(dim=0) if len(harvested) >= _FEW_ROWS else 0.0
        spread = (harvested - center).square().sum()
        if error.sum() > _FVU_LIMIT * spread:
            what = f"The layer's MLP does not give the harvested target: FVU {float(error.sum() / spread):.2g}."
            raise NumericalError(what, remedy="Set cache.target to stored.")
        self._errors["target"][:] = float(error.mean()) if len(error) else 0.0
