"""The entries of a sparse code feature by feature, and what can be counted in them: how often, how strongly, where.

    density(f)       = rows on which f fires / rows counted
    histogram(f)[b]  = firings with value in (b w, (b + 1) w],  w = largest(f) / bins
    percentile(f)[q] = the smallest value that at least q % of f's firings do not exceed

Intervals of activation are the same as a histogram of a few bins. Everything is exact.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from evaluate.features.code import Code
from evaluate.metrics.metric import mixed

# Bars that a page has room for; stretches of 16 tokens in a context of 256; every whole per cent.
HISTOGRAM_BINS = 40
POSITION_BINS = 16
PERCENTILES = np.arange(1, 100)


@dataclass(frozen=True)
class Firings:
    """Feature f owns the slice ``offsets[f]:offsets[f + 1]`` of the other columns, in which rows ascend."""

    offsets: Int[np.ndarray, " features_plus_one"]
    row: Int[np.ndarray, " entries"]
    value: Float[np.ndarray, " entries"]
    lost: Float[np.ndarray, " entries"]
    lost_prefix: Float[np.ndarray, " entries"]

    @property
    def dict_size(self) -> int:
        """How many features there are, silent ones too."""
        return len(self.offsets) - 1

    @cached_property
    def counts(self) -> Int[np.ndarray, " features"]:
        """Rows on which each feature fires."""
        return np.diff(self.offsets)

    @cached_property
    def feature(self) -> Int[np.ndarray, " entries"]:
        """The feature of every entry."""
        return np.repeat(np.arange(self.dict_size, dtype=np.int32), self.counts)

    @cached_property
    def largest(self) -> Float[np.ndarray, " features"]:
        """The largest value of each feature; 0 where it never fires."""
        return self._reduced(np.maximum, self.value)

    def sums(self, column: Float[np.ndarray, " entries"]) -> Float[np.ndarray, " features"]:
        """A column summed by feature, in float64 and in the order of the rows."""
        # Of no entry at all bincount makes whole numbers, whatever the weights.
        return np.bincount(self.feature, weights=column, minlength=self.dict_size).astype(np.float64)

    def bins(self, count: int) -> Int[np.ndarray, " entries"]:
        """The bin of every entry, the values from 0 to the feature's largest being cut into ``count`` equal bins."""
        share = self.value.astype(np.float64) / self.largest.astype(np.float64)[self.feature]
        return np.clip(np.ceil(share * count) - 1, 0, count - 1).astype(np.int64)

    def tally(self, bins: Int[np.ndarray, " entries"], count: int) -> Int[np.ndarray, "features {count}"]:
        """How many entries of each feature lie in each of ``count`` bins."""
        key = self.feature.astype(np.int64) * count + bins
        return np.bincount(key, minlength=self.dict_size * count).reshape(-1, count)

    @cached_property
    def by_value(self) -> Int[np.ndarray, " entries"]:
        """Entries feature by feature, weakest first; of equals, the earlier row first."""
        # Positive floats order as their bits do, so one sort of integers does for both keys.
        bits = self.value.astype(np.float32).view(np.int32).astype(np.int64)
        return np.argsort(self.feature.astype(np.int64) << 32 | bits, kind="stable")

    def percentiles(self, percents: Int[np.ndarray, " percents"]) -> Float[np.ndarray, "features percents"]:
        """Of the values with which each feature fires; 0 where it never does."""
        rank = np.ceil(self.counts[:, None] * percents / 100).astype(np.int64) - 1
        index = self.offsets[:-1, None] + np.clip(rank, 0, None)
        ordered = np.append(self.value[self.by_value], np.float32(0))
        return ordered[np.where(self.counts[:, None] > 0, index, len(ordered) - 1)]

    def fires_within(
        self,
        feature: Int[np.ndarray, " queries"],
        first: Int[np.ndarray, " queries"],
        end: Int[np.ndarray, " queries"],
    ) -> Int[np.ndarray, "queries 2"]:
        """The slice of entries of ``feature`` whose rows lie in ``first`` to ``end``, the end left out."""
        base = feature.astype(np.int64) << 32
        return np.searchsorted(self._keys, np.stack([base + first, base + end], axis=1))

    @cached_property
    def _keys(self) -> Int[np.ndarray, " entries"]:
        """Feature and row in one number; they ascend with the entries."""
        return self.feature.astype(np.int64) << 32 | self.row

    def _reduced(self, ufunc: np.ufunc, column: Float[np.ndarray, " entries"]) -> Float[np.ndarray, " features"]:
        result = np.zeros(self.dict_size, dtype=column.dtype)
        fired = self.counts > 0
        if fired.any():
            result[fired] = ufunc.reduceat(column, self.offsets[:-1][fired])
        return result


def by_feature(code: Code, dict_size: int) -> Firings:
    """The same entries, feature by feature."""
    order = np.argsort(code.feature, kind="stable")
    counts = np.bincount(code.feature, minlength=dict_size)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Firings(offsets, *(column[order] for column in (code.row, code.value, code.lost, code.lost_prefix)))


def entry_hashes(
    feature: Int[np.ndarray, " entries"], row: Int[np.ndarray, " entries"], seed: int
) -> Int[np.ndarray, " entries"]:
    """A number of every (feature, row) that looks random and is the same in every run: not negative, 63 bits."""
    salted = mixed(feature.astype(np.uint64) ^ (np.uint64(seed) << np.uint64(40)))
    return (mixed(salted ^ row.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)
