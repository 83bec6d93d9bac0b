"""The files that a cache should have: all that its manifest and journals name, with sizes and checksums."""

from dataclasses import dataclass
from pathlib import Path

from cache.format.array import Array
from cache.format.journal import Commit, FileEntry, Journal, journal_path
from cache.format.layout import Geometry
from cache.format.manifest import Manifest, read_manifest
from cache.format.seal import journal_of, seal_path
from common.errors import NestcoderError


@dataclass(frozen=True)
class Fault:
    """One fault of a cache. ``segment`` is the segment of its rows, (group, segment); None for other files."""

    kind: str
    path: str
    detail: str = ""
    chunks: tuple[int, ...] = ()
    segment: tuple[str, int] | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}" + (f", {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class ExpectedFile:
    """What a file should be. ``array`` and ``file`` say which array it belongs to; None for metadata and parameters."""

    entry: FileEntry
    array: Array | None = None
    file: int = 0
    segment: tuple[str, int] | None = None


@dataclass(frozen=True)
class CacheIndex:
    """The files of a cache by path, the journals by partition, and the faults of the journals themselves."""

    manifest: Manifest
    journals: dict[int, Journal]
    files: dict[str, ExpectedFile]
    faults: tuple[Fault, ...]

    @property
    def segments(self) -> tuple[int, int]:
        """How many segments are committed, and how many the complete cache has."""
        committed = sum(len(journal.commits) for journal in self.journals.values())
        return committed, sum(group.segments for group in self.manifest.geometry.groups.values())

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.entry.size_bytes for file in self.files.values())


def read_index(path: Path) -> CacheIndex:
    """The index of the cache in folder ``path``. Raises what ``read_manifest`` raises."""
    manifest = read_manifest(path)
    files = {name: ExpectedFile(FileEntry(name, size, digest, "")) for name, (size, digest) in manifest.files.items()}
    journals: dict[int, Journal] = {}
    faults: list[Fault] = []
    for partition in range(manifest.geometry.partitions):
        try:
            journals[partition] = journal_of(path, manifest, partition)
        except NestcoderError as error:
            faults.append(journal_fault(path, partition, error))
            continue
        for commit in journals[partition].commits.values():
            files |= _files_of(commit, manifest.geometry)
    return CacheIndex(manifest, journals, files, tuple(faults))


def journal_fault(path: Path, partition: int, error: NestcoderError) -> Fault:
    """The fault of a journal or its seal, from the error that reading them raised."""
    name = seal_path(partition) if error.where == str(path / seal_path(partition)) else journal_path(partition)
    return Fault("unreadable", name, error.what)


def _files_of(commit: Commit, geometry: Geometry) -> dict[str, ExpectedFile]:
    arrays = geometry.groups[commit.group].segment_files(commit.segment)
    segment = (commit.group, commit.segment)
    return {
        entry.path: ExpectedFile(entry, array, file, segment)
        for entry, (array, file) in zip(commit.files, arrays, strict=True)
    }
