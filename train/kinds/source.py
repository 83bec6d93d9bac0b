"""What a training reads: the cache of a layer, or those of several with their rows side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.config import CacheSettings
from cache.open import open_cache
from cache.reader import CacheReader
from cache.stacked import stacked
from common.errors import UsageError
from train.arrays.units import Units, units_of
from train.config import TrainSettings
from train.kinds.cross_layer import JointUnits


@dataclass(frozen=True)
class Source:
    """``reader`` serves the rows, ``readers`` are the layers' own caches, ``units`` those of the rows."""

    reader: CacheReader
    readers: tuple[CacheReader, ...]
    units: Units

    @staticmethod
    def open(
        caches: Sequence[Path], settings: TrainSettings, cache_settings: CacheSettings | None, *, device: str
    ) -> "Source":
        """Raises UsageError where one layer is given several caches, or MismatchError where their rows differ."""
        readers = tuple(open_cache(cache, cache_settings, device=device, column=settings.column) for cache in caches)
        if settings.kind == "cross-layer":
            return Source(stacked(readers), readers, JointUnits.of_readers(readers, settings))
        if len(readers) != 1:
            raise UsageError(f"A {settings.kind} is of one layer.", remedy="Set train.kind to cross-layer.")
        return Source(readers[0], readers, units_of(readers[0], settings.source, settings.scaling_of_source))
