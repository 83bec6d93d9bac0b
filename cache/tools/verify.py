"""Whether a cache holds what its manifest and journals promise, file by file, and what exactly is wrong where not.

    damaged     bytes were changed; the chunks and rows are named
    truncated   shorter (or longer) than promised
    missing     promised, not there
    swapped     holds the bytes that another file should hold
    surplus     nothing promises it, and no writer leaves such a file behind
    link        not a plain file or folder
    unreadable  a journal that does not read, or belongs to another cache

Files that an interrupted writer leaves (written aside, or renamed and not yet journalled) are no damage: the next
harvest writes them again. They are counted as ``leftovers``.
"""

import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import xxhash

from cache.format.chunks import checked
from cache.format.journal import Commit, FileEntry, Journal, journal_of, journal_path
from cache.format.layout import STORE, Array, Geometry
from cache.format.manifest import Manifest, read_manifest
from common.errors import DamagedError, NestcoderError
from common.progress import Progress, Silent

_PIECE_BYTES = 4 << 20
_SHOWN = 20


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. ``segment`` is where its rows belong: (group, segment), None for other files."""

    kind: str
    path: str
    detail: str = ""
    chunks: tuple[int, ...] = ()
    segment: tuple[str, int] | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}" + (f", {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class Promise:
    """What a file should be. ``array`` and ``file`` say what it holds, None for metadata and parameters."""

    entry: FileEntry
    array: Array | None = None
    file: int = 0
    segment: tuple[str, int] | None = None


@dataclass(frozen=True)
class Verification:
    """What ``verify_cache`` found. Seconds and bytes give its speed; ``segments`` are (committed, of the whole)."""

    path: str
    fingerprint: str
    fast: bool
    files: int
    bytes: int
    seconds: float
    segments: tuple[int, int]
    faults: tuple[Fault, ...]
    leftovers: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every row that was asked for is committed."""
        return self.segments[0] == self.segments[1]

    @property
    def damaged_segments(self) -> tuple[tuple[str, int], ...]:
        """Segments with a fault, in order."""
        return tuple(sorted({fault.segment for fault in self.faults if fault.segment}))

    def require_whole(self) -> None:
        """Raises DamagedError that names every fault (the first 20 of many)."""
        if not self.faults:
            return
        count = f"{len(self.faults)} faults" if len(self.faults) > 1 else "1 fault"
        shown = [f"  {fault}" for fault in self.faults[:_SHOWN]]
        if len(self.faults) > _SHOWN:
            shown.append(f"  and {len(self.faults) - _SHOWN} more")
        remedy = "\n".join([*shown, f"Run 'nestcoder cache repair {self.path}', then harvest again."])
        raise DamagedError(f"The cache has {count}.", where=self.path, remedy=remedy)


@dataclass(frozen=True)
class Promises:
    """A cache's promises by path, the faults of the journals themselves, and how many segments are committed."""

    manifest: Manifest
    journals: dict[int, Journal]
    files: dict[str, Promise]
    faults: tuple[Fault, ...]

    @property
    def segments(self) -> tuple[int, int]:
        committed = sum(len(journal.commits) for journal in self.journals.values())
        return committed, sum(group.segments for group in self.manifest.geometry.groups.values())


def verify_cache(path: Path, *, fast: bool = False, progress: Progress | None = None) -> Verification:
    """Check every file of the cache; with ``fast`` the shards' sizes alone, not their bytes. Never changes anything.

    Raises what ``read_manifest`` raises: without its manifest nothing is known about a cache. Everything else that is
    wrong is in the result's ``faults``.
    """
    began = time.monotonic()
    promises = read_promises(path)
    present, faults = _walk(path / STORE)
    found = {f"{STORE}/{name}" for name in present}
    unexpected = sorted(found - promises.files.keys())
    leftovers = _leftovers(promises.manifest.geometry)
    surplus = [Fault("surplus", name) for name in unexpected if not leftovers(name)]
    checked = _check_all(path, promises, fast=fast, progress=progress or Silent())
    return Verification(
        path=str(path),
        fingerprint=promises.manifest.fingerprint,
        fast=fast,
        files=len(promises.files),
        bytes=sum(promise.entry.size_bytes for promise in promises.files.values()),
        seconds=time.monotonic() - began,
        segments=promises.segments,
        faults=(*promises.faults, *faults, *_name_swaps(checked, promises), *surplus),
        leftovers=tuple(name for name in unexpected if leftovers(name)),
    )


def read_promises(path: Path) -> Promises:
    """What the manifest and the journals of a cache promise. Raises what ``read_manifest`` raises."""
    manifest = read_manifest(path)
    files = {name: Promise(FileEntry(name, size, digest, "")) for name, (size, digest) in manifest.files.items()}
    journals: dict[int, Journal] = {}
    faults: list[Fault] = []
    for part in range(manifest.geometry.parts):
        try:
            journals[part] = journal_of(path, manifest, part)
        except NestcoderError as error:
            faults.append(Fault("unreadable", journal_path(part), error.what))
            continue
        for commit in journals[part].commits.values():
            files |= _promised(commit, manifest.geometry)
    return Promises(manifest, journals, files, tuple(faults))


def _promised(commit: Commit, geometry: Geometry) -> dict[str, Promise]:
    places = geometry.groups[commit.group].segment_files(commit.segment)
    segment = (commit.group, commit.segment)
    return {
        entry.path: Promise(entry, array, file, segment)
        for entry, (array, file) in zip(commit.files, places, strict=True)
    }


