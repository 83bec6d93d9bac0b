"""How much of the variance a few rows and a few dimensions have: whether a number such as FVU is about all tokens.

With x_t the N rows whose token is not special, and m their mean:

    of a row          w_t = ||x_t - m||^2              share of the largest k rows  = sum of their w_t / sum of all w_t
    of a dimension    v_j = sum over t (x_tj - m_j)^2  share of the largest k dims  = sum of their v_j / sum of all v_j

Both sums of all are the total sum of squares, by which FVU is divided. In some language models a dozen ordinary tokens
and two dimensions have most of it: then FVU, and a loss that is a sum of squared errors, are only about those.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64

from cache.format.layout import ActivationName
from cache.reader import CacheReader, SplitView
from common.errors import UsageError

ROW_FRACTIONS = (0.0001, 0.001, 0.01)
"""Shares are reported for the largest 0.01, 0.1 and 1 % of the rows."""
DIMENSIONS = (1, 2, 10)
"""Shares are reported for the largest 1, 2 and 10 dimensions."""
NAMED_ROWS = 10
"""How many of the largest rows are listed: enough to see whether they are the same token."""
_BLOCK_ROWS = 8192
"""Rows that are converted to float64 at a time: 150 MB at a width of 2,304."""
RULED_BY_ROWS = 0.25
"""A quarter of the variance in a thousandth of the rows is 250 times an even share; usual layers have 1 to 2 %."""
RULED_BY_DIMENSIONS = 0.5
"""Half of the variance in two dimensions out of hundreds; in usual layers they have a few per cent."""


@dataclass(frozen=True)
class LargeRow:
    """One of the rows with the largest share of the variance."""

    row: int
    token: int
    document: int
    position: int
    norm: float
    share: float


@dataclass(frozen=True)
class Concentration:
    """Shares of the variance of ``rows`` rows of ``width`` dimensions.

    ``row_shares`` are those of the largest 0.01, 0.1 and 1 % of rows (at least one), by fraction; ``dimension_shares``
    those of the largest 1, 2 and 10 dimensions, by count. ``largest_dimensions`` are (dimension, share), largest first.
    """

    column: ActivationName
    split: str
    rows: int
    width: int
    row_shares: dict[float, float]
    dimension_shares: dict[int, float]
    largest_rows: tuple[LargeRow, ...]
    largest_dimensions: tuple[tuple[int, float], ...]

    @property
    def warning(self) -> str:
        """One line if a few rows or dimensions have most of the variance, else ''."""
        found: list[str] = []
        count = max(1, round(ROW_FRACTIONS[1] * self.rows))
        if self.rows >= 1000 and self.row_shares[ROW_FRACTIONS[1]] > RULED_BY_ROWS:
            found.append(f"{count:,} of {self.rows:,} rows have {self.row_shares[ROW_FRACTIONS[1]]:.0%}")
        # With few dimensions two of them have much of the variance anyway; so have few rows of a small cache.
        if self.width >= 20 and self.dimension_shares[DIMENSIONS[1]] > RULED_BY_DIMENSIONS:
            numbers = " and ".join(str(dimension) for dimension, _ in self.largest_dimensions[:2])
            found.append(f"dimensions {numbers} of {self.width} have {self.dimension_shares[DIMENSIONS[1]]:.0%}")
        if not found:
            return ""
        shares = ", ".join(found)
        return f"A few rows or dimensions have most of the {self.column}'s variance: {shares}. FVU is about them."


def concentration(
    reader: CacheReader,
    *,
    column: ActivationName = "target",
    split: Literal["train", "held_out"] = "train",
    limit_rows: int | None = None,
) -> Concentration:
    """How concentrated the variance of ``column`` is, over the split's rows without special tokens, in float64.

    With ``limit_rows``, over that many first rows: training rows are shuffled within their segment, so these are a
    sample. Raises UsageError when no row is left, DamagedError.
    """
    view = reader.split(split)
    count = len(view) if limit_rows is None else min(limit_rows, len(view))
    index = np.arange(count, dtype=np.int64)
    index = index[view.is_ordinary(view.tokens[:count])]
    if not len(index):
        raise UsageError(f"The cache has no {split} rows to measure.", where=reader.path)

    # The exact statistics of all training rows have the mean already; for other rows, a pass computes it.
    mean = _mean(reader, view, column, index, all_rows=split == "train" and count == len(view))
    rows = np.empty(len(index))
    dimensions: Float64[np.ndarray, " width"] = np.zeros(len(mean))
    for start, block in _blocks(view, column, index):
        squares = np.square(block.double().cpu().numpy() - mean)
        rows[start : start + len(squares)] = squares.sum(axis=1)
        dimensions += squares.sum(axis=0)
    return _from_sums(view, column, index, rows=rows, dimensions=dimensions)


def _mean(
    reader: CacheReader, view: SplitView, column: ActivationName, index: Int64[np.ndarray, " rows"], *, all_rows: bool
) -> Float64[np.ndarray, " width"]:
    if all_rows:
        statistics = reader.statistics.source if column == "source" else reader.statistics.target
        if statistics is not None:
            return statistics.mean
    sums = [block.double().sum(dim=0).cpu().numpy() for _, block in _blocks(view, column, index)]
    return np.sum(sums, axis=0) / len(index)


def _blocks(
    view: SplitView, column: ActivationName, index: Int64[np.ndarray, " rows"]
) -> Iterator[tuple[int, Float[torch.Tensor, "rows width"]]]:
    """The rows in blocks of some thousand, each with the position of its first row in ``index``."""
    for start in range(0, len(index), _BLOCK_ROWS):
        chosen = index[start : start + _BLOCK_ROWS]
        if column in view.columns:
            yield start, view.gather(column, chosen)
        else:
            yield start, view.activations(chosen)[1]


def _from_sums(
    view: SplitView,
    column: ActivationName,
    index: Int64[np.ndarray, " rows"],
    *,
    rows: Float64[np.ndarray, " rows"],
    dimensions: Float64[np.ndarray, " width"],
) -> Concentration:
    total = float(rows.sum()) or 1.0  # constant rows have no variance, and every share is 0
    by_row = np.sort(rows)[::-1].cumsum() / total
    by_dimension = np.sort(dimensions)[::-1].cumsum() / total
    largest = np.argsort(-rows, kind="stable")[:NAMED_ROWS]
    numbers = index[largest]
    largest_dimensions = np.argsort(-dimensions, kind="stable")[: DIMENSIONS[-1]]
    norms = torch.cat([block.double().norm(dim=1).cpu() for _, block in _blocks(view, column, numbers)])
    return Concentration(
        column=column,
        split=view.group.name,
        rows=len(rows),
        width=len(dimensions),
        row_shares={fraction: float(by_row[max(1, round(fraction * len(rows))) - 1]) for fraction in ROW_FRACTIONS},
        dimension_shares={count: float(by_dimension[min(count, len(dimensions)) - 1]) for count in DIMENSIONS},
        largest_rows=tuple(
            LargeRow(
                row=int(number),
                token=int(view.tokens[number]),
                document=int(view.document[number]),
                position=int(view.position[number]),
                norm=float(norm),
                share=float(rows[rank] / total),
            )
            for number, rank, norm in zip(numbers, largest, norms, strict=True)
        ),
        largest_dimensions=tuple(
            (int(dimension), float(dimensions[dimension] / total)) for dimension in largest_dimensions
        ),
    )
