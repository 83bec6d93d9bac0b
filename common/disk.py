"""All changes of the disk, safe against crashes: no other module writes, renames or removes files.

A file appears complete or not at all: it is written under a temporary name, flushed to the disk and renamed, and its
folder is flushed. Tests watch (and break) each operation with ``watch``.

Two things are needed that some file systems do not have: locks (``common.processes.locks``) and flushing of folders
(fsync; SMB and some FUSE file systems refuse it). Without them, work goes on only after ``accept_weak_disk``.
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
"""The errors of file systems that do not have flock, or fsync of a folder."""
_weak_disk_accepted = False


def accept_weak_disk(accepted: bool) -> None:
    """Whether this process goes on, from now on, when a file system has no locks or cannot flush folders."""
    global _weak_disk_accepted  # noqa: PLW0603 - a property of the machine that the process runs on, like the watchers
    _weak_disk_accepted = accepted


@contextmanager
def watch(watcher: Watcher) -> Generator[None]:
    """While the block runs, ``watcher("before" | "after", operation, path)`` is called for every operation."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@contextmanager
def operation(name: str, path: Path) -> Generator[None]:
    """One change of the disk, which the watchers see. Raises DiskError when the system refuses it."""
    try:
        for watcher in _watchers:
            watcher("before", name, path)
        yield
        for watcher in _watchers:
            watcher("after", name, path)
    except OSError as error:
        raise refusal(error, name, path) from error


def refusal(error: OSError, name: str, path: Path) -> DiskError:
    """The error for an operation that the system refused, with a remedy."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        remedy = "Free some space and run again: it goes on from here. No file is half-written."
    elif error.errno in READ_ONLY:
        remedy = "Choose a folder that you may write to, or ask for permission to write here."
    else:
        remedy = "Repair the disk and run again: it goes on from here. No file is half-written."
    return DiskError(f"The disk refused to {name}: {reason}.", where=path, remedy=remedy)


def make_folder(path: Path) -> None:
    """Make the folder and its parents, each flushed into its own parent."""
    if "\0" in str(path):
        raise UsageError("This path is not valid: it contains a NUL character.", where=path)
    if path.is_dir():
        return
    make_folder(path.parent)
    with operation("make a folder", path):
        path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk. Raises DiskError that names the setting if the file system cannot do it."""
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


def check_accepted(ability: str, error: OSError, path: Path, *, risk: str) -> None:
    """Raises DiskError when a file system lacks an ``ability``, unless ``accept_weak_disk`` accepted that."""
    if _weak_disk_accepted:
        return
    reason = os.strerror(error.errno) if error.errno else str(error)
    what = f"This file system cannot {ability}: {reason}."
    remedy = f"Set cache.weak_disk to true to go on ({risk}), or choose a folder on a local disk."
    raise DiskError(what, where=path, remedy=remedy) from None


def write_file(path: Path, data: Bytes | Iterable[Bytes], *, tag: str = "0") -> None:
    """Replace ``path`` by ``data`` (or its pieces), completely or not at all; its folder is made if it is missing."""
    pieces = cast("Iterable[Bytes]", (data,) if isinstance(data, Bytes) else data)
    write_files([(path, pieces)], tag=tag)


def write_files(files: Iterable[tuple[Path, Iterable[Bytes]]], *, tag: str, threads: int = 1) -> None:
    """Replace several files, each completely or not at all; all are on the disk when this returns.

    Files are taken one by one, and flushed in the background while the next is made. With several ``threads`` as many
    files are made at once, in these threads. ``tag`` names the writer, so that two writers never use the same temporary
    name.
    """
    written: dict[Path, Path] = {}
    flushes: dict[Path, Future[None]] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="flush") as background:
        try:
            for path, pieces in files:
                if any(flush.done() and flush.exception() for flush in flushes.values()):
                    break  # the error is raised below: no more files are needed
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
        except Exception:  # not only of the disk: a GPU may fail from which the pieces come
            background.shutdown(cancel_futures=True)  # or a file might be made after it was removed
            for aside in written.values():
                aside.unlink(missing_ok=True)
            raise
    for folder in sorted({path.parent for path in written}):
        sync_folder(folder)


def aside_path(path: Path, tag: str) -> Path:
    """The temporary name under which the writer ``tag`` writes ``path``."""
    return path.with_name(f".{path.name}.{tag}.aside")


def _write_aside(path: Path, pieces: Iterable[Bytes]) -> int:
    """The descriptor of a new file with the pieces, not flushed yet."""
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
    assert b"\n" not in line[:-1], "a line has no other newline"
    append(path, [line])


def append(path: Path, pieces: Iterable[Bytes]) -> None:
    """Append pieces to a file, which is made if it is missing, and flush it. A crash may leave a torn end."""
    with operation("append", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            _write_all(descriptor, pieces)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush(path: Path) -> None:
    """Flush a file's contents to the disk."""
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
    """Remove a file, or a folder with its contents, if it exists; its parent is flushed."""
    if not path.exists() and not path.is_symlink():
        return
    with operation("remove", path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    sync_folder(path.parent)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder if it is empty; it does not matter whether that reaches the disk."""
    with suppress(OSError):
        folder.rmdir()


def state(path: Path) -> os.stat_result | None:
    """The file system's entry of ``path``; None if it does not exist, or another process has just removed it."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def size_bytes(path: Path) -> int:
    """Size of a file in bytes; 0 if it does not exist, or another process has just removed it."""
    found = state(path)
    return found.st_size if found else 0


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of ``path`` (or of its nearest parent that exists)."""
    while not path.exists():
        path = path.parent
    system = os.statvfs(path)
    return system.f_bavail * system.f_frsize
