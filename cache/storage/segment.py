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
from cache.format.statistics import measure
from cache.order import derive_key, permute
from cache.storage.recompute import Mlp
from common.errors import NumericalError
from common.hashing import Bytes

_LARGEST_FVU, _FEW_ROWS = 0.01, 16
Block = dict[str, Shaped[np.ndarray, "rows ..."]]


class SegmentBuffer:
    """Holds one segment's rows; memory is kept for the group's next segment. ``mlp`` stands in for stored targets."""

    def __init__(self, group: Group, *, shuffle_seed: int, mlp: Mlp | None = None) -> None:
        self.group, self._seed, self._mlp = group, shuffle_seed, mlp
        self._dtype = read_as(group.dtype)
        rows, item = min(group.segment_rows, group.rows), STORED_AS[self._dtype]
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
        places = np.arange(first, first + rows, dtype=np.int64)
        if not self.group.shuffled:
            return places
        return permute(places, self.group.rows_in(segment), key=derive_key(self._seed, segment))

    def files(self, segment: int, special_ids: tuple[int, ...]) -> Iterator[FileOut]:
        """Every file of the segment, which must be full."""
        sealed = self._columns | self._reduced(segment)
        if self._mlp:
            self._recompute(self._mlp, segment, special_ids)
        with ThreadPoolExecutor(len(self._errors), thread_name_prefix="measure") as background:
            sides = background.map(partial(self._measure, segment, special_ids), self._errors)
            for array, number in self.group.segment_files(segment):
                column = np.concatenate(list(sides)) if array.name == "statistics" else sealed[array.name]
                yield FileOut(array, number, self._chunks(array, number, segment, column))

    def _reduced(self, segment: int) -> Block:
        """The sides in 8 bits with their scales, when the cache holds them so; the staged rows become what is read."""
        reduced: Block = {}
        for name in self.group.sides if self.group.dtype == "int8" else ():
            staged = self._columns[name][: self.group.rows_in(segment)]
            found = quantise(staged)
            self._errors[name][: len(staged)] += found.error
            parts = (torch.from_numpy(part) for part in (found.values, found.scale, found.channel))
            staged[:] = to_array(restore(*parts))
            reduced |= {name: found.values, f"{name}_scale": found.scale, f"{name}_channel": found.channel}
        return reduced

    def _chunks(self, array: Array, number: int, segment: int, column: Shaped[np.ndarray, "..."]) -> list[Bytes]:
        if array.is_per_segment:
            return [column.data.cast("B")]
        start = number * array.file_rows - segment * self.group.segment_rows
        stop = min(start + array.file_rows, self.group.rows_in(segment))
        return cut(array, column[start:stop].data.cast("B"), stop - start)

    def _measure(self, segment: int, special_ids: tuple[int, ...], name: str) -> Float64[np.ndarray, " figures"]:
        """The figures of one side."""
        count, first = self.group.rows_in(segment), segment * self.group.segment_rows
        kept = ~np.isin(self._columns["tokens"][:count], special_ids)
        rows, error = self._staged(name)[:count], self._errors[name][:count]
        return measure(rows, kept=kept, first=first, error=error).pack()

    def _staged(self, name: str) -> Float[Tensor, "rows width"]:
        return to_tensor(self._columns[name], self._dtype)

    def _recompute(self, mlp: Mlp, segment: int, special_ids: tuple[int, ...]) -> None:
        """Hold the MLP against the harvested targets on a chunk of the segment, and take its error for every row.

        Raises NumericalError when it is no small one: then the source is not what this MLP reads.
        """
        count = min(self.group.chunk_rows, self.group.rows_in(segment))
        kept = torch.from_numpy(~np.isin(self._columns["tokens"][:count], special_ids))
        harvested = self._staged("target")[:count][kept].double()
        error = (mlp.target(self._staged("source")[:count][kept]).cpu().double() - harvested).square().sum(dim=1)
        # Of a few rows the spread says nothing: they are held against their size.
        about = harvested.mean(dim=0) if len(harvested) >= _FEW_ROWS else 0.0
        spread = (harvested - about).square().sum()
        if error.sum() > _LARGEST_FVU * spread:
            what = f"The layer's MLP does not give the harvested target: FVU {float(error.sum() / spread):.2g}."
            raise NumericalError(what, remedy="Set cache.target to stored.")
        self._errors["target"][:] = float(error.mean()) if len(error) else 0.0