def _walk(store: Path) -> tuple[list[str], list[Fault]]:
    """Plain files below ``store``, by relative path, and a fault for each thing that is neither file nor folder."""
    files: list[str] = []
    faults: list[Fault] = []
    folders = [store]
    while folders:
        folder = folders.pop()
        if folder.is_symlink() or not folder.is_dir():
            faults.append(Fault("link" if folder.is_symlink() else "missing", str(folder.relative_to(store.parent))))
            continue
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    files.append(str(Path(entry.path).relative_to(store)))
                else:
                    faults.append(Fault("link", str(Path(entry.path).relative_to(store.parent))))
    return files, faults


def _leftovers(geometry: Geometry) -> Callable[[str], bool]:
    """Tells the files that an interrupted writer may leave: written aside, or of a segment not committed."""
    arrays = {array.path: array for group in geometry.groups.values() for array in group.arrays.values()}

    def is_leftover(name: str) -> bool:
        folder, _, file = name.rpartition("/")
        if file.startswith(".") and file.endswith(".aside"):
            return True
        array, number = arrays.get(folder), file.removeprefix("c.").removesuffix(".0")
        if array is None or not (number.isascii() and number.isdigit() and len(number) < 16):
            return False
        return int(number) < array.files and array.file_path(int(number)) == name

    return is_leftover


def _check_all(path: Path, promises: Promises, *, fast: bool, progress: Progress) -> list[tuple[Promise, Fault, str]]:
    """Every file that is not as promised, with its hash where that was computed."""
    wanted = sorted(promises.files.values(), key=lambda promise: promise.entry.path)
    progress.begin("verify", total=sum(promise.entry.size_bytes for promise in wanted), unit="bytes")
    wrong: list[tuple[Promise, Fault, str]] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(partial(check_file, path, fast=fast), wanted)
        for promise, (fault, digest) in zip(wanted, results, strict=True):
            progress.advance(promise.entry.size_bytes)
            if fault:
                wrong.append((promise, fault, digest))
    progress.end()
    return wrong


def check_file(path: Path, promise: Promise, *, fast: bool) -> tuple[Fault | None, str]:
    """Compare one file with its promise: (fault or None, the file's hash where it was computed)."""
    name, entry = promise.entry.path, promise.entry
    segment = promise.segment
    try:
        descriptor = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Fault("missing", name, segment=segment), ""
    except OSError as error:
        return Fault("link", name, os.strerror(error.errno or 0), segment=segment), ""
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            return Fault("link", name, "no plain file", segment=segment), ""
        if state.st_size != entry.size_bytes:
            return Fault("truncated", name, f"{state.st_size} of {entry.size_bytes} bytes", segment=segment), ""
        if fast and promise.array is not None:
            return None, ""
        try:
            digest = _hash(_pieces(file.readinto, _PIECE_BYTES))
        except OSError as error:
            return Fault("damaged", name, os.strerror(error.errno or 0), segment=segment), ""
        if digest == entry.xxh3:
            return None, digest
        return _damage(promise, descriptor), digest


def _pieces(readinto: Callable[[memoryview], int | None], size: int) -> Iterator[memoryview]:
    """The file in pieces of ``size`` bytes, all in one buffer: each piece is gone when the next one comes."""
    buffer = memoryview(bytearray(size))
    filled = 0
    while count := readinto(buffer[filled:]):
        filled += count
        if filled == size:
            yield buffer
            filled = 0
    if filled:
        yield buffer[:filled]


def _hash(pieces: Iterable[memoryview]) -> str:
    hasher = xxhash.xxh3_128()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def _damage(promise: Promise, descriptor: int) -> Fault:
    """Which chunks of a file that does not match its hash are damaged, and which rows those are."""
    array, entry = promise.array, promise.entry
    if array is None:
        return Fault("damaged", entry.path)
    bad = tuple(n for n in range(array.chunks_in(promise.file)) if not _is_sound(array, entry, n, descriptor))
    first = promise.file * array.file_rows
    named = [f"chunk {n} ({_rows_said(array, first + n * array.chunk_rows)})" for n in bad]
    detail = ", ".join(named[:4]) + (f" and {len(bad) - 4} more chunks" if len(bad) > 4 else "")
    return Fault("damaged", entry.path, detail or "its index", chunks=bad, segment=promise.segment)


def _is_sound(array: Array, entry: FileEntry, inside: int, descriptor: int) -> bool:
    start, size = entry.stretch(inside, array.chunk_bytes)
    try:
        checked(array, entry, inside, os.pread(descriptor, size, start))
    except DamagedError:
        return False
    return True


def _rows_said(array: Array, first: int) -> str:
    last = min(first + array.chunk_rows, array.rows) - 1
    return f"row {first}" if first == last else f"rows {first} to {last}"


def _name_swaps(wrong: list[tuple[Promise, Fault, str]], promises: Promises) -> Generator[Fault]:
    """The faults, with those files named that hold just what another one should."""
    owners = {promise.entry.xxh3: name for name, promise in promises.files.items()} if wrong else {}
    for _, fault, digest in wrong:
        owner = owners.get(digest) if digest else None
        yield replace(fault, kind="swapped", detail=f"holds the bytes of {owner}") if owner else fault
