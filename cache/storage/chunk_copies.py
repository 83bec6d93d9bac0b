"""Copies of a remote cache's chunks on this disk: a folder of limited size; the least recently used is removed first.

    chunks/rows.zarr/train/source/17      chunk 17 of that array, unpacked

Copies are kept for the next process. They can be fetched again at any time, so they are not flushed to the disk.
"""

import os
import stat
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

from cache.format.array import Array
from cache.format.chunks import unpack_into
from cache.format.journal import FileEntry
from cache.storage.chunk_lru import ChunkLru, Key
from cache.storage.remote_store import RemoteStore
from common import disk
from common.errors import DiskError

_CHUNK_LIMIT = 24_000
"""A chunk in memory is one mapping and splits the reserved range, which makes another one. Linux allows a process
65,530 mappings (vm.max_map_count): with 48,000 for chunks there are enough for the libraries."""


class ChunkCopies:
    """Copies of the chunks of ``store`` in ``folder``, at most ``limit_bytes``. ``fetched`` counts transfers."""

    def __init__(self, store: RemoteStore, folder: Path, *, limit_bytes: int) -> None:
        self.store = store
        self.folder = folder
        self.lru = ChunkLru(limit_bytes, location=folder, limit=_CHUNK_LIMIT)
        self.fetched = 0
        self._count_earlier()

    def _count_earlier(self) -> None:
        """Count the copies of earlier processes, oldest first; those beyond the limit are removed."""
        found: list[tuple[float, int, Key]] = []
        for file in (self.folder / "chunks").rglob("*"):
            with suppress(FileNotFoundError):  # another process may be tidying up
                state = file.lstat()
                if stat.S_ISREG(state.st_mode) and file.name.isdecimal():
                    key = file.parent.relative_to(self.folder / "chunks").as_posix(), int(file.name)
                    found.append((state.st_mtime, state.st_size, key))
        for _, size, key in sorted(found):
            self.lru.add(key, size, partial(self.remove, key))

    def path(self, key: Key) -> Path:
        """The path of the copy of a chunk."""
        return self.folder / "chunks" / key[0] / str(key[1])

    def fetch(self, array: Array, chunk: int, entry: FileEntry) -> Path:
        """The copy of a chunk, fetched now if it is missing. Raises DamagedError and DiskError."""
        path = self.path((array.path, chunk))
        if disk.size_bytes(path) == array.chunk_bytes:
            return path
        number, inside = divmod(chunk, array.index_entries)
        start, size = entry.byte_range(inside, array.chunk_bytes)
        data = bytearray(array.chunk_bytes)
        unpack_into(memoryview(data), array, self.store.read(array.file_path(number), start, start + size))
        self._write(path, data)
        return path

    def _write(self, path: Path, data: bytearray) -> None:
        aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(data)
            aside.rename(path)
        except OSError as error:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise DiskError(f"A chunk cannot be copied here: {error.strerror}.", where=path) from None
        self.fetched += 1

    def remove(self, key: Key) -> None:
        """Remove the copy of a chunk."""
        self.path(key).unlink(missing_ok=True)
