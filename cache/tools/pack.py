"""The same rows with another codec: compresses a cache for an archive, and unpacks it again, byte for byte.

The result is a cache like any other, with the fingerprint of the original: it can be read, verified, repaired and
published. It is written segment by segment like a harvest, so an interrupted run goes on. Every byte that is read is
checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cache.format.array import Array
from cache.format.chunks import FileOut, chunks_of
from cache.format.codec import Codec
from cache.format.journal import Commit, FileEntry, Journal
from cache.format.manifest import MANIFEST, Manifest, read_bound, read_manifest
from cache.format.seal import open_journal, seal_partition
from cache.tools.index import CacheIndex, read_index
from common import disk
from common.errors import DamagedError, MismatchError, UsageError
from common.hashing import Bytes, hash_bytes
from common.processes import locks
from common.progress import Progress, Silent

_TAG = "pack"


@dataclass(frozen=True)
class Packing:
    """What was written: ``files`` of rows, their bytes before and after."""

    codec: str
    files: int
    bytes_before: int
    bytes_after: int

    @property
    def ratio(self) -> float:
        """Bytes after over bytes before."""
        return self.bytes_after / max(1, self.bytes_before)


def pack_cache(path: Path, out: Path, *, codec: Codec, progress: Progress | None = None) -> Packing:
    """Write the complete cache in ``path`` into the folder ``out`` with ``codec``, or go on writing it.

    Raises UsageError for an unfinished cache or if ``out`` has a finished one, MismatchError if it has another cache,
    DamagedError, InUseError, DiskError.
    """
    index = _complete_index(path)
    progress = progress or Silent()
    manifest = _repacked(index.manifest, codec)
    with locks.lock_all(out / "locks" / f"part-{partition:05d}" for partition in range(manifest.geometry.partitions)):
        locks.check_file_system(out)
        _begin(path, out, index.manifest, manifest)
        progress.begin("pack", total=index.segments[1], unit="segments")
        before = list[FileEntry]()
        after = list[FileEntry]()
        for partition, journal in index.journals.items():
            written = open_journal(out, manifest, partition)
            for commit in journal.commits.values():
                before += commit.files
                after += _pack_segment(path, out, commit, (index.manifest, manifest), written=written)
                progress.advance(1)
            seal_partition(out, partition)
        progress.end()
    sizes = (sum(entry.size_bytes for entry in entries) for entries in (before, after))
    return Packing(codec, len(after), *sizes)


def _complete_index(path: Path) -> CacheIndex:
    """The index of a complete cache. Raises DamagedError for a damaged one, UsageError for an unfinished one."""
    index = read_index(path)
    if index.faults:
        raise DamagedError(f"{index.faults[0]}.", where=path, remedy="Run 'nestcoder cache repair' first.")
    committed, total = index.segments
    if committed < total:
        what = f"This cache is not finished: it has {committed} of {total} segments."
        raise UsageError(what, where=path, remedy="Run the same harvest again: it goes on from there.")
    return index


def _repacked(manifest: Manifest, codec: Codec) -> Manifest:
    """The manifest of the same cache with another codec."""
    geometry = replace(manifest.geometry, codec=codec)
    files = manifest.files | {name: (len(data), hash_bytes(data)) for name, data in geometry.zarr_files().items()}
    return replace(manifest, geometry=geometry, files=files)


def _begin(path: Path, out: Path, original: Manifest, manifest: Manifest) -> None:
    """Make the store with everything except rows, or check that ``out`` has an unfinished one of this cache."""
    if (out / MANIFEST).exists():
        there = read_manifest(out)
        if there != manifest:
            what = f"The folder has another cache: {there.fingerprint}, codec {there.geometry.codec}."
            raise MismatchError(what, where=out, remedy="Choose another folder.")
        committed, total = read_index(out).segments
        if committed == total:
            raise UsageError("The folder has this cache already.", where=out, remedy="Choose another folder.")
        return
    computed = manifest.geometry.zarr_files()
    for name in manifest.files:
        disk.write_file(out / name, computed.get(name) or read_bound(path, name, original.files[name]), tag=_TAG)
    disk.write_file(out / MANIFEST, manifest.to_json(), tag=_TAG)


def _pack_segment(
    path: Path, out: Path, commit: Commit, manifests: tuple[Manifest, Manifest], *, written: Journal
) -> tuple[FileEntry, ...]:
    """Write one segment, unless an earlier run did; returns the entries of its files."""
    key = (commit.group, commit.segment)
    if key in written.commits:
        return written.commits[key].files
    before, after = (manifest.geometry.groups[commit.group].segment_files(commit.segment) for manifest in manifests)
    entries: list[FileEntry] = []

    def files() -> Iterator[tuple[Path, Iterator[Bytes]]]:
        for (array, number), (repacked, _), entry in zip(before, after, commit.files, strict=True):
            file = FileOut(repacked, number, [_chunks(path, array, number, entry)])
            yield out / file.path, file.pieces()
            entries.append(file.entry)

    disk.write_files(files(), tag=_TAG)
    written.add(replace(commit, files=tuple(entries)))
    return tuple(entries)


def _chunks(path: Path, array: Array, number: int, entry: FileEntry) -> list[Bytes]:
    data = read_bound(path, entry.path, (entry.size_bytes, entry.xxh3))
    try:
        return chunks_of(array, number, entry, data)
    except DamagedError as error:
        raise DamagedError(error.what, where=path / entry.path) from None
