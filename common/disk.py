"""Every change of the disk that the project promises to survive: nothing else writes, renames or removes.

A file appears whole or not at all: it is written aside, flushed to the disk and renamed, and its folder is flushed.
Tests watch (and break) each operation through ``watch``.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from common.errors import DiskError, InUseError

Bytes = bytes | bytearray | memoryview
Watcher = Callable[[str, str, Path], None]
_watchers: list[Watcher] = []
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def watch(watcher: Watcher) -> Generator[None]:
    """While the block runs, ``watcher("before" | "after", operation, path)`` is called around every operation."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@contextmanager
def _operation(name: str, path: Path) -> Generator[None]:
    try:
        for watcher in _watchers:
            watcher("before", name, path)
        yield
        for watcher in _watchers:
            watcher("after", name, path)
    except OSError as error:
        raise _stated(error, name, path) from error


def _stated(error: OSError, name: str, path: Path) -> DiskError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    remedy = "Nothing was half-committed; free some space and run again: it goes on from here."
    if error.errno not in _FULL:
        remedy = "Nothing was half-committed; mend the disk and run again: it goes on from here."
    return DiskError(f"The disk refused to {name}: {reason}.", where=path, remedy=remedy)


def make_folder(path: Path) -> None:
    """Make the folder and its parents, each flushed into its own parent."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with _operation("make a folder", path):
        path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk."""
    with _operation("flush a folder", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_file(path: Path, data: Bytes | Iterable[Bytes], *, tag: str = "0") -> None:
    """Replace ``path`` by ``data`` (or pieces of it), whole or not at all; its folder is made when missing."""
    pieces = cast("Iterable[Bytes]", (data,) if isinstance(data, Bytes) else data)
    write_files([(path, pieces)], tag=tag)


def write_files(files: Iterable[tuple[Path, Iterable[Bytes]]], *, tag: str) -> None:
    """Replace several files, each whole or not at all; all are on the disk when this returns.

    Files are taken one by one, and flushed in the background while the next is made. ``tag`` names the writer, so that
    two writers never write aside to the same name.
    """
    written: dict[Path, Path] = {}
    flushes: dict[Path, Future[None]] = {}
    with ThreadPoolExecutor(1, thread_name_prefix="flush") as background:
        try:
            for path, pieces in files:
                make_folder(path.parent)
                written[path] = aside_path(path, tag)
                flushes[path] = background.submit(_flush_and_close, _write_aside(written[path], pieces))
            for path, aside in written.items():
                with _operation("flush", aside):
                    flushes[path].result()
                with _operation("rename", path):
                    aside.rename(path)
        except DiskError:
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
    with _operation("write", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            _write_all(descriptor, pieces)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


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
    with _operation("append", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            _write_all(descriptor, [line])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush(path: Path) -> None:
    """Flush to the disk what was written to a file so far."""
    with _operation("flush", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def truncate(path: Path, size_bytes: int) -> None:
    """Cut a file to ``size_bytes``, flushed."""
    with _operation("truncate", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def move(path: Path, to: Path) -> None:
    """Rename a file, replacing ``to``; both folders are flushed."""
    make_folder(to.parent)
    with _operation("rename", to):
        path.rename(to)
    for folder in {path.parent, to.parent}:
        sync_folder(folder)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there; its parent is flushed."""
    if not path.exists() and not path.is_symlink():
        return
    with _operation("remove", path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    sync_folder(path.parent)


@contextmanager
def lock(path: Path) -> Generator[None]:
    """Hold ``path`` alone while the block runs. The system lets go when the process ends, however it ends.

    Raises InUseError that names the host and process that hold it.
    """
    make_folder(path.parent)
    with _operation("open a lock", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        _take(descriptor, path)
        holder = {"host": socket.gethostname(), "pid": os.getpid()}
        with _operation("write a lock", path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        what = f"Another process writes here: {_holder(descriptor)}."
        raise InUseError(what, where=path, remedy="Wait for it, or end it.") from None


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "one that has only just begun"


def free_bytes(path: Path) -> int:
    """Bytes that may still be written to the disk that holds ``path`` (or its nearest parent that exists)."""
    while not path.exists():
        path = path.parent
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize
