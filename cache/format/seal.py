"""Seals: a copy of each journal from the moment when its partition was complete.

    seals/part-00000.jsonl

A segment that the journal does not name does not exist. So a journal that lost its last lines, or all of them, would
look like that of an unfinished cache. The seal shows that the cache was complete, and has every lost line. It is in a
folder of its own, so that whatever removes the journals leaves the seals. A journal only grows, so an undamaged one
begins with the sealed bytes.
Caches from before there were seals have none; they are read by their journals alone.
"""

from contextlib import suppress
from pathlib import Path

from cache.format.journal import Commit, Journal, append, header, journal_path, read_journal
from cache.format.manifest import Manifest
from common import disk
from common.errors import DamagedError, DiskError, NestcoderError

SEALS = "seals"
_REPAIR = (
    "Run 'nestcoder cache repair' on the cache: it restores the journal from the seal, or the seal from the journal."
)


def seal_path(partition: int) -> str:
    """The path of the seal of ``partition``, below the cache."""
    return f"{SEALS}/part-{partition:05d}.jsonl"


def journal_of(path: Path, manifest: Manifest, partition: int) -> Journal:
    """The journal of a partition of the cache in folder ``path``, compared with the partition's seal.

    Raises DamagedError that names the line that does not read, or what was lost since the partition was complete;
    MismatchError when the journal belongs to another cache.
    """
    journal = _read(path, journal_path(partition), manifest, partition)
    if (path / seal_path(partition)).exists():
        _compare(path, manifest, partition, journal)
    return journal


def commits_of(path: Path, manifest: Manifest) -> dict[tuple[str, int], Commit]:
    """All committed segments of the cache in folder ``path``, by (group, segment). Raises as ``journal_of``."""
    journals = [journal_of(path, manifest, partition) for partition in range(manifest.geometry.partitions)]
    return {key: commit for journal in journals for key, commit in journal.commits.items()}


def open_journal(cache: Path, manifest: Manifest, partition: int) -> Journal:
    """The journal of a partition, ready for more lines: made if it is missing, without a torn last line."""
    journal = journal_of(cache, manifest, partition)
    path = cache / journal_path(partition)
    if path.exists() and path.stat().st_size != journal.intact_bytes:
        disk.truncate(path, journal.intact_bytes)
    if not journal.lines:
        disk.make_folder(path.parent)
        append(path, header(manifest.fingerprint, partition))
        disk.sync_folder(path.parent)
        journal.lines = 1
    return journal


def partition_locks(path: Path) -> list[Path]:
    """The lock files of all partitions that have written to the cache in ``path``: who has all of them is alone."""
    files = [*(path / "locks").glob("part-*"), *(path / "journal").glob("part-*.jsonl")]
    names = {file.name.removesuffix(".jsonl") for file in files}
    return [path / "locks" / name for name in sorted(names)]


def seal_partition(path: Path, partition: int) -> bool:
    """Seal a complete partition unless it is sealed already; returns whether the seal was written now."""
    journal = (path / journal_path(partition)).read_bytes()
    seal = path / seal_path(partition)
    if seal.is_file() and seal.read_bytes() == journal:
        return False
    disk.write_file(seal, journal, tag=f"part-{partition:05d}")
    return True


def seal_finished(path: Path, partition: int) -> None:
    """Seal a partition of a finished cache where a kill or an earlier version left no seal.

    A read-only disk may refuse it: then there is still none.
    """
    if (path / journal_path(partition)).exists():
        with suppress(DiskError):
            seal_partition(path, partition)


def is_partition_complete(journal: Journal, manifest: Manifest, partition: int) -> bool:
    """Whether the journal names every segment of the partition."""
    return len(journal.commits) == sum(
        len(manifest.geometry.partition_segments(group, partition)) for group in manifest.geometry.groups
    )


def _read(path: Path, name: str, manifest: Manifest, partition: int) -> Journal:
    return read_journal(path / name, geometry=manifest.geometry, fingerprint=manifest.fingerprint, partition=partition)


def _compare(path: Path, manifest: Manifest, partition: int, journal: Journal) -> None:
    seal = path / seal_path(partition)
    try:
        sealed = _read(path, seal_path(partition), manifest, partition)
    except NestcoderError as error:
        what = f"The seal of a partition cannot be read: {error.what}"
        raise DamagedError(what, where=seal, remedy=_REPAIR) from None
    if not is_partition_complete(sealed, manifest, partition):
        raise DamagedError(
            "The seal of a partition is cut: it does not name every segment.", where=seal, remedy=_REPAIR
        )

    existing = journal.path.read_bytes() if journal.path.exists() else b""
    if not existing.startswith(seal.read_bytes()):
        lost = len(sealed.commits.keys() - journal.commits.keys())
        what = f"This cache was complete, but its journal has lost {lost} of the {len(sealed.commits)} segments in it."
        raise DamagedError(what, where=journal.path, remedy=_REPAIR)
