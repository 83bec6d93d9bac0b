"""The rows of a cache that one writer is responsible for: the lock, the check of the folder, and what is committed."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cache.format.array import STORE
from cache.format.codec import minimum_bytes
from cache.format.journal import Commit, FileEntry, Journal, Point
from cache.format.layout import GROUPS
from cache.format.manifest import MANIFEST, Manifest, first_difference, read_manifest, refuse_links
from cache.format.seal import (
    SEALS,
    is_partition_complete,
    journal_of,
    open_journal,
    partition_locks,
    seal_finished,
    seal_partition,
)
from cache.storage.draft import DRAFTS, remove_drafts
from cache.storage.publish import open_publisher
from common import disk
from common.errors import CapacityError, DiskError, MismatchError
from common.processes import locks
from common.progress import Progress
from common.units import in_bytes


class Partition:
    """Partition ``number`` of the cache in folder ``path``, locked until ``close``.

    ``files`` are the files that a cache has before its first row, by path; missing ones are written. ``locked``: the
    caller has the partition's lock.

    Raises MismatchError when the folder holds another cache, InUseError when the partition has a writer, CapacityError
    when the disk has no room for what is missing, DiskError when it refuses.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        number: int,
        files: dict[str, bytes],
        remote: str,
        progress: Progress,
        locked: bool,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.number = number
        self.tag = f"part-{number:05d}"
        with ExitStack() as stack:
            if not self._is_finished():
                locks.check_file_system(path)
            if not locked:
                stack.enter_context(self._lock())
            self._publisher = open_publisher(path, remote, manifest, partition=number)
            check_partition(path, manifest, number)
            self._journal = journal_of(path, manifest, number)
            if not self._is_finished():
                self._create(files)
                self._journal = open_journal(path, manifest, number)
            if self._journal.commits:
                progress.note(f"Kept {len(self._journal.commits)} segments of an earlier run in {path}.")
            if self.complete:
                tidy_finished(path, number)
            if self._publisher:
                self._publisher.catch_up(self._journal)
            self._closing = stack.pop_all()

    def close(self) -> None:
        """Release the lock."""
        self._closing.close()

    @property
    def complete(self) -> bool:
        """Whether every segment of the partition is committed."""
        return not any(self.missing(group) for group in GROUPS)

    def missing(self, group: str) -> list[int]:
        """The segments of a group that are not committed yet, in the order of the text."""
        own = self.manifest.geometry.partition_segments(group, self.number)
        return [segment for segment in own if not self.is_committed(group, segment)]

    def is_committed(self, group: str, segment: int) -> bool:
        """Whether the journal names the segment."""
        return (group, segment) in self._journal.commits

    def start_of(self, group: str, segment: int) -> Point:
        """The point of the text from which the segment's first row comes."""
        return self._journal.points.get((group, segment), Point())

    def locate(self, group: str, row: int) -> tuple[int, int]:
        """The segment of the partition's ``row``-th row of a group, and the row's number in the segment's stream."""
        number, first = divmod(row, self.manifest.geometry.groups[group].segment_rows)
        return self.manifest.geometry.partition_segments(group, self.number).start + number, first

    def commit(self, group: str, segment: int, *, following: Point, files: tuple[FileEntry, ...]) -> None:
        """Commit a segment whose files are on the disk; ``following`` is where the text goes on after it."""
        commit = Commit(group, segment, self.start_of(group, segment), following, files)
        self._journal.add(commit)
        if self._publisher:
            self._publisher.publish(commit)
        if self.complete:
            seal_partition(self.path, self.number)
            if self._publisher:
                self._publisher.publish_seal()

    def pass_by(self, group: str, segment: int, following: Point) -> None:
        """Remember where the text goes on after a segment: the next one begins there."""
        self._journal.points.setdefault((group, segment + 1), following)

    @property
    def spare_bytes(self) -> int:
        """Free bytes on the disk that the missing segments do not need; negative when there is no room for them."""
        return _spare_bytes(self.path, self.manifest, self._journal, self.number)

    def _is_finished(self) -> bool:
        """Whether this same partition is here, complete. Then nothing is written, and the disk may be read-only."""
        if not (self.path / MANIFEST).exists() or read_manifest(self.path) != self.manifest:
            return False
        bound = all((self.path / name).is_file() for name in self.manifest.files)
        return bound and is_partition_complete(
            journal_of(self.path, self.manifest, self.number), self.manifest, self.number
        )

    def _lock(self) -> ExitStack:
        """The partition's lock. A finished partition on a disk that refuses locks needs none."""
        stack = ExitStack()
        try:
            stack.enter_context(lock_partition(self.path, self.number))
        except DiskError:
            if not self._is_finished():
                raise
        return stack

    def _create(self, files: dict[str, bytes]) -> None:
        """Make the store, or the missing files of it, and remove temporary files of a crash."""
        for aside in sorted(self.path.rglob(f".*.{self.tag}.aside")):
            disk.remove(aside)
        begun = (self.path / MANIFEST).exists()
        wanted = [(self.path / path, [data]) for path, data in files.items()]
        disk.write_files([file for file in wanted if not (begun and file[0].exists())], tag=self.tag)
        if not begun:
            disk.write_file(self.path / MANIFEST, self.manifest.to_json(), tag=self.tag)


