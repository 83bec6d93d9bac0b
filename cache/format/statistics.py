"""Exact statistics of the stored rows: accumulated in float64 as a segment is written, merged when it is read.

Of each side (source, target), over the rows whose token is not special, with x the stored values:

    rows     n
    mean     m_j = sum x_j / n
    spread   s_j = sum (x_j - m_j)^2                    merged by Chan, Golub, LeVeque (1979)
    floor    sum ||x_model - x||^2                      what storing lost
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

HISTOGRAM_BINS = 64
LARGEST = 8
_BLOCK_VALUES = 1 << 18
"""Values that are widened to float64 at a time: 2 MB, which stay in the processor's cache until they are summed."""
_PIECE_BLOCKS = 16
_THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))
"""Of each side; both are measured at once, beside the thread that writes."""
_FIXED = 2 + HISTOGRAM_BINS + 2 * LARGEST


def statistics_width(d_source: int, d_target: int) -> int:
    """Numbers that a segment's statistics take: of the source, then of the target (unless it has no width)."""
    return sum(_FIXED + 2 * width for width in (d_source, d_target) if width)


@dataclass(frozen=True)
class SideStatistics:
    """Statistics of one side. ``rows`` counts rows without special tokens; vectors are (width,), in original units."""

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
        """FVU that storing alone causes: squared error of the stored values over TSS."""
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
    """Statistics of both sides; ``target`` is None when the cache stores no target."""

    source: SideStatistics
    target: SideStatistics | None


def empty_side(width: int) -> SideStatistics:
    """Statistics of no rows."""
    zeros = np.zeros(width)
    norms = np.full(LARGEST, -1.0)
    rows = np.full(LARGEST, -1, np.int64)
    return SideStatistics(0, zeros, zeros, 0.0, np.zeros(HISTOGRAM_BINS, np.int64), norms, rows)


def measure(
    stored: Float[Tensor, "rows width"],
    *,
    kept: Bool[np.ndarray, " rows"],
    first: int,
    error: Float64[np.ndarray, " rows"],
) -> SideStatistics:
    """Statistics of the ``kept`` rows among ``stored``, which begins at row ``first``; ``error`` is what storing lost.

    In float64, from sums of values and squares: a spread is exact to 2^-52 times (1 + its squared mean over variance).
    """
    sums, squares = _sums(stored, ~kept)
    rows = int(kept.sum())
    mean = sums[0] / max(1, rows)
    spread = np.maximum(sums[1] - rows * mean**2, 0.0)
    norms = np.sqrt(squares[kept])
    counts = np.bincount(_bins(norms), minlength=HISTOGRAM_BINS).astype(np.int64)
    none = empty_side(1)  # where there are fewer than LARGEST rows, absent ones fill up
    numbers = np.flatnonzero(kept) + first
    norms, numbers = _largest(np.append(none.largest_norms, norms), np.append(none.largest_rows, numbers))
    return SideStatistics(rows, mean, spread, float(error[kept].sum()), counts, norms, numbers)


def _sums(
    stored: Float[Tensor, "rows width"], dropped: Bool[np.ndarray, " rows"]
) -> tuple[Float64[np.ndarray, "2 width"], Float64[np.ndarray, " rows"]]:
    """Sums over rows of the values and of their squares, without the dropped rows, and every row's sum of squares.

    Several threads sum a piece each; pieces are blocks that are added up in their order, so the result is of no thread.
    """
    block_rows = max(1, _BLOCK_VALUES // stored.shape[1])
    piece_rows = _PIECE_BLOCKS * block_rows
    squares = torch.empty(len(stored), dtype=torch.float64)
    pieces = [slice(start, start + piece_rows) for start in range(0, len(stored), piece_rows)]

    def of_piece(rows: slice) -> Iterator[Float64[np.ndarray, "2 width"]]:
        return _block_sums(stored[rows], dropped[rows], squares=squares[rows], block_rows=block_rows)

    def in_a_thread(rows: slice) -> list[Float64[np.ndarray, "2 width"]]:
        return list(of_piece(rows))

    sums = np.zeros((2, stored.shape[1]))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="sums") as pool:
        for blocks in pool.map(in_a_thread, pieces) if _THREADS > 1 else map(of_piece, pieces):
            for block in blocks:
                sums += block
    return sums, squares.numpy()


def _block_sums(
    stored: Float[Tensor, "rows width"],
    dropped: Bool[np.ndarray, " rows"],
    *,
    squares: Float64[Tensor, " rows"],
    block_rows: int,
) -> Iterator[Float64[np.ndarray, "2 width"]]:
    """The sums of each block of rows; ``squares`` is filled on the way."""
    # Blocks that stay in the processor's cache while they are widened and summed, in memory that is used again.
    wide = torch.empty(block_rows, stored.shape[1], dtype=torch.float64)
    for start in range(0, len(stored), block_rows):
        values = stored[start : start + block_rows]
        rows = slice(start, start + len(values))
        block = wide[: len(values)].copy_(values)
        for row in np.flatnonzero(dropped[rows]).tolist():
            block[row] = 0
        torch.linalg.vecdot(block, block, out=squares[rows])
        yield np.stack([block.sum(dim=0).numpy(), np.einsum("ij,ij->j", block.numpy(), block.numpy())])


def _bins(norms: Float64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    octaves = np.log2(np.maximum(norms, 2.0**-40))
    return np.clip(np.floor(2 * octaves) + HISTOGRAM_BINS // 2, 0, HISTOGRAM_BINS - 1).astype(np.int64)


def _largest(
    norms: Float64[np.ndarray, " n"], rows: Int64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " largest"], Int64[np.ndarray, " largest"]]:
    order = np.lexsort((rows, -norms))[:LARGEST]
    return norms[order], rows[order]


def merge(first: SideStatistics, second: SideStatistics) -> SideStatistics:
    """Statistics of both sets of rows."""
    if not second.rows or not first.rows:
        return first if first.rows else second
    rows = first.rows + second.rows
    step = second.mean - first.mean
    norms, largest = _largest(
        np.append(first.largest_norms, second.largest_norms), np.append(first.largest_rows, second.largest_rows)
    )
    return SideStatistics(
        rows=rows,
        mean=first.mean + step * (second.rows / rows),
        spread=first.spread + second.spread + step**2 * (first.rows * second.rows / rows),
        storage_error=first.storage_error + second.storage_error,
        norm_counts=first.norm_counts + second.norm_counts,
        largest_norms=norms,
        largest_rows=largest,
    )


def unpack(numbers: Float64[np.ndarray, " packed"], *, d_source: int, d_target: int) -> GroupStatistics:
    """The inverse of ``pack`` for a whole line of the ``statistics`` array."""
    assert len(numbers) == statistics_width(d_source, d_target)
    end = _FIXED + 2 * d_source
    target = _unpack_side(numbers[end:], d_target) if d_target else None
    return GroupStatistics(_unpack_side(numbers[:end], d_source), target)


def _unpack_side(numbers: Float64[np.ndarray, " packed"], width: int) -> SideStatistics:
    sizes = [1, width, width, 1, HISTOGRAM_BINS, LARGEST, LARGEST]
    rows, mean, spread, error, counts, norms, largest = np.split(numbers, np.cumsum(sizes)[:-1])
    return SideStatistics(
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


assert len(fields(SideStatistics)) == 7, "pack and unpack list every field"
