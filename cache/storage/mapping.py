"""A range of address space into which files are mapped one after the other, so that many shards are one array.

Why not a ``np.memmap`` for each shard? A shuffled batch takes its rows from nearly all shards of the cache. With a map
for each, Python would gather a batch shard by shard: sort rows by shard, make thousands of small numpy calls, and
scatter the rows into the batch. With all shards in one address range, row r of the array is at byte r * row_bytes, and
a batch is one ``torch.index_select`` over the array, which runs in C++, on several threads, without the GIL. So one
process can feed a GPU.

How it works:

1. ``mmap`` with MAP_ANONYMOUS | MAP_NORESERVE reserves the range. It costs page tables only for pages that are used, so
   a range of a terabyte is free. Unused pages read as zeros.
2. ``map_file`` maps a shard's chunks into the range with MAP_FIXED, which replaces what was mapped there. A mapping
must
   begin and end on a page (4,096 bytes). A shard whose offset or size is not a multiple of that (tiny ones, odd widths)
   is read into the anonymous pages, which then hold a copy.
3. ``forget`` maps anonymous pages over a range of bytes again, which drops the former contents.

What could go wrong, and what is done about it:

- MAP_FIXED at a wrong address would overwrite the process's own memory. Addresses are computed only here, from the
  base of a range whose size is fixed when it is made, and offsets come from ``Array``, whose numbers are checked when
  the manifest is read.
- A view that exists longer than the range would read unmapped memory. A finalizer of the ctypes array undoes the
  mapping. That array is the base of every numpy view and every tensor, so the mapping exists as long as the last view.
- A file that is cut while it is mapped kills the process by SIGBUS: see ``bus_error``. Sizes are checked before.
- Files are mapped PROT_READ and MAP_PRIVATE: nothing that happens to the array can reach the disk.
- Linux allows a process 65,530 mappings. A mapping is one shard (75 MB at Gemma-2-2B's width), so that is 4.9 TB.

No descriptor stays open: a mapping remains after its descriptor is closed.
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

from cache.storage.bus_error import MappedFiles
from common.errors import DamagedError, DiskError
from common.units import in_bytes

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
# Python's mmap module does not have these two. MAP_FIXED is 0x10 on Linux and macOS; MAP_NORESERVE differs.
_FIXED = 0x10
_NORESERVE = 0x4000 if sys.platform == "linux" else 0x40
_FAILED = ctypes.c_void_p(-1).value  # MAP_FAILED
_READ_AHEAD_BYTES = 1 << 20
"""Bytes of one madvise call: Linux reads at most its read-ahead window for a call, and ignores the rest."""
_REPAIR = "Run 'nestcoder cache repair' on the cache."


class Region:
    """``bytes`` is all of the range. It is plain memory where no file is mapped."""

    def __init__(self, size_bytes: int, *, huge_pages: bool = False) -> None:
        self._files = MappedFiles()
        self._size = -(-max(size_bytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._address = _map(None, self._size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_ANONYMOUS | _NORESERVE, -1)
        if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            _LIBC.madvise(self._address, self._size, mmap.MADV_HUGEPAGE)
        memory = (ctypes.c_uint8 * size_bytes).from_address(self._address)
        self.bytes: UInt8[np.ndarray, " bytes"] = np.ctypeslib.as_array(memory)
        # The array's base must exist longer than every view of it, and the mapping longer than the base.
        weakref.finalize(memory, _LIBC.munmap, self._address, self._size)

    def map_file(self, path: Path, *, offset: int, size_bytes: int, file_bytes: int) -> None:
        """Put the first ``size_bytes`` of a file of ``file_bytes`` bytes at ``offset``.

        Raises DamagedError when it is missing, no plain file or of another size.
        """
        descriptor = open_plain(path, size_bytes=file_bytes)
        try:
            if offset % mmap.PAGESIZE or size_bytes % mmap.PAGESIZE:
                self._read(descriptor, offset, size_bytes, path)
            else:
                _map(self._address + offset, size_bytes, mmap.PROT_READ, _FIXED, descriptor)
                self._files.add(offset, path, file_bytes)
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, offset: int, size_bytes: int, path: Path) -> None:
        view = self.bytes.data[offset : offset + size_bytes]
        done = 0
        while done < size_bytes:
            count = os.preadv(descriptor, [view[done:]], done)
            if not count:
                raise DamagedError("A shard became shorter while it was read.", where=path, remedy=_REPAIR)
            done += count

    def check_size(self, offset: int) -> None:
        """Raise DamagedError when the file that is mapped at ``offset`` has another size now, or was removed."""
        if offset in self._files.by_offset:
            path, size = self._files.by_offset[offset]
            os.close(open_plain(path, size_bytes=size))

    def forget(self, *, offset: int, size_bytes: int) -> None:
        """Drop what was mapped here. These bytes must not be read until something is mapped here again."""
        self._files.by_offset.pop(offset, None)
        if not offset % mmap.PAGESIZE and not size_bytes % mmap.PAGESIZE:
            flags = _FIXED | mmap.MAP_ANONYMOUS | _NORESERVE
            _map(self._address + offset, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1)

    def read_ahead(self, *, offset: int, size_bytes: int) -> None:
        """Ask the system to read these bytes from the disk; returns at once."""
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        end = offset + size_bytes
        for position in range(start, end, _READ_AHEAD_BYTES):
            length = min(_READ_AHEAD_BYTES, end - position)
            _LIBC.madvise(self._address + position, length, mmap.MADV_WILLNEED)


def _map(address: int | None, size_bytes: int, protection: int, flags: int, descriptor: int) -> int:
    found = _LIBC.mmap(address, size_bytes, protection, mmap.MAP_PRIVATE | flags, descriptor, 0)
    if found == _FAILED:
        reason = os.strerror(ctypes.get_errno())
        what = f"The system refused to map {in_bytes(size_bytes)}: {reason}."
        raise DiskError(what, remedy="Raise the system's limits: 'ulimit -v' and 'sysctl vm.max_map_count'.")
    return found


def open_plain(path: Path, *, size_bytes: int) -> int:
    """A descriptor of a shard for reading. Raises DamagedError when it is missing, no plain file or of another size."""
    descriptor = _open(path)
    state = os.fstat(descriptor)
    if stat.S_ISREG(state.st_mode) and state.st_size == size_bytes:
        return descriptor
    os.close(descriptor)
    if not stat.S_ISREG(state.st_mode):
        raise DamagedError("A shard is not a plain file.", where=path, remedy=_REPAIR)
    raise DamagedError(f"A shard has {state.st_size:,} bytes instead of {size_bytes:,}.", where=path, remedy=_REPAIR)


def _open(path: Path) -> int:
    # O_NOFOLLOW refuses a link out of the cache; with O_NONBLOCK a pipe of this name does not block.
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise DamagedError("A shard is missing.", where=path, remedy=_REPAIR) from None
    except PermissionError:
        remedy = "Ask the owner of the cache for permission to read it."
        raise DiskError("A shard cannot be opened: you may not read it.", where=path, remedy=remedy) from None
    except OSError as error:
        raise DamagedError(f"A shard cannot be opened: {error.strerror}.", where=path, remedy=_REPAIR) from None
