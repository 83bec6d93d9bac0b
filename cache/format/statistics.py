"""Exact statistics of the stored rows: accumulated in float64 as a segment is written, merged when it is read.

They are computed on a given device, wherever the rows are: the same rows on the same kind of device give the same bits.
Between a CPU and a GPU only the order of float64 sums differs.

For source and for target, over the rows whose token is not special, with x the stored values:

    rows     n
    mean     m_j = sum x_j / n
    spread   s_j = sum (x_j - m_j)^2                    merged by Chan, Golub, LeVeque (1979)
    floor    sum ||x_model - x||^2                      the error that storing makes
    norms    counts of ||x|| in half-octaves from 2^-16 to 2^16, and the largest norms with their row numbers
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from common.device import to_device

HISTOGRAM_BINS = 64
"""Half-octaves of the norm, from 2^-16 to 2^16; the first and last bin also count norms beyond. Fixed by the format."""
LARGEST = 8
"""How many of the largest norms are kept. Fixed by the format."""
_BLOCK_VALUES = 1 << 18
"""Values that are converted to float64 at a time: 2 MB, which stay in the processor's cache until they are summed."""
_GPU_BLOCK_VALUES = 1 << 24
"""The same on a GPU: 134 MB, so that there are few launches. By arithmetic, an H100 moves the 50 bytes for each value
in about 12 ms for a segment of width 2,304, which it harvests in 550 ms. Float64 costs little too: even a T4, the
slowest with 0.25 TFLOPS, takes 14 ms for five operations on each value. So no card needs sums in float32."""
_PIECE_BLOCKS = 16
"""Blocks that a thread sums in one call: enough work that starting it in a thread costs little."""
_THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))
"""Threads for source and as many for target: both are measured at once, while another thread writes."""
_FIXED = 2 + HISTOGRAM_BINS + 2 * LARGEST
"""Numbers of the statistics that do not depend on the width: rows, storage error, histogram, largest norms and rows."""


def statistics_width(d_source: int, d_target: int) -> int:
    """How many numbers a segment's statistics are: those of the source, then of the target (unless it has no width)."""
    return sum(_FIXED + 2 * width for width in (d_source, d_target) if width)


@dataclass(frozen=True)
class ActivationStatistics:
    """Statistics of source or target. ``rows`` counts rows without special tokens; vectors are (width,), not scaled."""

    rows: int
    mean: Float64[np.ndarray, " width"]
    spread: Float64[np.ndarray, " width"]
    storage_error: float
    norm_counts: Int64[np.ndarray, " bins"]
    largest_norms: Float64[np.ndarray, " largest"]
    largest_rows: Int64[np.ndarray, " largest"]

    @property
    def variance(self) -> Float64[np.ndarray, " width"]:
        """Of each dimension, over all rows (divided by n)."""
        return self.spread / max(1, self.rows)

    @property
    def variance_sum(self) -> float:
        """Total variance: mean squared distance from the mean, TSS / n."""
        return float(self.variance.sum())

    @property
    def second_moment(self) -> Float64[np.ndarray, " width"]:
        """Mean square of each dimension."""
        return self.variance + self.mean**2

    @property
    def storage_floor(self) -> float:
        """The FVU that storing alone causes: squared error of the stored values over TSS."""
        total = float(self.spread.sum())
        return self.storage_error / total if total else 0.0

    def pack(self) -> Float64[np.ndarray, " packed"]:
        """As numbers for the ``statistics`` array."""
        fields = (
            np.array([self.rows]),
            self.mean,
            self.spread,
            np.array([self.storage_error]),
            self.norm_counts,
            self.largest_norms,
            self.largest_rows,
        )
        return np.concatenate(fields).astype(np.float64)


@dataclass(frozen=True)
class GroupStatistics:
    """Statistics of source and target; ``target`` is None when the cache stores no target."""

    source: ActivationStatistics
    target: ActivationStatistics | None


