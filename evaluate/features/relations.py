"""What features have to do with each other: directions, rows that they share, and what nesting says.

With n(f) the firings of f, n(f, g) the rows on which both fire, and N the rows counted:

    lift(f, g)     = n(f, g) N / (n(f) n(g))            1 where they fire independently
    overlap(f, g)  = n(f, g) / (n(f) + n(g) - n(f, g))  Jaccard's index, by which co-firing features are ranked
    given(f, g)    = n(f, g) / n(f)                     P(g fires | f fires)

The coarser relatives of f are the features g of shorter prefixes that its firing makes likelier, ranked by
given(f, g) - n(g) / N. The first of them is f's parent, and f is one of the parent's finer children.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.features.code import Code
from evaluate.features.firings import Firings

NO_FEATURE = -1
"""Where a feature has fewer neighbours."""
_BLOCK_BYTES = 1 << 26
"""Of the table of cosines that is in memory at a time."""
_COUNTED_ROWS = 1 << 16
"""Rows of a feature whose entries are counted at a time."""


@dataclass(frozen=True)
class Neighbours:
    """For every feature other features, best first, and the score that ranks them; -1 and 0 where there are fewer."""

    feature: Int[np.ndarray, "features neighbours"]
    score: Float[np.ndarray, "features neighbours"]


@dataclass(frozen=True)
class Shared:
    """Features that fire on the same rows: ``near`` by overlap, ``coarser`` by what f's firing adds to their chance.

    The counts are n(f, g) of the feature named in the same place.
    """

    near: Neighbours
    near_count: Int[np.ndarray, "features neighbours"]
    coarser: Neighbours
    coarser_count: Int[np.ndarray, "features neighbours"]


def nearest_by_cosine(directions: Float[Tensor, "features width"], count: int) -> Neighbours:
    """The ``count`` other features whose directions have the largest cosine with each one's."""
    unit = torch.nn.functional.normalize(directions.float(), dim=1)
    count = min(count, len(unit) - 1)
    rows = max(1, _BLOCK_BYTES // (4 * len(unit)))
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(unit), rows):
        cosine = unit[start : start + rows] @ unit.T
        own = torch.arange(len(cosine), device=cosine.device)
        cosine[own, own + start] = -torch.inf
        best = cosine.topk(count, dim=1)
        found.append((best.indices.cpu(), best.values.cpu()))
    indices, values = (torch.cat(column).numpy() for column in zip(*found, strict=True))
    return Neighbours(indices.astype(np.int64), values)


def cosines(
    directions: Float[Tensor, "features width"], neighbours: Int[np.ndarray, "features neighbours"]
) -> Float[np.ndarray, "features neighbours"]:
    """The cosine of every feature's direction with those of ``neighbours``; 0 where that is -1."""
    unit = torch.nn.functional.normalize(directions.float(), dim=1).cpu()
    columns = [(unit * unit[torch.from_numpy(np.maximum(column, 0))]).sum(dim=1).numpy() for column in neighbours.T]
    return np.where(neighbours == NO_FEATURE, np.float32(0), np.stack(columns, axis=1))


def shared_rows(code: Code, firings: Firings, prefixes: Sequence[int], count: int) -> Shared:
    """Count the rows on which two features both fire, one feature at a time, and keep the best pairs."""
    starts = np.searchsorted(code.row, np.arange(int(code.row.max(initial=-1)) + 2))
    group = np.searchsorted(prefixes, np.arange(firings.dict_size), side="right")
    near = _Table.empty(firings.dict_size, count)
    coarser = _Table.empty(firings.dict_size, count)
    for feature in np.flatnonzero(firings.counts).tolist():
        both = pair_counts(code, starts, firings, feature)
        both[feature] = 0
        sharing = np.flatnonzero(both)
        rows = both[sharing]
        own = firings.counts[feature]
        counts = firings.counts[sharing]
        near.keep(feature, sharing, rows, score=rows / (own + counts - rows))
        added = rows / own - counts / code.tokens
        coarser.keep(feature, sharing, rows, score=np.where(group[sharing] < group[feature], added, 0))
    return Shared(near.neighbours, near.count, coarser.neighbours, coarser.count)


def pair_counts(
    code: Code, starts: Int[np.ndarray, " rows_plus_one"], firings: Firings, feature: int
) -> Int[np.ndarray, " features"]:
    """n(f, g) of one feature f and every g; n(f, f) is n(f). Row r's entries in the code begin at ``starts[r]``."""
    row = firings.row[firings.offsets[feature] : firings.offsets[feature + 1]]
    counts = np.zeros(firings.dict_size, dtype=np.int64)
    # A feature that fires nearly everywhere would need the place of every entry of the code in memory.
    for piece in np.array_split(row, len(row) // _COUNTED_ROWS + 1):
        length = starts[piece + 1] - starts[piece]
        first = np.repeat(starts[piece] - (np.cumsum(length) - length), length)
        counts += np.bincount(code.feature[first + np.arange(len(first))], minlength=firings.dict_size)
    return counts


@dataclass(frozen=True)
class _Table:
    """The best others of every feature, filled feature by feature."""

    neighbours: Neighbours
    count: Int[np.ndarray, "features neighbours"]

    @staticmethod
    def empty(features: int, count: int) -> "_Table":
        shape = (features, count)
        nobody = Neighbours(np.full(shape, NO_FEATURE, dtype=np.int64), np.zeros(shape, dtype=np.float32))
        return _Table(nobody, np.zeros(shape, dtype=np.int64))

    def keep(
        self,
        feature: int,
        candidates: Int[np.ndarray, " others"],
        rows: Int[np.ndarray, " others"],
        *,
        score: Float[np.ndarray, " others"],
    ) -> None:
        """The others of largest score above 0, best first; of equals the lower number. ``candidates`` ascends."""
        wanted = self.count.shape[1]
        if len(score) > wanted:
            # All that are as good as the last one wanted, so that the order of equals stays the same everywhere.
            last_wanted = np.partition(score, len(score) - wanted)[len(score) - wanted]
            chosen = np.flatnonzero((score >= last_wanted) & (score > 0))
        else:
            chosen = np.flatnonzero(score > 0)
        best = chosen[np.argsort(-score[chosen], kind="stable")][:wanted]
        self.neighbours.feature[feature, : len(best)] = candidates[best]
        self.neighbours.score[feature, : len(best)] = score[best]
        self.count[feature, : len(best)] = rows[best]


def children_of(parent: Int[np.ndarray, " features"]) -> dict[int, list[int]]:
    """The features that name each feature as their parent, ascending."""
    children: dict[int, list[int]] = {}
    for feature in np.flatnonzero(parent != NO_FEATURE).tolist():
        children.setdefault(int(parent[feature]), []).append(feature)
    return children
