"""The journals of a cache, each with its seal: a copy of the journal from the moment when the part was complete.

    seals/part-00000.jsonl

What the journal does not name does not exist, so a journal that lost its last lines, or all of them, would look like
that of a cache that is not finished. The seal says that it was, and holds every line that is lost. It lies in a folder
of its own: whatever takes the journal away leaves it. A journal only grows, so a sound one begins with the sealed
bytes.
Caches from before there were seals have none and are read as they are.
"""

from contextlib import suppress
from pathlib import Path

from cache.format.journal import Commit, Journal, append, header, journal_path, read_journal
from cache.format.manifest import Manifest
from common import disk
from common.errors import DamagedError, DiskError, NestcoderError

SEALS = "seals"
_REPAIR = "Run 'nestcoder cache repair' on the cache: it writes the one again from the other."


def seal_path(part: int) -> str:
    """Where the seal of ``part`` lies, below the cache."""
    return f"{SEALS}/part-{part:05d}.jsonl"


def journal_of(path: Path, manifest: Manifest, part: int) -> Journal:
    """The journal of a part of the cache in folder ``path``, compared with the part's seal.

    Raises DamagedError naming the line that does not read or what was lost since the part was complete, MismatchError
    when the journal belongs to another cache.
    """
    journal = _read(path, journal_path(part), manifest, part)
    if (path / seal_path(part)).exists():
        _compare(path, manifest, part, journal)
    return journal


def commits_of(path: Path, manifest: Manifest) -> dict[tuple[str, int], Commit]:
    """What all parts of the cache in folder ``path`` have committed. Raises as ``journal_of``."""
    journals = [journal_of(path, manifest, part) for part in range(manifest.geometry.parts)]
    return {key: commit for journal in journals for key, commit in journal.commits.items()}


def open_journal(cache: Path, manifest: Manifest, part: int) -> Journal:
    """The journal of a part, ready to be added to: begun if it is not there, a torn last line cut off."""
    journal = journal_of(cache, manifest, part)
    path = cache / journal_path(part)
    if path.exists() and path.stat().st_size != journal.whole_bytes:
        disk.truncate(path, journal.whole_bytes)
    if not journal.lines:
        disk.make_folder(path.parent)
        append(path, header(manifest.fingerprint, part))
        disk.sync_folder(path.parent)
        journal.lines = 1
    return journal


def part_locks(path: Path) -> list[Path]:
    """The lock files of all parts that have written to the cache in ``path``: for who must be alone in it."""
    files = [*(path / "locks").glob("part-*"), *(path / "journal").glob("part-*.jsonl")]
    names = {file.name.removesuffix(".jsonl") for file in files}
    return [path / "locks" / name for name in sorted(names)]


def seal_part(path: Path, part: int) -> bool:
    """Seal a part, which must be complete, if it is not sealed yet; whether the seal was written now."""
    journal = (path / journal_path(part)).read_bytes()
    seal = path / seal_path(part)
    if seal.is_file() and seal.read_bytes() == journal:
        return False
    disk.write_file(seal, journal, tag=f"part-{part:05d}")
    return True


def seal_finished(path: Path, part: int) -> None:
    """Seal a part of a finished cache that a kill, or an earlier version, left without; a read-only disk may refuse."""
    if (path / journal_path(part)).exists():
        with suppress(DiskError):
            seal_part(path, part)


def is_part_complete(journal: Journal, manifest: Manifest, part: int) -> bool:
    """Whether the journal names every segment of the part."""
    return len(journal.commits) == sum(
        len(manifest.geometry.part_segments(group, part)) for group in manifest.geometry.groups
    )


def _read(path: Path, name: str, manifest: Manifest, part: int) -> Journal:
    return read_journal(path / name, geometry=manifest.geometry, fingerprint=manifest.fingerprint, part=part)


def _compare(path: Path, manifest: Manifest, part: int, journal: Journal) -> None:
    seal = path / seal_path(part)
    try:
        sealed = _read(path, seal_path(part), manifest, part)
    except NestcoderError as error:
        raise DamagedError(f"The seal of a part does not read: {error.what}", where=seal, remedy=_REPAIR) from None
    if not is_part_complete(sealed, manifest, part):
        raise DamagedError("The seal of a part is cut: it does not name every segment.", where=seal, remedy=_REPAIR)

    existing = journal.path.read_bytes() if journal.path.exists() else b""
    if not existing.startswith(seal.read_bytes()):
        lost = len(sealed.commits.keys() - journal.commits.keys())
        what = (
            f"This cache was complete, but its journal has lost {lost} of the {len(sealed.commits)} segments it named."
        )
        raise DamagedError(what, where=journal.path, remedy=_REPAIR)
