"""The held-out rows that everything is measured on: which of them count, and the text near them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cache.reader import CacheReader, SplitView
from common.errors import UsageError

_FIRST_ROWS = 4096
"""Rows whose mean stands in for the mean of all, where a cache stores no target and so has no statistics of it."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows of a cache. No other row is ever opened."""

    view: SplitView

    @cached_property
    def special(self) -> Bool[np.ndarray, " rows"]:
        """The rows of special tokens, which are left out by token id."""
        return ~self.view.is_ordinary(self.view.tokens)

    @property
    def masked(self) -> int:
        """How many rows are left out."""
        return int(self.special.sum())

    @property
    def counted(self) -> int:
        """How many rows count."""
        return len(self.view) - self.masked

    @property
    def documents(self) -> int:
        """The number of documents with rows that count."""
        return len(np.unique(self.view.document))

    @cached_property
    def mean_target(self) -> Float[Tensor, " d_target"]:
        """The mean of the target over the rows that count, in float64; of the first of them where the target is
        computed, not stored."""
        stored = self.view.statistics.target
        if stored is not None:
            return torch.from_numpy(np.array(stored.mean, dtype=np.float64))
        first = np.flatnonzero(~self.special)[:_FIRST_ROWS].astype(np.int64)
        return self.view.rows(first).target.cpu().double().mean(dim=0)


def open_held_out(reader: CacheReader) -> HeldOut:
    """The held-out split. Raises UsageError if it has no row that counts."""
    held_out = HeldOut(reader.split("held_out"))
    if not held_out.counted:
        raise UsageError(
            "The cache has no held-out rows to evaluate on.", remedy="Harvest with held_out_tokens above 0."
        )
    return held_out
