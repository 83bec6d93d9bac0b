"""How well batches are mixed, compared with a uniform shuffle of the same rows.

With n_d rows of document d among N, and a batch of B rows:

    distinct documents    ideal = sum over d of 1 - C(N - n_d, B) / C(N, B)
    same-document pairs   ideal = sum over d of n_d (n_d - 1) / (N (N - 1))

The score is the mean number of distinct documents of real batches divided by the ideal: 1 is a uniform shuffle.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

Documents = Int64[np.ndarray, " rows"]


@dataclass(frozen=True)
class Mixing:
    """Means over ``batches`` batches of ``batch_rows`` rows; ``pairs`` is the share of row pairs of one document."""

    batch_rows: int
    batches: int
    distinct: float
    distinct_ideal: float
    pairs: float
    pairs_ideal: float

    @property
    def score(self) -> float:
        """Distinct documents of a batch over those of a uniform shuffle."""
        return self.distinct / self.distinct_ideal


def measure_mixing(documents: Documents, batches: Iterable[Int64[np.ndarray, " batch"]]) -> Mixing:
    """Score batches, given as row numbers into ``documents``: at least one batch, all of one size."""
    distinct = list[int]()
    pairs = list[float]()
    rows = 0
    for batch in batches:
        rows = len(batch)
        counts = np.unique(documents[batch], return_counts=True)[1]
        distinct.append(len(counts))
        pairs.append(_same_pairs(counts.astype(np.float64), rows))
    counts = np.unique(documents, return_counts=True)[1].astype(np.float64)
    return Mixing(
        batch_rows=rows,
        batches=len(distinct),
        distinct=float(np.mean(distinct)),
        distinct_ideal=_expected_distinct(counts, rows),
        pairs=float(np.mean(pairs)),
        pairs_ideal=_same_pairs(counts, len(documents)),
    )


def _same_pairs(counts: Float64[np.ndarray, " documents"], rows: int) -> float:
    return float((counts * (counts - 1)).sum() / max(1, rows * (rows - 1)))


def _expected_distinct(counts: Float64[np.ndarray, " documents"], batch_rows: int) -> float:
    """Expected documents in ``batch_rows`` rows drawn without replacement from documents of these sizes."""
    sizes, times = np.unique(counts, return_counts=True)
    total = int(counts.sum())
    all_batches = _log_choose(total, batch_rows)
    absent = [math.exp(_log_choose(total - int(size), batch_rows) - all_batches) for size in sizes]
    return float((times * (1 - np.array(absent))).sum())


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) if k <= n else -math.inf
