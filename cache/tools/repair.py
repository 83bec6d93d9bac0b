"""Repairs a cache: damaged files are moved away, so that the next harvest writes exactly these again.

Files that can be computed are restored at once (zarr.json). A damaged shard is moved to ``quarantine/`` and its segment
is revoked in the journal: the rows of a segment are shuffled over its shards, so the text of all of them has to be read
again. A line that a journal lost is taken from its seal; without a seal, the segment is harvested again. A damaged
manifest is written again by the next harvest. Nothing is deleted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.format.journal import append, journal_line, journal_path, revoke_line, sound_lines
from cache.format.manifest import MANIFEST, Manifest, read_manifest
from cache.format.seal import is_partition_complete, journal_of, partition_locks, seal_partition, seal_path
from cache.tools.index import Fault, journal_fault
from cache.tools.verify import Verification, verify_cache
from common import disk
from common.errors import DamagedError, DiskError, NestcoderError
from common.hashing import canonical_json
from common.processes import locks
from common.progress import Progress

QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Repair:
    """What ``repair_cache`` did. The ``revoked`` segments, (group, segment), have ``rows`` rows to harvest again."""

    path: str
    faults: tuple[Fault, ...]
    quarantined: tuple[str, ...]
    rewritten: tuple[str, ...]
    revoked: tuple[tuple[str, int], ...]
    rows: int


def repair_cache(path: Path, *, progress: Progress | None = None) -> Repair:
    """Verify the cache and revoke what is damaged; a second call finds nothing to do.

    Raises InUseError while a writer is running, MismatchError for an unknown format version.
    """
    quarantined: list[str] = []
    with locks.lock_all(partition_locks(path)):
        try:
            manifest = read_manifest(path)
        except DamagedError as error:
            _set_aside(path, MANIFEST, quarantined)
            fault = Fault("damaged", MANIFEST, error.what)
            return Repair(str(path), (fault,), tuple(quarantined), (), (), 0)
        faults = _mend_journals(path, manifest, quarantined)
        found = verify_cache(path, progress=progress)
        strays = [fault for fault in found.faults if fault.kind in {"link", "surplus"}]
        for fault in strays:
            _set_aside(path, fault.path, quarantined)
        if any(fault.kind == "link" for fault in strays):
            faults += strays
            found = verify_cache(path, progress=progress)
        # A shard goes to the quarantine before its segment is revoked: after a kill in between, the next repair finds
        # it missing and revokes. In the other order it would take the bad shard for a file of an interrupted writer.
        rewritten = _mend_files(path, manifest, found, quarantined)
        _revoke(path, manifest, found.damaged_segments)
    return Repair(
        path=str(path),
        faults=(*faults, *found.faults),
        quarantined=tuple(quarantined),
        rewritten=tuple(rewritten),
        revoked=found.damaged_segments,
        rows=sum(manifest.geometry.groups[group].rows_in(segment) for group, segment in found.damaged_segments),
    )


def _set_aside(path: Path, name: str, quarantined: list[str]) -> None:
    """Move a file, folder or link of the cache to the quarantine, where it replaces an earlier one of that name."""
    if not (path / name).exists() and not (path / name).is_symlink():
        return
    disk.remove(path / QUARANTINE / name)
    disk.move(path / name, path / QUARANTINE / name)
    quarantined.append(name)


def _mend_journals(path: Path, manifest: Manifest, quarantined: list[str]) -> list[Fault]:
    """Rewrite each journal that cannot be read or has lost lines, from the intact lines of the seal and its own."""
    faults: list[Fault] = []
    for partition in range(manifest.geometry.partitions):
        try:
            journal_of(path, manifest, partition)
        except DiskError:
            raise
        except NestcoderError as error:
            faults.append(journal_fault(path, partition, error))
            _mend_journal(path, manifest, partition, quarantined)
    return faults


def _mend_journal(path: Path, manifest: Manifest, partition: int, quarantined: list[str]) -> None:
    journal = journal_path(partition)
    seal = seal_path(partition)
    sealed = _sound(path / seal, manifest, partition)
    own = _sound(path / journal, manifest, partition)
    known = {canonical_json(line | {"n": 0}) for line in sealed}
    added = [line for line in own if canonical_json(line | {"n": 0}) not in known]
    lines = [line | {"n": number} for number, line in enumerate([*sealed, *added])]

    # A copy goes to the quarantine, then the repaired journal replaces the damaged one: a kill leaves one of the two.
    _copy_aside(path, journal, quarantined)
    disk.write_file(path / journal, list(map(journal_line, lines)))
    if (path / seal).exists() and not _is_sealed(path, manifest, partition):
        _set_aside(path, seal, quarantined)
    mended = journal_of(path, manifest, partition)
    if is_partition_complete(mended, manifest, partition):
        seal_partition(path, partition)


def _sound(path: Path, manifest: Manifest, partition: int) -> list[dict[str, Any]]:
    """The lines of a journal or a seal that can be read and belong to this partition."""
    data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    return sound_lines(data, geometry=manifest.geometry, fingerprint=manifest.fingerprint, partition=partition)


def _is_sealed(path: Path, manifest: Manifest, partition: int) -> bool:
    """Whether the journal and the seal of a partition fit each other."""
    try:
        journal_of(path, manifest, partition)
    except NestcoderError:
        return False
    return True


def _copy_aside(path: Path, name: str, quarantined: list[str]) -> None:
    """Copy a file to the quarantine; anything but a plain file is moved there."""
    file = path / name
    if file.is_file() and not file.is_symlink():
        disk.write_file(path / QUARANTINE / name, file.read_bytes())
        quarantined.append(name)
    else:
        _set_aside(path, name, quarantined)


def _revoke(path: Path, manifest: Manifest, segments: tuple[tuple[str, int], ...]) -> None:
    for partition in range(manifest.geometry.partitions):
        own = [
            (group, segment)
            for group, segment in segments
            if segment in manifest.geometry.partition_segments(group, partition)
        ]
        if not own:
            continue
        journal = journal_of(path, manifest, partition)
        disk.truncate(path / journal_path(partition), journal.intact_bytes)
        for number, (group, segment) in enumerate(own, start=journal.lines):
            append(path / journal_path(partition), revoke_line(number, group, segment))


def _mend_files(path: Path, manifest: Manifest, found: Verification, quarantined: list[str]) -> list[str]:
    """Quarantine every damaged file; rewrite those that can be computed from the manifest."""
    computed = manifest.geometry.zarr_files()
    rewritten = list[str]()
    for fault in found.faults:
        _set_aside(path, fault.path, quarantined)
        if fault.path in computed:
            disk.write_file(path / fault.path, computed[fault.path])
            rewritten.append(fault.path)
    return rewritten
