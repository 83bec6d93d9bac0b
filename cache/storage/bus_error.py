"""A sentence for a process that would otherwise end without a word: a mapped file was cut short while it was read.

Reading a page that lies past the end of a mapped file is no exception in Python. The system sends SIGBUS, which ends
the process silently, hours into a training. ``columns`` compares the sizes of mapped files before it reads from them;
what is left is the moment between that check and the read. For it, a handler says which file was cut and leaves with
the exit code of DamagedError. Nothing is lost by that which a checkpoint does not hold.

Python code may run in this handler, unlike in most: SIGBUS comes in the very instruction that reads the page, which
belongs to a copy or a checksum, never to the interpreter's or the allocator's own work. The handler never returns to
that instruction: it ends the process, or gives the signal back to the system where no file of ours was cut.
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
_DEFAULT = ctypes.c_void_p(0)
_mapped: "weakref.WeakSet[MappedFiles]" = weakref.WeakSet()


class MappedFiles:
    """The files that a ``Region`` has mapped: (path, size when it was mapped), by where they lie in it."""

    def __init__(self) -> None:
        self.by_offset: dict[int, tuple[Path, int]] = {}

    def add(self, offset: int, path: Path, size_bytes: int) -> None:
        """From now on, end with a sentence should this file be cut. Another handler of SIGBUS is left alone."""
        if not _mapped and signal.getsignal(signal.SIGBUS) is signal.SIG_DFL:
            _LIBC.signal(signal.SIGBUS, ctypes.cast(_HANDLER, ctypes.c_void_p))
        self.by_offset[offset] = path, size_bytes
        _mapped.add(self)


def cut_file() -> Path | None:
    """The first mapped file that is shorter than when it was mapped, None where there is none."""
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
