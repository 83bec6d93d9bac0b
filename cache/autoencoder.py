"""A cache as an autoencoder sees it: its source or its target is both what is read and what is predicted.

So an autoencoder needs no cache of its own, and no other code knows about it: rows, widths, statistics and sites are
those of a cache whose source and target are the same.
"""

from functools import cached_property

from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

from cache.format.layout import ActivationName
from cache.format.statistics import GroupStatistics
from cache.reader import CacheReader, SplitView, View
from cache.storage.buffers import Buffers
from cache.storage.columns import Column


class AutoencoderSplit(SplitView):
    """The rows of a split with ``column`` as both source and target. Only its files are read, if it is stored."""

    def __init__(self, split: SplitView, column: ActivationName) -> None:
        super().__init__(split.reader, split.group, split.columns)
        self._split = split
        self._column: ActivationName = column

    @property
    def d_source(self) -> int:
        """Width of the column."""
        return self._split.d_source if self._column == "source" else self._split.d_target

    @property
    def d_target(self) -> int:
        """The same as ``d_source``."""
        return self.d_source

    @property
    def read_columns(self) -> list[Column]:
        """The files that serving rows reads."""
        stored = self.columns.get(self._column)
        return [stored] if stored else self._split.read_columns

    def activations(
        self, index: Int64[ndarray, " rows"], *, view: View | None = None, buffers: Buffers | None = None
    ) -> tuple[Float[Tensor, "rows d_source"], Float[Tensor, "rows d_target"]]:
        """The column's rows ``index``, as the same tensor twice; ``view`` applies to a source only."""
        if self._column == "source":
            values = self.reader.as_view(self.gather("source", index, buffers=buffers), view)
        elif self._column in self.columns:
            values = self.gather("target", index, buffers=buffers)
        else:
            values = self._split.activations(index, buffers=buffers)[1]
        return values, values

    @cached_property
    def statistics(self) -> GroupStatistics:
        """Those of the column, twice."""
        column = getattr(self._split.statistics, self._column)
        return GroupStatistics(column, column)


def as_autoencoder(reader: CacheReader, column: ActivationName) -> CacheReader:
    """The same cache with ``column`` as its source and target, and the column's site as both sites of its identity."""
    site = reader.identity.get(f"{column}_site")
    splits: dict[str, SplitView] = {name: AutoencoderSplit(split, column) for name, split in reader.splits.items()}
    return reader.with_splits(splits, identity=reader.identity | {"source_site": site, "target_site": site})
