"""A stretch of address space into which files are mapped side by side, so that many shards are one array.

Address space is reserved once (it costs nothing); a file whose rows fill whole pages is mapped to its place, any other
is read into it. No file stays open, and a row is found by arithmetic alone. Nothing is ever written through a mapping.
"""

import ctypes
import mmap
import os
import stat
import sys
import weakref
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from common.errors import DamagedError, DiskError

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FIXED = 0x10
_NORESERVE = 0x4000 if sys.platform == "linux" else 0x40
_FAILED = ctypes.c_void_p(-1).value
_READ_AHEAD_BYTES = 1 << 20


class Region:
    """``bytes`` is the whole stretch. It may also serve as plain memory, where no file is placed in it."""

    def __init__(self, size_bytes: int, *, huge_pages: bool = False) -> None:
        self._size = -(-max(size_bytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._address = _map(None, self._size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_ANONYMOUS | _NORESERVE, -1)
        if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            _LIBC.madvise(self._address, self._size, mmap.MADV_HUGEPAGE)
        memory = (ctypes.c_uint8 * size_bytes).from_address(self._address)
        self.bytes: UInt8[np.ndarray, " bytes"] = np.ctypeslib.as_array(memory)
        # The array's base must outlive every view of it, and the mapping must outlive the base.
        weakref.finalize(memory, _LIBC.munmap, self._address, self._size)

    def place(self, path: Path, *, offset: int, size_bytes: int, file_bytes: int) -> None:
        """Put the first ``size_bytes`` of a file of ``file_bytes`` bytes at ``offset``.

        Raises DamagedError when it is missing, no plain file or of another size (a mapping of a cut file would kill
        the process).
        """
        descriptor = open_plain(path, size_bytes=file_bytes)
        try:
            if offset % mmap.PAGESIZE or size_bytes % mmap.PAGESIZE:
                self._read(descriptor, offset, size_bytes, path)
            else:
                _map(self._address + offset, size_bytes, mmap.PROT_READ, _FIXED, descriptor)
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, offset: int, size_bytes: int, path: Path) -> None:
        view, done = self.bytes.data[offset : offset + size_bytes], 0
        while done < size_bytes:
            count = os.preadv(descriptor, [view[done:]], done)
            if not count:
                raise DamagedError("A shard became shorter while it was read.", where=path)
            done += count

    def forget(self, *, offset: int, size_bytes: int) -> None:
        """Let go of what was mapped here; the place must not be touched until a file is placed there again."""
        if not offset % mmap.PAGESIZE and not size_bytes % mmap.PAGESIZE:
            flags = _FIXED | mmap.MAP_ANONYMOUS | _NORESERVE
            _map(self._address + offset, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1)

    def read_ahead(self, *, offset: int, size_bytes: int) -> None:
        """Ask the system to fetch these bytes from the disk. One request fetches no more than its read-ahead window."""
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        for at in range(start, offset + size_bytes, _READ_AHEAD_BYTES):
            length = min(_READ_AHEAD_BYTES, offset + size_bytes - at)
            _LIBC.madvise(self._address + at, length, mmap.MADV_WILLNEED)


def _map(address: int | None, size_bytes: int, protection: int, flags: int, descriptor: int) -> int:
    found = _LIBC.mmap(address, size_bytes, protection, mmap.MAP_PRIVATE | flags, descriptor, 0)
    if found == _FAILED:
        reason = os.strerror(ctypes.get_errno())
        raise DiskError(f"The system refused to map {size_bytes} bytes: {reason}.", remedy="See vm.max_map_count.")
    return found


def open_plain(path: Path, *, size_bytes: int) -> int:
    """A descriptor to read a shard by. Raises DamagedError when it is missing, no plain file or of another size."""
    descriptor = _open(path)
    state = os.fstat(descriptor)
    if stat.S_ISREG(state.st_mode) and state.st_size == size_bytes:
        return descriptor
    os.close(descriptor)
    if not stat.S_ISREG(state.st_mode):
        raise DamagedError("A shard is no plain file.", where=path)
    what = f"A shard has {state.st_size} bytes instead of {size_bytes}."
    raise DamagedError(what, where=path, remedy="Run 'nestcoder cache repair' on the cache.")


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        remedy = "Run 'nestcoder cache repair' on the cache."
        raise DamagedError("A shard is missing.", where=path, remedy=remedy) from None
    except OSError as error:
        raise DamagedError(f"A shard cannot be opened: {error.strerror}.", where=path) from None