@contextmanager
def lock_partition(cache: Path, partition: int) -> Generator[None]:
    """Be the only writer of a partition while the block runs; folders that were made only for the lock are removed.

    Raises InUseError when the partition has a writer, DiskError where the file system offers no locks.
    """
    path = cache / "locks" / f"part-{partition:05d}"
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        with locks.lock(path):
            yield
    finally:
        for folder in made:
            disk.remove_if_empty(folder)


def tidy_finished(path: Path, partition: int) -> None:
    """Seal a partition of a finished cache and remove its drafts, if a kill left that undone; a disk may refuse."""
    seal_finished(path, partition)
    remove_drafts(path, partition)


def check_partition(path: Path, manifest: Manifest, number: int = 0) -> None:
    """Raise what prevents a partition from being written, and write nothing.

    MismatchError for another cache in ``path``, CapacityError for a disk that has no room for what is missing.
    """
    _refuse_another(path, manifest)
    spare = _spare_bytes(path, manifest, journal_of(path, manifest, number), number)
    if spare < 0:
        free = disk.free_bytes(path)
        what = f"The cache needs {in_bytes(free - spare)} more; {in_bytes(free)} are free."
        raise CapacityError(what, where=path, remedy="Ask for fewer rows, or choose a folder on a larger disk.")


def _spare_bytes(path: Path, manifest: Manifest, journal: Journal, number: int) -> int:
    geometry = manifest.geometry
    missing = sum(
        group.segment_bytes(segment)
        for name, group in geometry.groups.items()
        for segment in geometry.partition_segments(name, number)
        if (name, segment) not in journal.commits
    )
    # Exact for plain rows; for compressed rows with the best ratio of any codec.
    return disk.free_bytes(path) - minimum_bytes(missing, geometry.codec, geometry.dtype)


def _refuse_another(path: Path, manifest: Manifest) -> None:
    geometry = manifest.geometry
    refuse_links(path, geometry)
    if not (path / MANIFEST).exists():
        return
    existing = read_manifest(path)
    if existing.fingerprint != manifest.fingerprint:
        _refuse_other_count(existing, geometry.partitions, path=path)
        difference = first_difference(manifest.determining(), existing.determining())
        what = f"The cache here was made with other settings: {difference}."
        raise MismatchError(what, where=path, remedy="Choose another folder, or give --fresh to replace it.")
    if existing.geometry.codec != geometry.codec:
        what = f"The cache here has codec {existing.geometry.codec}, not {geometry.codec}."
        remedy = f"Set cache.codec to {existing.geometry.codec}; 'nestcoder cache pack' changes the codec of a cache."
        raise MismatchError(what, where=path, remedy=remedy)


def _refuse_other_count(existing: Manifest, partitions: int, *, path: Path) -> None:
    """Raise MismatchError when another number of processes began the cache: each has a partition of its own."""
    begun = existing.geometry.partitions
    if begun != partitions:
        what = f"This cache was begun by {begun} process{'es' if begun > 1 else ''}, not by {partitions}."
        remedy = f"Run it with {begun}: each process fills its own share of the rows. Or choose another folder."
        raise MismatchError(what, where=path, remedy=remedy)


def remove_cache(path: Path) -> None:
    """Remove the cache in this folder, but no other file in it. Raises InUseError when a writer is running."""
    with locks.lock_all(partition_locks(path)):
        # The seals first: without its journal, a seal says that a complete cache was damaged.
        for name in (SEALS, MANIFEST, "journal", STORE, DRAFTS, "quarantine", "locks"):
            disk.remove(path / name)