def empty_statistics(width: int) -> ActivationStatistics:
    """Statistics of no rows."""
    zeros = np.zeros(width)
    norms = np.full(LARGEST, -1.0)
    rows = np.full(LARGEST, -1, np.int64)
    return ActivationStatistics(0, zeros, zeros, 0.0, np.zeros(HISTOGRAM_BINS, np.int64), norms, rows)


def measure(
    stored: Float[Tensor, "rows width"],
    *,
    kept: Bool[np.ndarray, " rows"],
    first: int,
    error: Float64[np.ndarray, " rows"],
    device: torch.device | None = None,
) -> ActivationStatistics:
    """Statistics of the ``kept`` rows of ``stored``, whose first row has number ``first``.

    ``error`` is the squared error that storing made of each row. In float64, from sums of values and squares: a spread
    is exact to 2^-52 times (1 + its squared mean over variance). ``device`` computes them; by default that of the rows.
    """
    sums, squares = _sums(stored, ~kept, device or stored.device)
    rows = int(kept.sum())
    mean = sums[0] / max(1, rows)
    spread = np.maximum(sums[1] - rows * mean**2, 0.0)
    norms = np.sqrt(squares[kept])
    counts = np.bincount(_bins(norms), minlength=HISTOGRAM_BINS).astype(np.int64)
    none = empty_statistics(1)  # fills the list of the largest if there are fewer rows
    numbers = np.flatnonzero(kept) + first
    norms, numbers = _largest(np.append(none.largest_norms, norms), np.append(none.largest_rows, numbers))
    return ActivationStatistics(rows, mean, spread, float(error[kept].sum()), counts, norms, numbers)


