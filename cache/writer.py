"""Writes a cache: any number of rows a call in, whole segments out; after a crash it goes on from the last of them.

A segment is committed like this: all its files are written aside, flushed and renamed, and their folders flushed. Only
then a line goes into the journal, with every checksum and the caller's place in the text.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from platform import python_version
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cache.config import CacheSettings
from cache.format.chunks import FileOut
from cache.format.codec import least_bytes
from cache.format.dtypes import Activations, StoredRows, to_stored
from cache.format.journal import Commit, FileEntry, Point
from cache.format.layout import GROUPS, STORE
from cache.format.manifest import (
    MANIFEST,
    Manifest,
    first_difference,
    make_geometry,
    parameter_files,
    read_manifest,
    refuse_links,
)
from cache.format.seal import (
    SEALS,
    is_part_complete,
    journal_of,
    open_journal,
    part_locks,
    seal_finished,
    seal_part,
)
from cache.storage.publish import open_publisher
from cache.storage.recompute import mlp_of_arrays
from cache.storage.segment import Block, SegmentBuffer
from common import disk
from common.errors import CapacityError, DiskError, MismatchError, NumericalError, UsageError
from common.hashing import Bytes, hash_bytes
from common.progress import Progress, Silent
from common.units import in_bytes

_WRITING_THREADS = max(1, min(4, (os.cpu_count() or 1) // 4))
"""Files of a segment that are hashed and copied to the page cache at once: one thread copies some 3 GB/s."""
Integers = Int[Tensor, "_"] | Int[np.ndarray, "_"]


class CacheWriter:
    """Adds rows to the cache at ``path``, from where an earlier writer of the same part stopped.

    Give ``append`` the text's rows from ``cursor`` on (None: from the beginning), in the same order every time; rows
    that the cache has already are skipped, and rows beyond the request are dropped. A kill loses only the rows since
    the last commit. With ``parts`` writers, each fills its own segments and none waits for another.

    ``device`` is where the rows are computed: there they wait for their segment to be full, and are measured. On
    another kind of device only the order of sums differs.

    With ``settings.target`` recompute, ``arrays`` must hold the layer's MLP; targets are given nonetheless, for their
    statistics and to be compared with what the MLP gives.

    Raises MismatchError when the folder holds another cache, InUseError when the part has a writer, CapacityError when
    the disk has no room for what is missing, DiskError when it refuses, NumericalError for a NaN or an infinity.
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
        part: int = 0,
        parts: int = 1,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        sizes = {"d_source": d_source, "d_target": d_target, "train_rows": train_rows, "held_out_rows": held_out_rows}
        self._path = Path(path)
        self._part = part
        self._device = device
        self._geometry = make_geometry(settings, **sizes, parts=parts)
        if not 0 <= part < parts:
            raise UsageError(f"Part {part} is not one of {parts}.")
        self._mlp = mlp_of_arrays(arrays) if settings.target == "recompute" else None
        files = self._geometry.zarr_files() | parameter_files(arrays)
        self.manifest = _make_manifest(
            self._geometry, settings, identity=identity, special_ids=special_ids, files=files
        )
        if settings.weak_disk:
            disk.accept_weak_disk(True)
        with ExitStack() as stack:
            if not self._is_finished():
                disk.check_promises(self._path)
            stack.enter_context(self._lock())
            self._publisher = open_publisher(self._path, settings.remote, self.manifest, part=part)
            self._compare()
            self._journal = journal_of(self._path, self.manifest, part)
            self._check_room()
            if not self._is_finished():
                self._create(files)
                self._journal = open_journal(self._path, self.manifest, part)
            if self._journal.commits:
                count = len(self._journal.commits)
                (progress or Silent()).note(f"kept {count} segments of an earlier run in {self._path}")
            if self.complete:
                seal_finished(self._path, part)
            if self._publisher:
                self._publisher.catch_up(self._journal)
            self._closing = stack.pop_all()
        self._buffers: dict[str, SegmentBuffer] = {}
        start = self._resume_point()
        self.cursor: Any = start.cursor
        self._seen = {"train": start.train, "held_out": start.held_out}
        self._here = start

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the part. Rows since the last commit are forgotten; their text is read again by the next writer."""
        self._closing.close()

    @property
    def complete(self) -> bool:
        """Whether this part holds every row that was asked for."""
        return not any(self._missing(group) for group in GROUPS)

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
        the text's documents, ``position`` the places in a context. ``cursor`` (JSON) says where the caller must
        restart to give these rows again: the place where this batch of text begins. Calls with the same cursor in a
        row belong to one batch.
        """
        if cursor != self._here.cursor:
            self._here = Point(cursor, self._seen["train"], self._seen["held_out"])
        columns = {"tokens": tokens, "document": document, "position": position}
        block = {name: _integers(values) for name, values in columns.items()}
        dtype = self._geometry.dtype
        stored = {"source": to_stored(source, dtype), "target": to_stored(target, dtype)}
        self._check(stored, block)
        sides = {name: rows.values for name, rows in stored.items()}
        self._place(GROUPS[held_out], block | sides | {f"{name}_error": rows.error for name, rows in stored.items()})

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

    def _place(self, name: str, block: Block) -> None:
        """Lay the rows into their segments; a segment that becomes full is committed."""
        group = self._geometry.groups[name]
        own = self._geometry.part_segments(name, self._part)
        rows = len(block["tokens"])
        done = 0
        while done < rows:
            number, first = divmod(self._seen[name], group.segment_rows)
            segment = own.start + number
            if self._seen[name] >= self._geometry.part_rows(name, self._part):
                self._seen[name] += rows - done
                return
            here = slice(done, done + min(rows - done, group.rows_in(segment) - first))
            if (name, segment) not in self._journal.commits:
                fitting = {column: values[here] for column, values in block.items()}
                self._buffer(name).put(segment, first, fitting)
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
        """The stream has passed the end of a segment: commit it unless the journal has it."""
        # The next row is in this batch if any of it is left, and otherwise in a batch not yet seen: restarting at
        # this one is right for both.
        following = self._here
        if (name, segment) not in self._journal.commits:
            start = self._journal.points.get((name, segment), Point())
            commit = Commit(name, segment, start, following, self._write(name, segment))
            self._journal.add(commit)
            if self._publisher:
                self._publisher.publish(commit)
            if self.complete:
                seal_part(self._path, self._part)
                if self._publisher:
                    self._publisher.publish_seal()
        self._journal.points.setdefault((name, segment + 1), following)

    def _write(self, name: str, segment: int) -> tuple[FileEntry, ...]:
        made: list[FileOut] = []

        def files() -> Iterator[tuple[Path, Iterator[Bytes]]]:
            for file in self._buffers[name].files(segment):
                made.append(file)
                yield self._path / file.path, file.pieces()

        disk.write_files(files(), tag=self._tag, threads=_WRITING_THREADS)
        return tuple(file.entry for file in made)

    def _is_finished(self) -> bool:
        """Whether this very part lies here, complete. Then nothing is written, and the disk may be read-only."""
        if not (self._path / MANIFEST).exists() or read_manifest(self._path) != self.manifest:
            return False
        bound = all((self._path / name).is_file() for name in self.manifest.files)
        return bound and is_part_complete(journal_of(self._path, self.manifest, self._part), self.manifest, self._part)

    def _lock(self) -> ExitStack:
        """The lock of the part; of a finished part on a disk that refuses it, none is needed."""
        stack = ExitStack()
        try:
            stack.enter_context(disk.lock(self._path / "locks" / self._tag))
        except DiskError:
            if not self._is_finished():
                raise
        return stack

    def _compare(self) -> None:
        """Raise MismatchError when another cache lies here."""
        refuse_links(self._path, self._geometry)
        if not (self._path / MANIFEST).exists():
            return
        existing = read_manifest(self._path)
        if existing.fingerprint != self.manifest.fingerprint:
            refuse_other_parts(existing, self._geometry.parts, where=self._path)
            difference = first_difference(self.manifest.determining(), existing.determining())
            what = f"The cache here was made differently: {difference}."
            raise MismatchError(what, where=self._path, remedy="Choose another folder, or --fresh to begin anew.")
        if existing.geometry.codec != self._geometry.codec:
            what = f"The cache here has codec {existing.geometry.codec}, not {self._geometry.codec}."
            remedy = "Set cache.codec to what it has; 'cache pack' changes it."
            raise MismatchError(what, where=self._path, remedy=remedy)

    def _create(self, files: dict[str, bytes]) -> None:
        """Make the store, or what is missing of it. What a crash left aside is removed."""
        for aside in sorted(self._path.rglob(f".*.{self._tag}.aside")):
            disk.remove(aside)
        begun = (self._path / MANIFEST).exists()
        wanted = [(self._path / path, [data]) for path, data in files.items()]
        disk.write_files([file for file in wanted if not (begun and file[0].exists())], tag=self._tag)
        if not begun:
            disk.write_file(self._path / MANIFEST, self.manifest.to_json(), tag=self._tag)

    @property
    def _tag(self) -> str:
        return f"part-{self._part:05d}"

    def _check_room(self) -> None:
        """Refuse what will not fit: exactly for plain rows, by the best ratio of any codec for compressed ones."""
        groups = self._geometry.groups.items()
        plain = sum(group.segment_bytes(segment) for name, group in groups for segment in self._missing(name))
        needed = least_bytes(plain, self._geometry.codec, self._geometry.dtype)
        free = disk.free_bytes(self._path)
        if needed > free:
            what = f"The cache needs {in_bytes(needed)} more; {in_bytes(free)} are free."
            raise CapacityError(what, where=self._path, remedy="Ask for fewer rows, or put it on a larger disk.")

    def _missing(self, group: str) -> list[int]:
        own = self._geometry.part_segments(group, self._part)
        return [segment for segment in own if (group, segment) not in self._journal.commits]

    def _resume_point(self) -> Point:
        """The earliest place in the text from which a missing row comes."""
        points = [
            self._journal.points.get((group, missing[0]), Point())
            for group in GROUPS
            if (missing := self._missing(group))
        ]
        return min(points, key=lambda point: point.train + point.held_out, default=Point())


