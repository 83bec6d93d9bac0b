"""One writer at a time: locks on files, and whether a file system offers them.

A lock is flock of a small file that names the host and process that have it. NFS and Lustre may refuse flock; then work
goes on only after ``disk.accept_weak_disk``.
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


def check_promises(folder: Path) -> None:
    """Ask the file system of ``folder`` (or of its nearest parent that exists) for a lock and a flush, and tidy up.

    Raises DiskError that names what it does not offer, before any work is done. A folder that cannot be written to is
    left to the first write.
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
    """Be the only one who has ``path`` while the block runs; the file goes with the block.

    The system releases the lock when the process ends, however it ends. Raises InUseError that names the host and
    process that have it, DiskError where the file system offers no locks.
    """
    descriptor = _open_locked(path)
    try:
        holder = {"host": socket.gethostname(), "pid": os.getpid()}
        with disk.operation("write a lock", path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        # Unlinked while it is locked: whoever opened this file meanwhile sees below that it is no longer at its path.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    """A descriptor of the locked file at ``path``: a file that was unlinked in between is opened anew."""
    while True:
        disk.make_folder(path.parent)
        try:
            with disk.operation("open a lock", path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except DiskError:
            if path.parent.is_dir():
                raise
            continue  # somebody who had tidied up removed the empty folder in between
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
            "lock files (flock)", error, path, risk="then see to it that only one process writes to a folder"
        )


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError, OSError):
        return "one that has only just begun"
