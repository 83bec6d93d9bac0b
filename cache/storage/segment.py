"""A segment while it fills: rows at their final positions in memory, and the files that are made of it.

Source and target wait on the device that computes them. On a GPU they are ordered and measured there. The threads that
write files copy their rows to the host piece by piece; the host only hashes and writes them.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from cache.format.array import Array
from cache.format.chunks import FileOut, cut
from cache.format.dtypes import TORCH_DTYPES, read_as, to_array, to_tensor
from cache.format.int8 import quantise, restore
from cache.format.layout import Group
from cache.format.manifest import Manifest
from cache.format.statistics import measure
from cache.order import derive_key, permute
from cache.storage.recompute import Mlp
from common.device import Mark, free_memory, in_pieces, mark, on_stream, to_device, to_host
from common.errors import NumericalError
from common.hashing import Bytes

_FVU_LIMIT = 0.01
"""A recomputed target may differ from the harvested one by the rounding of another order of sums (FVU 1e-5 in bfloat16,
below 1e-3 if an outlying dimension is rounded). Another source, or a missing norm, gives more than 0.1."""
_SPREAD_ROWS = 16
"""Fewer rows say nothing about the spread: then the error is compared with the size of the rows."""
_PIECE_BYTES = 1 << 23
"""Bytes that are copied from a GPU at a time: they stay in the processor's cache until they are hashed and written, and
pinned memory, which takes the system long to make, is little."""
Column = Shaped[np.ndarray, "_ ..."]
Rows = Float[Tensor, "_ _"]
Block = dict[str, Column | Rows]
"""Rows as the writer gives them: source and target, and one number for each row in all other columns."""


class SegmentBuffer:
    """The rows of one segment; its memory is used again for the group's next segment. ``mlp`` replaces stored targets.

    Statistics are computed on ``device``. Source and target wait there too if that leaves half of the free memory, and
    otherwise in main memory; the bytes of the cache do not depend on it.
    """

    def __init__(
        self, group: Group, manifest: Manifest, *, mlp: Mlp | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.group = group
        self._manifest = manifest
        self._mlp = mlp
        self._device = torch.device(device)
        self._size = min(group.segment_rows, group.rows)
        self._activations = {name: self._room_for(width) for name, width in _widths(group).items()}
        self._columns: dict[str, Column] = {
            name: np.empty(self._size, group.arrays[name].item) for name in ("tokens", "document", "position")
        }
        self._errors = {name: np.zeros(self._size) for name in self._activations}
        self._columns |= {f"{name}_error": error for name, error in self._errors.items()}
        self.filling: int | None = None
        """The segment whose rows are here; None before the first row, and after ``files`` has begun."""

    def _room_for(self, width: int) -> Rows:
        dtype = TORCH_DTYPES[read_as(self.group.dtype)]
        # Rows are quantised to 8 bits on the host, so they wait there.
        stays = self.group.dtype != "int8" and 2 * self._size * width * dtype.itemsize <= free_memory(self._device)
        return torch.empty(self._size, width, dtype=dtype, device=self._device if stays else "cpu")

    def put(self, segment: int, first: int, block: Block) -> None:
        """Put the segment's rows from ``first`` on (in the order of the text) at their positions.

        ``block`` has every column; ``source_error`` and ``target_error`` are the squared errors of storing each row.
        """
        slots = self._slots(segment, first, len(block["tokens"]))
        for name, values in block.items():
            if isinstance(values, Tensor):
                lay(self._activations[name], slots, values)
            else:
                self._columns[name][slots] = values
        self.filling = segment

    def take(self, first: int, rows: int) -> dict[str, Column]:
        """``rows`` rows of the segment that is filling, from row ``first`` on: every column as it is stored."""
        assert self.filling is not None, "rows that were written to files are changed"
        slots = self._slots(self.filling, first, rows)
        activations = {name: gather(column, slots) for name, column in self._activations.items()}
        return activations | {name: column[slots] for name, column in self._columns.items()}

    def give_back(self, segment: int, first: int, columns: dict[str, Column]) -> None:
        """``put`` rows that ``take`` returned."""
        dtype = read_as(self.group.dtype)
        self.put(segment, first, columns | {name: to_tensor(columns[name], dtype) for name in self._activations})

    @property
    def no_rows(self) -> dict[str, Column]:
        """Every column with no rows, in the order of ``take``."""
        return {name: to_array(rows[:0].cpu()) for name, rows in self._activations.items()} | {
            name: column[:0] for name, column in self._columns.items()
        }

    def _slots(self, segment: int, first: int, rows: int) -> Int64[np.ndarray, " rows"]:
        stream = np.arange(first, first + rows, dtype=np.int64)
        if not self.group.shuffled:
            return stream
        key = derive_key(self._manifest.shuffle_seed, segment)
        return permute(stream, self.group.rows_in(segment), key=key)

    def files(self, segment: int) -> Iterator[FileOut]:
        """All files of the segment, which must be full. They must be written before the next rows are put."""
        self.filling = None
        columns: dict[str, Column | Rows] = {**self._columns, **self._activations, **self._quantised(segment)}
        if self._mlp:
            self._recompute(self._mlp, segment)
        full = mark(self._device)
        # Statistics come last in the order of files, so they are computed while the rows are written.
        with ThreadPoolExecutor(len(self._errors), thread_name_prefix="measure") as background:
            statistics = background.map(partial(self._measure, segment, full), self._errors)
            for array, number in self.group.segment_files(segment):
                column = np.concatenate(list(statistics)) if array.name == "statistics" else columns[array.name]
                yield FileOut(array, number, self._chunks(array, number, segment, column, full))

    def _quantised(self, segment: int) -> dict[str, Column]:
        """Source and target in 8 bits with their scales, if they are stored so; the rows are rounded to the same."""
        quantised: dict[str, Column] = {}
        for name in self.group.activation_widths if self.group.dtype == "int8" else ():
            staged = self._activations[name][: self.group.rows_in(segment)]
            found = quantise(to_array(staged))
            self._errors[name][: len(staged)] += found.error
            staged.copy_(restore(*(torch.from_numpy(array) for array in (found.values, found.scale, found.channel))))
            quantised |= {name: found.values, f"{name}_scale": found.scale, f"{name}_channel": found.channel}
        return quantised

    def _chunks(
        self, array: Array, number: int, segment: int, column: Column | Rows, full: Mark
    ) -> Iterator[list[Bytes]]:
        """The chunks of a file, in parts that are copied from the device when they are taken."""
        if array.is_per_segment:
            assert not isinstance(column, Tensor), "only rows wait on a device"
            yield [column.data.cast("B")]
            return
        start = number * array.file_rows - segment * self.group.segment_rows
        rows = column[start : min(start + array.file_rows, self.group.rows_in(segment))]
        if isinstance(rows, Tensor):
            piece_rows = array.chunk_rows * max(1, _PIECE_BYTES // array.chunk_bytes)
            pieces = map(to_array, in_pieces(rows, rows=piece_rows, after=full))
        else:
            pieces = iter([rows])
        for piece in pieces:
            yield cut(array, piece.data.cast("B"), len(piece))

    def _measure(self, segment: int, full: Mark, name: str) -> Float64[np.ndarray, " packed"]:
        """The statistics of source or target."""
        count = self.group.rows_in(segment)
        first = segment * self.group.segment_rows
        kept = self._manifest.is_ordinary(self._columns["tokens"][:count])
        error = self._errors[name][:count]
        with on_stream(self._device, "statistics", after=full):
            return measure(
                self._activations[name][:count], kept=kept, first=first, error=error, device=self._device
            ).pack()

    def _recompute(self, mlp: Mlp, segment: int) -> None:
        """Compare the MLP's result with the harvested targets of a chunk, and take its mean error for every row.

        Raises NumericalError when the error is not small: then the source is not the input of this MLP.
        """
        count = min(self.group.chunk_rows, self.group.rows_in(segment))
        kept = torch.from_numpy(self._manifest.is_ordinary(self._columns["tokens"][:count]))
        source, target = (self._activations[name][:count].cpu()[kept] for name in ("source", "target"))
        harvested = target.double()
        error = (mlp.target(source).cpu().double() - harvested).square().sum(dim=1)
        center = harvested.mean(dim=0) if len(harvested) >= _SPREAD_ROWS else 0.0
        spread = (harvested - center).square().sum()
        if error.sum() > _FVU_LIMIT * spread:
            what = f"The layer's MLP does not give the harvested target: FVU {float(error.sum() / spread):.2g}."
            raise NumericalError(what, remedy="Set cache.target to stored.")
        self._errors["target"][:] = float(error.mean()) if len(error) else 0.0


def _widths(group: Group) -> dict[str, int]:
    return {"source": group.d_source, "target": group.d_target}


def lay(column: Float[Tensor, "slots width"], slots: Int64[np.ndarray, " rows"], rows: Rows) -> None:
    """Put rows at their positions in a column; both may be on any device."""
    if column.device.type == "cpu":
        # numpy copies a row in one piece: 7 GB/s at width 2,304, where PyTorch's own operations reach 1 to 2 GB/s.
        to_array(column)[slots] = to_array(to_host(rows))
    else:
        device_slots = to_device(torch.from_numpy(slots), column.device)
        column.index_copy_(0, device_slots, to_device(rows, column.device))


def gather(column: Float[Tensor, "slots width"], slots: Int64[np.ndarray, " rows"]) -> Shaped[np.ndarray, "rows width"]:
    """The rows at these positions of a column, in main memory: what ``lay`` put there."""
    if column.device.type == "cpu":
        return to_array(column)[slots]
    return to_array(column.index_select(0, to_device(torch.from_numpy(slots), column.device)).cpu())
