"""Sets damaged parts of a cache aside, so that the next harvest writes exactly those again.

What can be computed is put back at once (zarr.json). A damaged shard is moved to ``quarantine/`` and its segment is
revoked in the journal: a segment's rows are shuffled over its shards, so their text has to be read again as a whole.
A damaged line of a journal loses its segment alone. A damaged manifest is written again by the harvest, whose settings
it comes from. Nothing is deleted.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cache.format.journal import append, journal_line, journal_of, journal_path, revoke_line, sound_lines
from cache.format.manifest import MANIFEST, Manifest, read_manifest
from cache.tools.index import Fault
from cache.tools.verify import Verification, verify_cache
from common import disk
from common.errors import DamagedError, NestcoderError
from common.progress import Progress

QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Repair:
    """What ``repair_cache`` did. ``revoked`` segments, (group, segment), hold ``rows`` rows to harvest again."""

    path: str
    faults: tuple[Fault, ...]
    quarantined: tuple[str, ...]
    rewritten: tuple[str, ...]
    revoked: tuple[tuple[str, int], ...]
    rows: int


def repair_cache(path: Path, *, progress: Progress | None = None) -> Repair:
    """Verify the cache and take back what is damaged; a second call finds nothing to do.

    Raises InUseError while a writer is at work, MismatchError for an unknown format version.
    """
    quarantined: list[str] = []
    with _alone(path):
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
        _revoke(path, manifest, found.damaged_segments)
        rewritten = _mend_files(path, manifest, found, quarantined)
    return Repair(
        path=str(path),
        faults=(*faults, *found.faults),
        quarantined=tuple(quarantined),
        rewritten=tuple(rewritten),
        revoked=found.damaged_segments,
        rows=sum(manifest.geometry.groups[group].rows_in(segment) for group, segment in found.damaged_segments),
    )


@contextmanager
def _alone(path: Path) -> Generator[None]:
    with ExitStack() as stack:
        for held in sorted((path / "locks").glob("part-*")):
            stack.enter_context(disk.lock(held))
        yield


def _set_aside(path: Path, name: str, quarantined: list[str]) -> None:
    """Move a file, folder or link of the cache to the quarantine, in place of an earlier one of that name."""
    if not (path / name).exists() and not (path / name).is_symlink():
        return
    disk.remove(path / QUARANTINE / name)
    disk.move(path / name, path / QUARANTINE / name)
    quarantined.append(name)


def _mend_journals(path: Path, manifest: Manifest, quarantined: list[str]) -> list[Fault]:
    """Write each journal that does not read again from its sound lines."""
    faults: list[Fault] = []
    for part in range(manifest.geometry.parts):
        try:
            journal_of(path, manifest, part)
        except NestcoderError as error:
            faults.append(Fault("unreadable", journal_path(part), error.what))
            data = (path / journal_path(part)).read_bytes() if (path / journal_path(part)).is_file() else b""
            _set_aside(path, journal_path(part), quarantined)
            _write_sound(path, manifest, part, data)
    return faults


def _write_sound(path: Path, manifest: Manifest, part: int, data: bytes) -> None:
    lines = sound_lines(data, geometry=manifest.geometry, fingerprint=manifest.fingerprint, part=part)
    disk.write_file(path / journal_path(part), list(map(journal_line, lines)))


def _revoke(path: Path, manifest: Manifest, segments: tuple[tuple[str, int], ...]) -> None:
    for part in range(manifest.geometry.parts):
        own = [
            (group, segment) for group, segment in segments if segment in manifest.geometry.part_segments(group, part)
        ]
        if not own:
            continue
        journal = journal_of(path, manifest, part)
        disk.truncate(path / journal_path(part), journal.whole_bytes)
        for number, (group, segment) in enumerate(own, start=journal.lines):
            append(path / journal_path(part), revoke_line(number, group, segment))


def _mend_files(path: Path, manifest: Manifest, found: Verification, quarantined: list[str]) -> list[str]:
    """Quarantine every damaged file; write those again that follow from the manifest alone."""
    computed, rewritten = manifest.geometry.zarr_files(), list[str]()
    for fault in found.faults:
        _set_aside(path, fault.path, quarantined)
        if fault.path in computed:
            disk.write_file(path / fault.path, computed[fault.path])
            rewritten.append(fault.path)
    return rewritten
