"""Every change of the disk that the project promises to survive: nothing else writes, renames or removes.

A file appears whole or not at all: it is written aside, flushed to the disk and renamed, and its folder is flushed.
Tests watch (and break) each operation through ``watch``.

Two things are asked of a file system that some do not offer: locks (``common.processes.locks``) and the flushing of a
folder (fsync; SMB and some FUSE file systems refuse it). Without them, work goes on only after ``accept_weak_disk``.
"""

import errno
import os
import shutil
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from common.errors import DiskError, UsageError

Bytes = bytes | bytearray | memoryview
Watcher = Callable[[str, str, Path], None]
_watchers: list[Watcher] = []
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
NOT_OFFERED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EPERM}
"""What file systems answer that do not know flock, or fsync of a folder."""
_weak_disk_accepted = False


def accept_weak_disk(accepted: bool) -> None:
    """Whether to go on, from now on in this process, where a file system offers no locks or flushes no folders."""
    global _weak_disk_accepted  # noqa: PLW0603 - a property of the machine that the process runs on, like the watchers
    _weak_disk_accepted = accepted


@contextmanager
def watch(watcher: Watcher) -> Generator[None]:
    """While the block runs, ``watcher("before" | "after", operation, path)`` is called around every operation."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@contextmanager
def operation(name: str, path: Path) -> Generator[None]:
    """One change of the disk, announced to the watchers. Raises DiskError for whatever the system refuses in it."""
    try:
        for watcher in _watchers:
            watcher("before", name, path)
        yield
        for watcher in _watchers:
            watcher("after", name, path)
    except OSError as error:
        raise refusal(error, name, path) from error


def refusal(error: OSError, name: str, path: Path) -> DiskError:
    """What the system refused, with its remedy."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        remedy = "Nothing was half-committed; free some space and run again: it goes on from here."
    elif error.errno in READ_ONLY:
        remedy = "Choose a folder that you may write to, or ask for the right to write here."
    else:
        remedy = "Nothing was half-committed; mend the disk and run again: it goes on from here."
    return DiskError(f"The disk refused to {name}: {reason}.", where=path, remedy=remedy)


def make_folder(path: Path) -> None:
    """Make the folder and its parents, each flushed into its own parent."""
    if "\0" in str(path):
        raise UsageError("This path cannot be: it holds a NUL character.", where=path)
    if path.is_dir():
        return
    make_folder(path.parent)
    with operation("make a folder", path):
        path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk. Raises DiskError that names the setting where this is not offered."""
    with operation("flush a folder", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in NOT_OFFERED:
                raise
            check_accepted("flush folders (fsync)", error, path, risk="a power cut may lose the last files")
        finally:
            os.close(descriptor)


def check_accepted(promise: str, error: OSError, path: Path, *, risk: str) -> None:
    """Raises DiskError where a file system does not keep a ``promise`` and nobody accepted that."""
    if _weak_disk_accepted:
        return
    reason = os.strerror(error.errno) if error.errno else str(error)
    what = f"This file system does not {promise}: {reason}."
    remedy = f"Set cache.weak_disk to true to go on ({risk}), or choose a folder on a local disk."
    raise DiskError(what, where=path, remedy=remedy) from None


def write_file(path: Path, data: Bytes | Iterable[Bytes], *, tag: str = "0") -> None:
    """Replace ``path`` by ``data`` (or pieces of it), whole or not at all; its folder is made when missing."""
    pieces = cast("Iterable[Bytes]", (data,) if isinstance(data, Bytes) else data)
    write_files([(path, pieces)], tag=tag)


def write_files(files: Iterable[tuple[Path, Iterable[Bytes]]], *, tag: str, threads: int = 1) -> None:
    """Replace several files, each whole or not at all; all are on the disk when this returns.

    Files are taken one by one, and flushed in the background while the next is made. With several ``threads`` as many
    are made at once; their pieces are then taken there. ``tag`` names the writer, so that two writers never write aside
    to the same name.
    """
    written: dict[Path, Path] = {}
    flushes: dict[Path, Future[None]] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="flush") as background:
        try:
            for path, pieces in files:
                if any(flush.done() and flush.exception() for flush in flushes.values()):
                    break  # raised below: nothing more need be made
                make_folder(path.parent)
                written[path] = aside_path(path, tag)
                if threads > 1:
                    flushes[path] = background.submit(_write_and_flush, written[path], pieces)
                else:
                    flushes[path] = background.submit(_flush_and_close, _write_aside(written[path], pieces))
            for path, aside in written.items():
                with operation("flush", aside):
                    flushes[path].result()
                with operation("rename", path):
                    aside.rename(path)
        except DiskError:
            background.shutdown(cancel_futures=True)  # or a file might be made after it was removed
            for aside in written.values():
                aside.unlink(missing_ok=True)
            raise
    for folder in sorted({path.parent for path in written}):
        sync_folder(folder)


def aside_path(path: Path, tag: str) -> Path:
    """Where the writer ``tag`` writes ``path`` before it is renamed."""
    return path.with_name(f".{path.name}.{tag}.aside")


def _write_aside(path: Path, pieces: Iterable[Bytes]) -> int:
    """The descriptor of a new file that holds the pieces, not yet flushed."""
    with operation("write", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            _write_all(descriptor, pieces)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def _write_and_flush(path: Path, pieces: Iterable[Bytes]) -> None:
    _flush_and_close(_write_aside(path, pieces))


def _flush_and_close(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, pieces: Iterable[Bytes]) -> None:
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while view:
            view = view[os.write(descriptor, view) :]


def append_line(path: Path, line: bytes) -> None:
    """Append one line, which ends with its newline, to a file and flush it."""
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1], "a line holds no other newline"
    append(path, [line])


def append(path: Path, pieces: Iterable[Bytes]) -> None:
    """Append pieces to a file, which is made when missing, and flush it. A crash may leave any of the pieces torn."""
    with operation("append", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            _write_all(descriptor, pieces)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush(path: Path) -> None:
    """Flush to the disk what was written to a file so far."""
    with operation("flush", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def truncate(path: Path, size_bytes: int) -> None:
    """Cut a file to ``size_bytes``, flushed."""
    with operation("truncate", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def move(path: Path, to: Path) -> None:
    """Rename a file, replacing ``to``; both folders are flushed."""
    make_folder(to.parent)
    with operation("rename", to):
        path.rename(to)
    for folder in {path.parent, to.parent}:
        sync_folder(folder)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there; its parent is flushed."""
    if not path.exists() and not path.is_symlink():
        return
    with operation("remove", path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    sync_folder(path.parent)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing lies; whether that reached the disk does not matter."""
    with suppress(OSError):
        folder.rmdir()


def state(path: Path) -> os.stat_result | None:
    """What the file system says of ``path``; None when it is not there, or another process has just removed it."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def size_bytes(path: Path) -> int:
    """Size of a file in bytes; 0 when it is not there, or another process has just removed it."""
    found = state(path)
    return found.st_size if found else 0


def free_bytes(path: Path) -> int:
    """Bytes that may still be written to the disk that holds ``path`` (or its nearest parent that exists)."""
    while not path.exists():
        path = path.parent
    system = os.statvfs(path)
    return system.f_bavail * system.f_frsize