def _make_manifest(
    geometry: Any, settings: CacheSettings, *, identity: dict[str, Any], special_ids: list[int], files: dict[str, bytes]
) -> Manifest:
    return Manifest(
        identity=identity,
        geometry=geometry,
        shuffle_seed=settings.shuffle_seed,
        held_out_fraction=settings.held_out_fraction,
        split_seed=settings.split_seed,
        special_ids=tuple(sorted(set(special_ids))),
        files={path: (len(data), hash_bytes(data)) for path, data in files.items()},
        written_with={"python": python_version(), "numpy": np.__version__, "torch": str(torch.__version__)},
    )


def _integers(values: Integers) -> Int[np.ndarray, " rows"]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _not_finite(name: str, rows: StoredRows, block: dict[str, np.ndarray], dtype: str) -> NumericalError:
    row = int(np.flatnonzero(~rows.finite_rows)[0])
    where = f"document {int(block['document'][row])}, position {int(block['position'][row])}"
    remedy = "float16 overflows above 65504: use bfloat16." if dtype == "float16" else "The model itself computed it."
    return NumericalError(f"The {name} holds a NaN or an infinity as {dtype}.", where=where, remedy=remedy)


def refuse_other_parts(existing: Manifest, parts: int, *, where: Path) -> None:
    """Raise MismatchError when an unfinished cache was begun by another number of processes: each has its own rows."""
    begun = existing.geometry.parts
    if begun != parts:
        what = f"This cache was begun by {begun} process{'es' if begun > 1 else ''}, not by {parts}."
        remedy = f"Go on with {begun}: each process fills a share of the rows of its own. Or choose another folder."
        raise MismatchError(what, where=where, remedy=remedy)


def remove_cache(path: Path) -> None:
    """Remove the cache in this folder, and nothing else that lies there. Raises InUseError when a writer is at work."""
    with disk.lock_all(part_locks(path)):
        # The seals first: without its journal, a seal says that a complete cache was damaged.
        for name in (SEALS, MANIFEST, "journal", STORE, "quarantine", "locks"):
            disk.remove(path / name)
