"""A segment while it fills: rows at their final places in memory, and the files that it becomes."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped

from cache.bits import to_array, widen
from cache.checksum import Bytes, chunk_hash, file_hash
from cache.int8 import quantise, restore
from cache.journal import FileEntry
from cache.layout import Array, Group, padding
from cache.order import derive_key, permute
from cache.statistics import SideStatistics, empty_side, measure, merge

_BLOCK_VALUES = 1 << 18
Block = dict[str, Shaped[np.ndarray, "rows ..."]]


class SegmentBuffer:
    """Holds one segment's rows; memory is kept for the group's next segment."""

    def __init__(self, group: Group, *, shuffle_seed: int) -> None:
        self.group, self._seed = group, shuffle_seed
        rows = min(group.segment_rows, group.rows)
        self._columns: Block = {
            name: np.empty((rows, array.width) if array.width else rows, _staged_item(array))
            for name, array in group.arrays.items()
            if not array.is_per_segment and not name.endswith("_scale")
        }
        self._errors = {name: np.zeros(rows) for name in ("source", "target") if name in self._columns}

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

    def files(self, segment: int, special_ids: tuple[int, ...]) -> Iterable[tuple[Array, int, list[Bytes]]]:
        """(array, number of the file, its bytes in pieces) of every file of the segment, which must be full."""
        sealed = self._columns | self._reduced(segment)
        for array, number in self.group.segment_files(segment):
            if array.name == "statistics":
                numbers = [side.pack() for side in self._measure(segment, special_ids)]
                yield array, number, [np.concatenate(numbers).data.cast("B")]
            elif array.is_per_segment:
                yield array, number, [sealed[array.name].data.cast("B")]
            else:
                yield array, number, self._pieces(array, number, segment, sealed[array.name])

    def _reduced(self, segment: int) -> Block:
        """The sides in 8 bits with their scales, when the cache holds them so; the staged rows become what is read."""
        reduced: Block = {}
        for name in self._errors if self.group.dtype == "int8" else ():
            staged = self._columns[name][: self.group.rows_in(segment)]
            found = quantise(staged)
            self._errors[name][: len(staged)] += found.error
            parts = (torch.from_numpy(part) for part in (found.values, found.scale, found.channel))
            staged[:] = to_array(restore(*parts))
            reduced |= {name: found.values, f"{name}_scale": found.scale, f"{name}_channel": found.channel}
        return reduced

    def _pieces(self, array: Array, number: int, segment: int, column: Shaped[np.ndarray, "rows ..."]) -> list[Bytes]:
        start = number * array.file_rows - segment * self.group.segment_rows
        stop = min(start + array.file_rows, self.group.rows_in(segment))
        values = column[start:stop]
        pieces: list[Bytes] = [values.data.cast("B"), padding(array, stop - start), array.index(number)]
        return [piece for piece in pieces if len(piece)]

    def _measure(self, segment: int, special_ids: tuple[int, ...]) -> list[SideStatistics]:
        count = self.group.rows_in(segment)
        kept = np.flatnonzero(~np.isin(self._columns["tokens"][:count], special_ids)).astype(np.int64)
        first = segment * self.group.segment_rows
        return [_measure_side(self._columns[name], kept, first, error=self._errors[name]) for name in self._errors]


def _staged_item(array: Array) -> str:
    return "uint16" if array.item == "int8" else array.item


def _measure_side(
    values: Shaped[np.ndarray, "rows width"],
    kept: Int64[np.ndarray, " kept"],
    first: int,
    *,
    error: Float64[np.ndarray, " rows"],
) -> SideStatistics:
    # Blocks that stay in the processor's cache while they are widened and measured, in memory that is used again.
    block_rows = max(1, _BLOCK_VALUES // values.shape[1])
    total, wide = empty_side(values.shape[1]), np.empty((block_rows, values.shape[1]))
    for start in range(0, len(kept), block_rows):
        here = kept[start : start + block_rows]
        total = merge(total, measure(widen(values[here], wide), rows=here + first, error=error[here]))
    return total


def file_entry(array: Array, number: int, pieces: list[Bytes]) -> FileEntry:
    """What the journal says about a file."""
    chunks, size = array.chunks_in(number), array.chunk_rows * array.row_bytes
    data, whole = memoryview(pieces[0]), len(pieces[0]) // size
    hashes = [chunk_hash(data[at * size : (at + 1) * size]) for at in range(whole)]
    if whole < chunks:
        hashes.append(chunk_hash(bytes(data[whole * size :]) + bytes(pieces[1])))
    path = array.file_path(number)
    return FileEntry(path, sum(len(piece) for piece in pieces), file_hash(pieces), "".join(hashes))
