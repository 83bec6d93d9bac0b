"""One writer at a time: locks on files, and whether a file system has them.

A lock is flock of a small file with the host and process that have it. NFS and Lustre may refuse flock; then work goes
on only after ``disk.accept_weak_disk``.
"""

import fcntl
import json
import os
import socket
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from common import disk
from common.errors import DiskError, InUseError


def check_file_system(folder: Path) -> None:
    """Try a lock and a flush on the file system of ``folder`` (or of its nearest parent that exists).

    Raises DiskError that names what it cannot do, before any work is done. For a folder that cannot be written, the
    first write raises the error.
    """
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    trial = folder / f".nestcoder-trial-{os.getpid()}"
    try:
        descriptor = os.open(trial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        _take(descriptor, trial)
    finally:
        os.close(descriptor)
        trial.unlink(missing_ok=True)
    disk.sync_folder(folder)


@contextmanager
def lock(path: Path) -> Generator[None]:
    """Have the lock ``path`` alone while the block runs; the file is removed at the end.

    The system releases the lock when the process ends, in whatever way. Raises InUseError that names the host and
    process that have the lock, DiskError when the file system has no locks.
    """
    descriptor = _open_locked(path)
    try:
        holder = {"host": socket.gethostname(), "pid": os.getpid()}
        with disk.operation("write a lock", path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        # Unlinked while it is locked: a process that has opened this file sees below that it is no longer at its path.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    """A descriptor of the locked file at ``path``; if the file was unlinked in between, the new file is opened."""
    while True:
        disk.make_folder(path.parent)
        try:
            with disk.operation("open a lock", path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except DiskError:
            if path.parent.is_dir():
                raise
            continue  # another process removed the empty folder in between
        try:
            _take(descriptor, path)
            if _is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def lock_all(paths: Iterable[Path]) -> Generator[None]:
    """``lock`` every path while the block runs. Raises as ``lock`` for the first that another process has."""
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(lock(path))
        yield


def _take(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        what = f"Another process writes here: {_holder(descriptor)}."
        raise InUseError(what, where=path, remedy="Wait for it, or end it.") from None
    except OSError as error:
        if error.errno not in disk.NOT_OFFERED:
            raise disk.refusal(error, "lock a file", path) from None
        disk.check_accepted(
            "lock files (flock)", error, path, risk="then make sure that only one process writes to a folder"
        )


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))  # a host and a process take less than 400 bytes
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError, OSError):
        return "one that has just begun"
