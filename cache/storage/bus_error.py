"""An error message when a mapped file was cut while it was read, where the process would otherwise end silently.

Reading a page beyond the end of a mapped file raises no exception in Python. The system sends SIGBUS, which ends the
process without a message, perhaps after hours of training. ``columns`` compares the sizes of mapped files before it
reads from them; there remains the moment between that check and the read. For it, a handler prints which file was cut
and leaves with the exit code of DamagedError. Only work since the last checkpoint is lost.

Python code may run in this handler, although not in most: SIGBUS comes from the instruction that reads the page, which
belongs to a copy or a checksum, never to the interpreter or the allocator. The handler never returns to that
instruction: it ends the process, or lets the system handle the signal if no mapped file was cut.
"""

import ctypes
import os
import signal
import weakref
from pathlib import Path

from common import disk
from common.errors import DamagedError

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_LIBC = ctypes.CDLL(None)
_LIBC.signal.restype = ctypes.c_void_p
_LIBC.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
_DEFAULT = ctypes.c_void_p(0)  # SIG_DFL
_mapped: "weakref.WeakSet[MappedFiles]" = weakref.WeakSet()


class MappedFiles:
    """The files that a ``Region`` has mapped: (path, size when it was mapped) by their offset in it."""

    def __init__(self) -> None:
        self.by_offset: dict[int, tuple[Path, int]] = {}

    def add(self, offset: int, path: Path, size_bytes: int) -> None:
        """From now on, a cut of this file ends the process with a message. Another handler of SIGBUS stays."""
        if not _mapped and signal.getsignal(signal.SIGBUS) is signal.SIG_DFL:
            _LIBC.signal(signal.SIGBUS, ctypes.cast(_HANDLER, ctypes.c_void_p))
        self.by_offset[offset] = path, size_bytes
        _mapped.add(self)


def cut_file() -> Path | None:
    """The first mapped file that is shorter than when it was mapped; None if there is none."""
    for files in list(_mapped):
        for path, size in list(files.by_offset.values()):
            if disk.size_bytes(path) < size:
                return path
    return None


def _last_words(_number: int) -> None:
    try:
        path = cut_file()
        if path is not None:
            error = DamagedError(
                "A shard became shorter while it was read.",
                where=path,
                remedy="Run 'nestcoder cache repair' on the cache, harvest again, and run this command again.",
            )
            text = str(error).replace("\n", "\n  ")
            os.write(2, f"nestcoder: {text}\n".encode())
            os._exit(error.exit_code)
    finally:
        _LIBC.signal(signal.SIGBUS, _DEFAULT)


_HANDLER = _Handler(_last_words)
