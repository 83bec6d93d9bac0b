"""Writes a cache: it takes any number of rows in a call and writes full segments; after a crash it goes on from there.

A segment is committed like this: all its files are written under temporary names, flushed and renamed, and their
folders are flushed. Only then a line is added to the journal, with all checksums and the caller's position in the text.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from platform import python_version
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cache.config import CacheSettings
from cache.drafts import Drafts
from cache.format.chunks import FileOut
from cache.format.dtypes import Activations, StoredRows, to_stored
from cache.format.journal import FileEntry, Point
from cache.format.layout import GROUPS, Geometry
from cache.format.manifest import Manifest, make_geometry
from cache.format.parameters import parameter_files
from cache.partition import Partition
from cache.storage.recompute import mlp_of_arrays
from cache.storage.segment import Block, SegmentBuffer
from common import disk
from common.errors import DiskError, NumericalError, UsageError
from common.hashing import Bytes, hash_bytes
from common.progress import Progress, Silent, Stopwatch

_WRITING_THREADS = max(1, min(4, (os.cpu_count() or 1) // 4))
"""Files of a segment that are hashed and copied to the page cache at once: one thread copies about 3 GB/s."""
_WRITING_THREADS_OF_GPU = max(1, min(8, (os.cpu_count() or 1) // 2))
"""The same for rows of a GPU, which leaves the processor to them. Most of the threads wait for the disk."""
Integers = Int[Tensor, "_"] | Int[np.ndarray, "_"]


class CacheWriter:
    """Adds rows to the cache at ``path``, from where an earlier writer of the same partition stopped.

    Give ``append`` the text's rows from ``cursor`` on (None: from the beginning), in the same order every time. Rows
    that the cache has already are skipped, and rows beyond the request are dropped. A kill loses the rows since the
    last commit or draft, about a minute of work (``cache.drafts``). With several ``partitions``, each has a writer,
    fills its own segments and waits for no other.

    ``device`` computes the rows; they wait there until their segment is full, and are measured there. On another kind
    of device only the order of sums differs.

    With ``settings.target`` recompute, ``arrays`` must contain the layer's MLP. Targets must be given all the same, for
    their statistics and for a comparison with the MLP's result. ``locked``: the caller has the lock already
    (``cache.partition.lock_partition``), because it needed the lock before it could open a writer.

    Raises MismatchError when the folder holds another cache, InUseError when the partition has a writer, CapacityError
    when the disk has no room for what is missing, DiskError when it refuses, NumericalError for a NaN or an infinity.
    """

    def __init__(
        self,
        path: Path,
        *,
        identity: dict[str, Any],
        settings: CacheSettings,
        d_source: int,
        d_target: int,
        train_rows: int,
        held_out_rows: int,
        special_ids: list[int],
        arrays: dict[str, np.ndarray],
        partition: int = 0,
        partitions: int = 1,
        locked: bool = False,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        if not 0 <= partition < partitions:
            raise UsageError(f"There is no partition {partition} of {partitions}: their numbers begin at 0.")
        sizes = {"d_source": d_source, "d_target": d_target, "train_rows": train_rows, "held_out_rows": held_out_rows}
        self.manifest = manifest_of(
            identity=identity, settings=settings, **sizes, special_ids=special_ids, arrays=arrays, partitions=partitions
        )
        self._geometry = self.manifest.geometry
        self._device = device
        self._mlp = mlp_of_arrays(arrays) if settings.target == "recompute" else None
        if settings.weak_disk:
            disk.accept_weak_disk(True)
        progress = progress or Silent()
        self._partition = Partition(
            Path(path),
            self.manifest,
            number=partition,
            files=_first_files(self._geometry, arrays),
            remote=settings.remote,
            progress=progress,
            locked=locked,
        )
        self._buffers: dict[str, SegmentBuffer] = {}
        self._drafts = Drafts(self._partition, self._buffer, progress)
        try:
            start = self._resume_point(self._drafts.restore())
        except BaseException:
            self.close()
            raise
        self.cursor: Any = start.cursor
        self._seen = {"train": start.train, "held_out": start.held_out}
        self._here = start
        self.watch = Stopwatch()
        """How long commits took in all."""
        self.first_commit: tuple[int, float] | None = None
        """Rows of the first segment that this writer committed, and when it had (``time.perf_counter``)."""

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, DiskError):
            self._drafts.keep_at_end(self._here)
        self.close()

    def close(self) -> None:
        """Release the partition. Rows that are neither committed nor in a draft are read again by the next writer."""
        self._partition.close()

    @property
    def complete(self) -> bool:
        """Whether all rows of this partition are committed."""
        return self._partition.complete

    def append(
        self,
        source: Activations,
        target: Activations,
        tokens: Integers,
        document: Integers,
        position: Integers,
        *,
        held_out: bool,
        cursor: Any,
    ) -> None:
        """Add rows of one group, in the order of the text.

        ``source`` (rows, d_source) and ``target`` (rows, d_target) as the model computed them; ``document`` numbers
        the text's documents, ``position`` the positions in a context. ``cursor`` (JSON) says where the caller must
        restart to give these rows again: where this batch of text begins. Successive calls with the same cursor belong
        to one batch.
        """
        if cursor != self._here.cursor:
            self._here = Point(cursor, self._seen["train"], self._seen["held_out"])
            self._drafts.keep_if_due(self._here)
        columns = {"tokens": tokens, "document": document, "position": position}
        block = {name: _integers(values) for name, values in columns.items()}
        dtype = self._geometry.dtype
        stored = {"source": to_stored(source, dtype), "target": to_stored(target, dtype)}
        self._check(stored, block)
        activations = {name: rows.values for name, rows in stored.items()}
        self._add(
            GROUPS[held_out], block | activations | {f"{name}_error": rows.error for name, rows in stored.items()}
        )

    def _check(self, stored: dict[str, StoredRows], block: dict[str, np.ndarray]) -> None:
        counts = {len(values) for values in block.values()} | {len(rows.values) for rows in stored.values()}
        if len(counts) != 1:
            raise UsageError(f"Every column of a batch must have the same number of rows, not {sorted(counts)}.")
        for name, rows in stored.items():
            width = getattr(self._geometry, f"d_{name}")
            if rows.values.shape[1] != width:
                raise UsageError(f"The {name} has width {rows.values.shape[1]}; the cache was made for {width}.")
            if not rows.finite:
                raise _not_finite(name, rows, block, self._geometry.dtype)

    def _add(self, name: str, block: Block) -> None:
        """Put the rows into their segments; a segment that becomes full is committed."""
        group = self._geometry.groups[name]
        rows = len(block["tokens"])
        done = 0
        while done < rows:
            segment, first = self._partition.locate(name, self._seen[name])
            if self._seen[name] >= self._geometry.partition_rows(name, self._partition.number):
                self._seen[name] += rows - done
                return
            here = slice(done, done + min(rows - done, group.rows_in(segment) - first))
            if not self._partition.is_committed(name, segment):
                self._buffer(name).put(segment, first, {column: values[here] for column, values in block.items()})
                self._drafts.arrived(name)
            self._seen[name] += here.stop - here.start
            done = here.stop
            if first + here.stop - here.start == group.rows_in(segment):
                self._finish(name, segment)

    def _buffer(self, name: str) -> SegmentBuffer:
        if name not in self._buffers:
            group = self._geometry.groups[name]
            self._buffers[name] = SegmentBuffer(group, self.manifest, mlp=self._mlp, device=self._device)
        return self._buffers[name]

    def _finish(self, name: str, segment: int) -> None:
        """Commit a segment whose last row has come, unless the journal has it already."""
        # The next row is in this batch if some of it is left, and otherwise in the next batch. Restarting at this batch
        # is right in both cases.
        following = self._here
        if not self._partition.is_committed(name, segment):
            with self.watch.timing("committing"):
                self._partition.commit(name, segment, following=following, files=self._write(name, segment))
                self._drafts.drop(name)
            rows = self._geometry.groups[name].rows_in(segment)
            self.first_commit = self.first_commit or (rows, time.perf_counter())
        self._partition.pass_by(name, segment, following)

    def _write(self, name: str, segment: int) -> tuple[FileEntry, ...]:
        made: list[FileOut] = []

        def files() -> Iterator[tuple[Path, Iterator[Bytes]]]:
            for file in self._buffers[name].files(segment):
                made.append(file)
                yield self._partition.path / file.path, file.pieces()

        threads = _WRITING_THREADS if torch.device(self._device).type == "cpu" else _WRITING_THREADS_OF_GPU
        disk.write_files(files(), tag=self._partition.tag, threads=threads)
        return tuple(file.entry for file in made)

    def _resume_point(self, drafts: dict[str, Point]) -> Point:
        """The earliest point of the text from which a row comes that is neither committed nor in a draft."""
        missing = {group: segments[0] for group in GROUPS if (segments := self._partition.missing(group))}
        points = [drafts.get(group) or self._partition.start_of(group, segment) for group, segment in missing.items()]
        return min(points, key=lambda point: point.train + point.held_out, default=Point())


def manifest_of(
    *,
    identity: dict[str, Any],
    settings: CacheSettings,
    d_source: int,
    d_target: int,
    train_rows: int,
    held_out_rows: int,
    special_ids: list[int],
    arrays: dict[str, np.ndarray],
    partitions: int = 1,
) -> Manifest:
    """The manifest of a cache with these arguments. Raises UsageError for sizes that no cache can have."""
    sizes = {"d_source": d_source, "d_target": d_target, "train_rows": train_rows, "held_out_rows": held_out_rows}
    geometry = make_geometry(settings, **sizes, partitions=partitions)
    return Manifest(
        identity=identity,
        geometry=geometry,
        shuffle_seed=settings.shuffle_seed,
        held_out_fraction=settings.held_out_fraction,
        split_seed=settings.split_seed,
        special_ids=tuple(sorted(set(special_ids))),
        files={path: (len(data), hash_bytes(data)) for path, data in _first_files(geometry, arrays).items()},
        written_with={"python": python_version(), "numpy": np.__version__, "torch": str(torch.__version__)},
    )


def _first_files(geometry: Geometry, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The files that a cache has before its first row, by path."""
    return geometry.zarr_files() | parameter_files(arrays)


def _integers(values: Integers) -> Int[np.ndarray, " rows"]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _not_finite(name: str, rows: StoredRows, block: dict[str, np.ndarray], dtype: str) -> NumericalError:
    row = int(np.flatnonzero(~rows.finite_rows)[0])
    location = f"document {int(block['document'][row])}, position {int(block['position'][row])}"
    remedy = "float16 overflows above 65504: use bfloat16." if dtype == "float16" else "The model itself computed it."
    return NumericalError(f"The {name} contains NaN or infinity as {dtype}.", where=location, remedy=remedy)
