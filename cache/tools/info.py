"""A cache in numbers: rows, sites, documents, size, statistics, and how well its batches are mixed."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cache.format.statistics import ActivationStatistics
from cache.loader import Loader
from cache.open import open_cache
from cache.reader import CacheReader, SplitView
from cache.tools.concentration import Concentration, concentration
from cache.tools.index import read_index
from cache.tools.mixing import Mixing, measure_mixing

_BATCH_ROWS = 4096
_BATCHES = 32
"""Batches whose mixing is measured; only document numbers are read for them."""
_CONCENTRATION_ROWS = 65_536
"""Training rows whose variance is measured: half a segment, which is a sample of it and is read in seconds."""


@dataclass(frozen=True)
class ActivationInfo:
    """Numbers of source or target over the training rows whose token is not special."""

    width: int
    mean_square: float
    variance_sum: float
    largest_norm: float
    largest_row: int
    storage_floor: float


@dataclass(frozen=True)
class CacheInfo:
    """Numbers of a cache. ``rows`` and ``committed`` are by group; numbers that need all rows are None until then."""

    path: str
    fingerprint: str
    identity: dict[str, Any]
    dtype: str
    rows: dict[str, int]
    committed: dict[str, int]
    bytes: int
    files: int
    partitions: int
    written_with: dict[str, str]
    documents: dict[str, int] | None
    special_rows: int | None
    source: ActivationInfo | None
    target: ActivationInfo | None
    mixing: Mixing | None
    concentration: Concentration | None

    @property
    def complete(self) -> bool:
        """Whether all rows are committed."""
        return self.rows == self.committed

    def to_json(self) -> dict[str, Any]:
        """All numbers, under the names that ``cache info --json`` has printed since its first version."""
        document: dict[str, Any] = {**asdict(self), "complete": self.complete}
        document["parts"] = document.pop("partitions")
        if document["concentration"]:
            document["concentration"]["side"] = document["concentration"].pop("column")
        return document


def cache_info(path: Path | str) -> CacheInfo:
    """Numbers of the cache in a folder or at a URL. Raises what ``CacheReader.open`` raises.

    An unfinished cache in a folder is no error.
    """
    remote = open_cache(path) if isinstance(path, str) and "://" in path else None
    index = read_index(remote.path if remote else Path(path))
    geometry = index.manifest.geometry
    rows = {name: group.rows for name, group in geometry.groups.items()}
    commits = [key for journal in index.journals.values() for key in journal.commits]
    committed = {
        name: sum(group.rows_in(segment) for owner, segment in commits if owner == name)
        for name, group in geometry.groups.items()
    }
    measured = _measured(remote or CacheReader.open(path)) if rows == committed else _Measured()
    return CacheInfo(
        path=str(path),
        fingerprint=index.manifest.fingerprint,
        identity=index.manifest.identity,
        dtype=geometry.dtype,
        rows=rows,
        committed=committed,
        bytes=index.bytes,
        files=len(index.files),
        partitions=geometry.partitions,
        written_with=index.manifest.written_with,
        **vars(measured),
    )


@dataclass(frozen=True)
class _Measured:
    """The numbers that need all rows."""

    documents: dict[str, int] | None = None
    special_rows: int | None = None
    source: ActivationInfo | None = None
    target: ActivationInfo | None = None
    mixing: Mixing | None = None
    concentration: Concentration | None = None


def _measured(reader: CacheReader) -> _Measured:
    splits = {name: reader.split(name) for name in _GROUPS}
    documents = {name: len(np.unique(split.document)) for name, split in splits.items()}
    train = splits["train"]
    if not len(train):
        return _Measured(documents)
    statistics = train.statistics
    target = _activation_info(statistics.target) if statistics.target else None
    special = len(train) - statistics.source.rows
    return _Measured(
        documents=documents,
        special_rows=special,
        source=_activation_info(statistics.source),
        target=target,
        mixing=_mixing(reader, train),
        concentration=concentration(reader, limit_rows=_CONCENTRATION_ROWS) if statistics.source.rows else None,
    )


_GROUPS: tuple[Literal["train", "held_out"], ...] = ("train", "held_out")


def _activation_info(statistics: ActivationStatistics) -> ActivationInfo:
    return ActivationInfo(
        width=len(statistics.mean),
        mean_square=float(statistics.second_moment.mean()),
        variance_sum=statistics.variance_sum,
        largest_norm=float(statistics.largest_norms[0]),
        largest_row=int(statistics.largest_rows[0]),
        storage_floor=statistics.storage_floor,
    )


def _mixing(reader: CacheReader, train: SplitView) -> Mixing:
    """The mixing of 32 batches of 4,096 rows (or fewer), spread over the loader's first epoch."""
    batch_rows = min(_BATCH_ROWS, max(1, len(train) // 2))
    batches = np.unique(np.linspace(0, len(train) // batch_rows - 1, _BATCHES).astype(np.int64))
    with Loader(reader, batch_rows=batch_rows, seed=0) as loader:
        return measure_mixing(train.document, [loader.rows_of(0, batch) for batch in batches.tolist()])
