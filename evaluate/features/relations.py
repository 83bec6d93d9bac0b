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
_BLOCK_BYTES = 1 << 26
"""Of the table of counts or cosines that is in memory at a time."""
_PAIRS = 1 << 22
"""Pairs of entries counted at a time."""


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
    directions: Float[Tensor, "features width"], other: Int[np.ndarray, "features neighbours"]
) -> Float[np.ndarray, "features neighbours"]:
    """The cosine of every feature's direction with those of ``other``; 0 where that is -1."""
    unit = torch.nn.functional.normalize(directions.float(), dim=1).cpu()
    columns = [(unit * unit[torch.from_numpy(np.maximum(column, 0))]).sum(dim=1).numpy() for column in other.T]
    return np.where(other == NO_FEATURE, np.float32(0), np.stack(columns, axis=1))


def shared_rows(code: Code, firings: Firings, prefixes: Sequence[int], count: int) -> Shared:
    """Count every pair of features that fires on one row, some features at a time, and keep the best pairs."""
    rows = RowStarts.of(code)
    block = max(1, _BLOCK_BYTES // (8 * firings.dict_size))
    near: list[_Best] = []
    coarser: list[_Best] = []
    for start in range(0, firings.dict_size, block):
        features = range(start, min(start + block, firings.dict_size))
        both = pair_counts(code, rows, firings, features)
        near.append(_best(_overlap(both, firings, features), both, count))
        coarser.append(_best(_added(both, firings, features, prefixes, tokens=code.tokens), both, count))
    return Shared(*_joined(near), *_joined(coarser))


_Best = tuple[Neighbours, np.ndarray]
"""The best of some features and the n(f, g) of each, of the same shape."""


def _overlap(both: Int[np.ndarray, "some features"], firings: Firings, features: range) -> np.ndarray:
    """Jaccard's index of each of ``features`` with every feature; 0 with itself."""
    own = firings.counts[features.start : features.stop, None]
    overlap = both / np.maximum(1, own + firings.counts - both)
    overlap[np.arange(len(features)), np.array(features)] = 0
    return overlap


def _added(
    both: Int[np.ndarray, "some features"], firings: Firings, features: range, prefixes: Sequence[int], *, tokens: int
) -> np.ndarray:
    """given(f, g) - n(g) / N for features g of shorter prefixes than f's; 0 for others and where they never meet."""
    own = firings.counts[features.start : features.stop, None]
    added = both / np.maximum(1, own) - firings.counts / tokens
    group = np.searchsorted(prefixes, np.arange(firings.dict_size), side="right")
    not_coarser = group[features.start : features.stop, None] <= group
    added[not_coarser | (both == 0)] = 0
    return added


@dataclass(frozen=True)
class RowStarts:
    """Row r's entries in a code are ``start[r]:start[r + 1]``."""

    start: Int[np.ndarray, " rows_plus_one"]

    @staticmethod
    def of(code: Code) -> "RowStarts":
        """Of a code whose rows ascend."""
        return RowStarts(np.searchsorted(code.row, np.arange(int(code.row.max(initial=-1)) + 2)))


def pair_counts(code: Code, rows: RowStarts, firings: Firings, features: range) -> Int[np.ndarray, "some features"]:
    """n(f, g) for the ``features`` f and every g; n(f, f) is n(f)."""
    entries = slice(int(firings.offsets[features.start]), int(firings.offsets[features.stop]))
    row = firings.row[entries].astype(np.int64)
    owner = (firings.feature[entries] - features.start).astype(np.int64) * firings.dict_size
    length = rows.start[row + 1] - rows.start[row]
    ends = np.cumsum(length)

    table = np.zeros(len(features) * firings.dict_size, dtype=np.int64)
    start = 0
    while start < len(row):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS, side="right")))
        some = length[start:stop]
        place = np.arange(int(some.sum())) - np.repeat(np.cumsum(some) - some, some)
        other = code.feature[np.repeat(rows.start[row[start:stop]], some) + place]
        np.add.at(table, np.repeat(owner[start:stop], some) + other, 1)
        start = stop
    return table.reshape(len(features), firings.dict_size)


def _best(score: Float[np.ndarray, "some features"], both: Int[np.ndarray, "some features"], count: int) -> _Best:
    """The ``count`` features of largest score above 0; of equals the lower number."""
    owner, feature = np.nonzero(score > 0)
    order = np.lexsort((feature, -score[owner, feature], owner))
    place = np.arange(len(order)) - np.searchsorted(owner, np.arange(len(score)))[owner]
    kept = order[place < count]
    where = (owner[kept], place[place < count])

    neighbours = np.full((len(score), count), NO_FEATURE, dtype=np.int64)
    scores = np.zeros((len(score), count), dtype=np.float32)
    counts = np.zeros((len(score), count), dtype=np.int64)
    neighbours[where] = feature[kept]
    scores[where] = score[owner[kept], feature[kept]]
    counts[where] = both[owner[kept], feature[kept]]
    return Neighbours(neighbours, scores), counts


def _joined(parts: Sequence[_Best]) -> _Best:
    neighbours = Neighbours(
        np.concatenate([found.feature for found, _ in parts]), np.concatenate([found.score for found, _ in parts])
    )
    return neighbours, np.concatenate([counts for _, counts in parts])


def children_of(parent: Int[np.ndarray, " features"]) -> dict[int, list[int]]:
    """The features that name each feature as their parent, ascending."""
    children: dict[int, list[int]] = {}
    for feature in np.flatnonzero(parent != NO_FEATURE).tolist():
        children.setdefault(int(parent[feature]), []).append(feature)
    return children
