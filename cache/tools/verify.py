"""Whether a cache has the files that its manifest and journals name, and the faults of each file.

    damaged     bytes were changed; the chunks and rows are named
    truncated   shorter (or longer) than it should be
    missing     named, but not there
    swapped     has the bytes that another file should have
    surplus     not named, and no writer leaves such a file
    link        not a plain file or folder
    unreadable  a journal that cannot be read, or belongs to another cache

Files that an interrupted writer leaves (temporary ones, or renamed and not yet in the journal) are no damage: the next
harvest writes them again. They are counted as ``leftovers``.
"""

import os
import stat
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cache.format.array import STORE, Array
from cache.format.chunks import THREADS, checked
from cache.format.journal import FileEntry
from cache.format.layout import Geometry
from cache.tools.index import CacheIndex, ExpectedFile, Fault, read_index
from common.errors import DamagedError
from common.hashing import hash_stream
from common.progress import Progress, Silent

_SHOWN = 20
"""Faults that a message lists: enough to see the pattern, few enough for a terminal."""


@dataclass(frozen=True)
class Verification:
    """The result of ``verify_cache``. ``segments`` are (committed, wanted)."""

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
        """Whether all rows are committed."""
        return self.segments[0] == self.segments[1]

    @property
    def damaged_segments(self) -> tuple[tuple[str, int], ...]:
        """Segments with a fault, in order."""
        return tuple(sorted({fault.segment for fault in self.faults if fault.segment}))

    def require_sound(self) -> None:
        """Raises DamagedError that names every fault (the first 20 of many)."""
        if not self.faults:
            return
        count = f"{len(self.faults)} faults" if len(self.faults) > 1 else "1 fault"
        shown = [f"  {fault}" for fault in self.faults[:_SHOWN]]
        if len(self.faults) > _SHOWN:
            shown.append(f"  and {len(self.faults) - _SHOWN} more")
        remedy = "\n".join([*shown, f"Run 'nestcoder cache repair {self.path}', then harvest again."])
        raise DamagedError(f"The cache has {count}.", where=self.path, remedy=remedy)


def verify_cache(path: Path, *, fast: bool = False, progress: Progress | None = None) -> Verification:
    """Check every file of the cache; with ``fast`` only the sizes of the shards, not their bytes. Changes nothing.

    Raises what ``read_manifest`` raises: without its manifest nothing is known about a cache. All other faults are in
    the result's ``faults``.
    """
    began = time.monotonic()
    index = read_index(path)
    present, faults = _walk(path / STORE)
    found = {f"{STORE}/{name}" for name in present}
    unexpected = sorted(found - index.files.keys())
    leftovers = _leftovers(index.manifest.geometry)
    surplus = [Fault("surplus", name) for name in unexpected if not leftovers(name)]
    wrong = _check_all(path, index, fast=fast, progress=progress or Silent())
    return Verification(
        path=str(path),
        fingerprint=index.manifest.fingerprint,
        fast=fast,
        files=len(index.files),
        bytes=index.bytes,
        seconds=time.monotonic() - began,
        segments=index.segments,
        faults=(*index.faults, *faults, *_name_swaps(wrong, index), *surplus),
        leftovers=tuple(name for name in unexpected if leftovers(name)),
    )


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
    """A test for the files that an interrupted writer may leave: temporary, or of a segment that is not committed."""
    arrays = {array.path: array for group in geometry.groups.values() for array in group.arrays.values()}

    def is_leftover(name: str) -> bool:
        """Whether a writer may have left the file ``name``, a path below the cache."""
        folder, _, file = name.rpartition("/")
        if file.startswith(".") and file.endswith(".aside"):
            return True
        array = arrays.get(folder)
        number = file.removeprefix("c.").removesuffix(".0")
        # No file of ours has a number of 16 digits; int() would read one of thousands.
        if array is None or not (number.isascii() and number.isdigit() and len(number) < 16):
            return False
        return int(number) < array.files and array.file_path(int(number)) == name

    return is_leftover


def _check_all(
    path: Path, index: CacheIndex, *, fast: bool, progress: Progress
) -> list[tuple[ExpectedFile, Fault, str]]:
    """Every file that is not as expected, with its hash if that was computed."""
    wanted = sorted(index.files.values(), key=lambda expected: expected.entry.path)
    progress.begin("verify", total=sum(expected.entry.size_bytes for expected in wanted), unit="bytes")
    wrong: list[tuple[ExpectedFile, Fault, str]] = []
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(partial(check_file, path, fast=fast), wanted)
        for expected, (fault, digest) in zip(wanted, results, strict=True):
            progress.advance(expected.entry.size_bytes)
            if fault:
                wrong.append((expected, fault, digest))
    progress.end()
    return wrong


def check_file(path: Path, expected: ExpectedFile, *, fast: bool) -> tuple[Fault | None, str]:
    """Compare one file with what it should be: (fault or None, the file's hash or '' if it was not computed)."""
    entry = expected.entry
    name = entry.path
    segment = expected.segment
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
        if fast and expected.array is not None:
            return None, ""
        try:
            digest = hash_stream(file)
        except OSError as error:
            return Fault("damaged", name, os.strerror(error.errno or 0), segment=segment), ""
        if digest == entry.xxh3:
            return None, digest
        return _damage(expected, descriptor), digest


def _damage(expected: ExpectedFile, descriptor: int) -> Fault:
    """The damaged chunks of a file that does not match its hash, and their rows."""
    array = expected.array
    entry = expected.entry
    if array is None:
        return Fault("damaged", entry.path)
    bad = tuple(n for n in range(array.chunks_in(expected.file)) if not _is_sound(array, entry, n, descriptor))
    first = expected.file * array.file_rows
    named = [f"chunk {n} ({_rows_text(array, first + n * array.chunk_rows)})" for n in bad]
    # Four chunks fit into a line of a terminal.
    detail = ", ".join(named[:4]) + (f" and {len(bad) - 4} more chunks" if len(bad) > 4 else "")
    return Fault("damaged", entry.path, detail or "its index", chunks=bad, segment=expected.segment)


def _is_sound(array: Array, entry: FileEntry, inside: int, descriptor: int) -> bool:
    start, size = entry.byte_range(inside, array.chunk_bytes)
    try:
        checked(array, entry, inside, os.pread(descriptor, size, start))
    except DamagedError:
        return False
    return True


def _rows_text(array: Array, first: int) -> str:
    last = min(first + array.chunk_rows, array.rows) - 1
    return f"row {first}" if first == last else f"rows {first} to {last}"


def _name_swaps(wrong: list[tuple[ExpectedFile, Fault, str]], index: CacheIndex) -> Generator[Fault]:
    """The faults; a file that has the bytes of another one is called ``swapped``."""
    owners = {expected.entry.xxh3: name for name, expected in index.files.items()} if wrong else {}
    for _, fault, digest in wrong:
        owner = owners.get(digest) if digest else None
        yield replace(fault, kind="swapped", detail=f"has the bytes of {owner}") if owner else fault
