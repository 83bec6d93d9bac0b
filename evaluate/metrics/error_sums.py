"""Squared errors and cosines of a batch, of every row and of every dimension, in one pass over the reconstructions.

The pass goes by short runs of rows of one document, so that what is made of them never leaves a CPU's caches. The
difference between target and reconstruction is made once: its norm gives every row's error, the sum of its squares over
rows every dimension's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_RUN_VALUES = 1 << 18
"""Reconstructed numbers of one run on a CPU: 1 MB. On a GPU a run is as long as its document."""
# Shorter runs spend more time in calls than in arithmetic.
_LEAST_RUN_ROWS = 32


@dataclass(frozen=True)
class ErrorSums:
    """Of every row: ``squares`` ||y - c||^2, ``errors`` ||y - yhat_p||^2, ``cosines``. Of every document of the batch,
    by dimension: sums of y - c, of its square, and of the squared error."""

    squares: Float[Tensor, " rows"]
    errors: Float[Tensor, "rows prefixes"]
    cosines: Float[Tensor, "rows prefixes"]
    away: Float[Tensor, "documents d_target"]
    variance: Float[Tensor, "documents d_target"]
    errors_by_dimension: Float[Tensor, "documents prefixes d_target"]


@dataclass(frozen=True)
class DistanceSums:
    """``squares`` ||y - c||^2 of every row; over all rows, by dimension, sums of y - c and of its square."""

    squares: Float[Tensor, " rows"]
    away: Float[Tensor, " d_target"]
    variance: Float[Tensor, " d_target"]


def distance_sums(target: Float[Tensor, "rows d_target"], centre: Float[Tensor, " d_target"]) -> DistanceSums:
    """How far rows lie from ``centre``, in float64, by blocks of rows that stay in a CPU's caches."""
    step = max(1, len(target) if target.is_cuda else _RUN_VALUES // target.shape[1])
    blocks = [_distances(rows, centre.double()) for rows in target.split(step)]
    return DistanceSums(
        squares=torch.cat([block.squares for block in blocks]),
        away=torch.stack([block.away for block in blocks]).sum(dim=0),
        variance=torch.stack([block.variance for block in blocks]).sum(dim=0),
    )


def _distances(y: Float[Tensor, "rows d_target"], centre: Float[Tensor, " d_target"]) -> DistanceSums:
    centred = y.double() - centre
    away = _over_rows(centred)
    centred.square_()
    return DistanceSums(centred.sum(dim=1), away, _over_rows(centred))


def error_sums(
    reconstructed: Float[Tensor, "rows prefixes d_target"],
    target: Float[Tensor, "rows d_target"],
    document_index: Int[Tensor, " rows"],
    *,
    documents: int,
    centre: Float[Tensor, " d_target"],
) -> ErrorSums:
    """``document_index`` is each row's document in the batch, 0 to ``documents`` - 1; ``centre`` is c."""
    centre = centre.double()
    width = target.shape[1]
    prefixes = reconstructed.shape[1]
    away = torch.zeros(documents, width, dtype=torch.float64, device=target.device)
    variance = torch.zeros_like(away)
    by_dimension = torch.zeros(documents, prefixes, width, dtype=torch.float64, device=target.device)
    squares: list[Tensor] = []
    errors: list[Tensor] = []
    cosines: list[Tensor] = []

    for document, rows in _runs(document_index, width=prefixes * width):
        y = target[rows]
        predicted = reconstructed[rows]

        distances = _distances(y, centre)
        away[document] += distances.away
        variance[document] += distances.variance
        squares.append(distances.squares)

        difference = predicted - y[:, None]
        # Norms, not sums of squares: PyTorch adds a norm's squares in a way that keeps float32's last digits.
        errors.append(torch.linalg.vector_norm(difference, dim=2))
        by_dimension[document] += _over_rows(difference.square_())
        cosines.append(_cosines(predicted, y))

    return ErrorSums(
        squares=torch.cat(squares),
        errors=torch.cat(errors).double().square_(),
        cosines=torch.cat(cosines),
        away=away,
        variance=variance,
        errors_by_dimension=by_dimension,
    )


def _over_rows(values: Float[Tensor, "rows ..."]) -> Float[Tensor, "..."]:
    """The sum over rows, as a matrix product: several times as fast on a CPU as ``sum(dim=0)``."""
    return (values.new_ones(len(values)) @ values.flatten(1)).view(values.shape[1:])


def _cosines(
    predicted: Float[Tensor, "rows prefixes d_target"], y: Float[Tensor, "rows d_target"]
) -> Float[Tensor, "rows prefixes"]:
    """Of every row and prefix; 0 where either vector is 0."""
    along = (predicted * y[:, None]).sum(dim=2)
    lengths = torch.linalg.vector_norm(predicted, dim=2).double() * torch.linalg.vector_norm(y, dim=1)[:, None]
    return along / lengths.clamp_min_(torch.finfo(torch.float32).tiny)


def _runs(document_index: Int[Tensor, " rows"], *, width: int) -> Iterator[tuple[int, slice]]:
    """Neighbouring rows of one document, in order: the document's number and the rows."""
    numbers = document_index.cpu().numpy()
    changes = np.flatnonzero(np.diff(numbers)) + 1
    longest = max(1, len(numbers)) if document_index.is_cuda else max(_LEAST_RUN_ROWS, _RUN_VALUES // width)
    for start, end in zip([0, *changes.tolist()], [*changes.tolist(), len(numbers)], strict=True):
        for first in range(start, end, longest):
            yield int(numbers[start]), slice(first, min(first + longest, end))