def _sums(
    stored: Float[Tensor, "rows width"], dropped: Bool[np.ndarray, " rows"], device: torch.device
) -> tuple[Float64[np.ndarray, "2 width"], Float64[np.ndarray, " rows"]]:
    """Sums over rows of the values and of their squares, without the dropped rows, and every row's sum of squares.

    On a CPU each thread sums a piece of several blocks; the blocks are added up in their order, so the result does not
    depend on the number of threads.
    """
    on_host = device.type == "cpu"
    threads = _THREADS if on_host else 1
    block_rows = max(1, (_BLOCK_VALUES if on_host else _GPU_BLOCK_VALUES) // stored.shape[1])
    piece_rows = _PIECE_BLOCKS * block_rows
    squares = torch.empty(len(stored), dtype=torch.float64, device=device)
    pieces = [slice(start, start + piece_rows) for start in range(0, len(stored), piece_rows)]

    def of_piece(rows: slice) -> Iterator[Float64[Tensor, "2 width"]]:
        return _block_sums(stored[rows], dropped[rows], squares=squares[rows], block_rows=block_rows)

    def in_a_thread(rows: slice) -> list[Float64[Tensor, "2 width"]]:
        return list(of_piece(rows))

    sums = torch.zeros(2, stored.shape[1], dtype=torch.float64, device=device)
    with ThreadPoolExecutor(threads, thread_name_prefix="sums") as pool:
        for blocks in pool.map(in_a_thread, pieces) if threads > 1 else map(of_piece, pieces):
            for block in blocks:
                sums += block
    return sums.cpu().numpy(), squares.cpu().numpy()


def _block_sums(
    stored: Float[Tensor, "rows width"],
    dropped: Bool[np.ndarray, " rows"],
    *,
    squares: Float64[Tensor, " rows"],
    block_rows: int,
) -> Iterator[Float64[Tensor, "2 width"]]:
    """The sums of each block of rows, on the device of ``squares``, which is filled at the same time."""
    # One buffer for all blocks; on a CPU it is small enough to stay in the cache while a block is converted and summed.
    wide = torch.empty(min(block_rows, len(stored)), stored.shape[1], dtype=torch.float64, device=squares.device)
    for start in range(0, len(stored), block_rows):
        values = stored[start : start + block_rows]
        rows = slice(start, start + len(values))
        # Sent first and converted there: a copy that also converts would send eight bytes for a value instead of two.
        block = wide[: len(values)].copy_(to_device(values, wide.device))
        absent = np.flatnonzero(dropped[rows])
        if absent.size:
            block.index_fill_(0, to_device(torch.from_numpy(absent), block.device), 0)
        yield _sums_of_block_(block, squares[rows])


def _sums_of_block_(
    block: Float64[Tensor, "rows width"], squares: Float64[Tensor, " rows"]
) -> Float64[Tensor, "2 width"]:
    """Column sums of a block and of its squares, which take its place.

    By PyTorch's sums, whose order is that of the rows, on a GPU and with any number of threads: a product's may not be.
    Squares that are stored once are summed both ways in less time than two products of the block with itself take.
    """
    values = block.sum(dim=0)
    torch.sum(block.square_(), dim=1, out=squares)
    return torch.stack([values, block.sum(dim=0)])


def _bins(norms: Float64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    octaves = np.log2(np.maximum(norms, 2.0**-40))  # a norm of 0 has no logarithm; far below the first bin
    return np.clip(np.floor(2 * octaves) + HISTOGRAM_BINS // 2, 0, HISTOGRAM_BINS - 1).astype(np.int64)


def _largest(
    norms: Float64[np.ndarray, " n"], rows: Int64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " largest"], Int64[np.ndarray, " largest"]]:
    order = np.lexsort((rows, -norms))[:LARGEST]
    return norms[order], rows[order]


def merge(first: ActivationStatistics, second: ActivationStatistics) -> ActivationStatistics:
    """Statistics of both sets of rows."""
    if not second.rows or not first.rows:
        return first if first.rows else second
    rows = first.rows + second.rows
    step = second.mean - first.mean
    norms, largest = _largest(
        np.append(first.largest_norms, second.largest_norms), np.append(first.largest_rows, second.largest_rows)
    )
    return ActivationStatistics(
        rows=rows,
        mean=first.mean + step * (second.rows / rows),
        spread=first.spread + second.spread + step**2 * (first.rows * second.rows / rows),
        storage_error=first.storage_error + second.storage_error,
        norm_counts=first.norm_counts + second.norm_counts,
        largest_norms=norms,
        largest_rows=largest,
    )


def unpack(numbers: Float64[np.ndarray, " packed"], *, d_source: int, d_target: int) -> GroupStatistics:
    """The inverse of ``pack`` for a row of the ``statistics`` array: source, then target."""
    assert len(numbers) == statistics_width(d_source, d_target)
    end = _FIXED + 2 * d_source
    target = _unpack_activations(numbers[end:], d_target) if d_target else None
    return GroupStatistics(_unpack_activations(numbers[:end], d_source), target)


def _unpack_activations(numbers: Float64[np.ndarray, " packed"], width: int) -> ActivationStatistics:
    sizes = [1, width, width, 1, HISTOGRAM_BINS, LARGEST, LARGEST]
    rows, mean, spread, error, counts, norms, largest = np.split(numbers, np.cumsum(sizes)[:-1])
    return ActivationStatistics(
        rows=int(rows[0]),
        mean=mean,
        spread=spread,
        storage_error=float(error[0]),
        norm_counts=counts.astype(np.int64),
        largest_norms=norms,
        largest_rows=largest.astype(np.int64),
    )


def merge_groups(segments: list[GroupStatistics]) -> GroupStatistics:
    """Statistics of the rows of all segments, merged in the order given. ``segments`` is not empty."""
    source = segments[0].source
    target = segments[0].target
    for segment in segments[1:]:
        source = merge(source, segment.source)
        target = merge(target, segment.target) if target and segment.target else None
    return GroupStatistics(source, target)


assert len(fields(ActivationStatistics)) == 7, "pack and unpack list every field"
