"""The arrays of a cache in memory: files mapped one after the other, or chunks that are loaded one by one.

A column is one range of address space in which row r has a fixed offset, loaded or not. ``using`` makes chunks
readable; each is compared with its checksum the first time. There are three kinds: ``Column`` maps files,
``UnpackedColumn`` unpacks the chunks of a compressed cache, ``cache.remote_reader.RemoteColumn`` fetches remote chunks.
"""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Int64, Shaped

from cache.format.array import Array
from cache.format.chunks import THREADS, unpack_into
from cache.format.journal import FileEntry
from cache.storage.chunk_lru import ChunkLru
from cache.storage.mapping import Region, open_plain
from common.errors import DamagedError
from common.hashing import chunk_hash

_READ_AHEAD_BYTES = 16 << 20
"""How many bytes are requested ahead of the checksums: enough to keep a disk busy while a chunk is hashed."""
_LOCKS = 64
"""Chunks share this many locks. One for each chunk would be millions of objects; with 64, two of eight threads that
load different chunks rarely wait for each other, and only for a moment."""
_REPAIR = "Run 'nestcoder cache repair' on the cache."
Chunks = Int64[np.ndarray, " n"]


class Column:
    """One array of a group, its files mapped as they are first needed."""

    def __init__(self, cache: Path, array: Array, entries: dict[int, FileEntry], *, verify: bool) -> None:
        self.array = array
        self._cache = cache
        self._entries = entries
        self._verify = verify
        self._file_bytes = array.file_rows * array.row_bytes
        self._region = Region(array.files * self._file_bytes)
        self._mapped = np.zeros(array.files, bool)
        self._checked = np.zeros(array.files * array.index_entries, bool)
        self._lock = threading.Lock()
        shape = (-1, array.width) if array.width else (-1,)
        self.values: Shaped[np.ndarray, "rows ..."] = self._region.bytes.view(array.item).reshape(shape)

    @property
    def checksums(self) -> list[str]:
        """The checksums of the chunks, file by file, from the journal."""
        return [self._entries[number].chunks for number in sorted(self._entries)]

    def need(self, chunks: Chunks) -> None:
        """Make the rows of these chunks readable. Raises DamagedError that names the file that does not match."""
        missing = chunks[~self._checked[chunks]]
        if missing.size:
            self._map_files(missing)
            for chunk in np.unique(missing).tolist():
                self._check(chunk)

    @contextmanager
    def using(self, chunks: Chunks) -> Generator[None]:
        """Make the rows of these chunks readable while the block runs."""
        self.need(chunks)
        yield

    def need_all(self) -> None:
        """Make every row readable."""
        self.need(np.arange(-(-self.array.rows // self.array.chunk_rows), dtype=np.int64))

    def read_through(self, chunks: Chunks, *, stopped: Callable[[], bool]) -> None:
        """Read chunks from the disk before they are needed, in this order, and check them while the next are read.

        Raises DamagedError also for a file that was undamaged before and has been cut or removed since.
        """
        self._map_files(chunks)
        size = self.array.chunk_bytes
        distance = -(-_READ_AHEAD_BYTES // size)
        for index in range(-distance, len(chunks)):
            if stopped():
                return
            if index + distance < len(chunks):
                self._region.read_ahead(offset=int(chunks[index + distance]) * size, size_bytes=size)
            if index >= 0:
                self.need(chunks[index : index + 1])

    def _map_files(self, chunks: Chunks) -> None:
        """Map the files of these chunks; compare the size of those already mapped again (see ``bus_error``)."""
        with self._lock:
            for number in np.unique(chunks // self.array.index_entries).tolist():
                if self._mapped[number]:
                    self._region.check_size(number * self._file_bytes)
                else:
                    self._map_file(number)
                    self._mapped[number] = True

    def _map_file(self, number: int) -> None:
        path = self._cache / self.array.file_path(number)
        size = self.array.chunks_in(number) * self.array.chunk_bytes
        file_bytes = self.array.file_bytes(number)
        self._region.map_file(path, offset=number * self._file_bytes, size_bytes=size, file_bytes=file_bytes)

    def _memory(self, chunk: int) -> memoryview:
        size = self.array.chunk_bytes
        return self._region.bytes.data[chunk * size : (chunk + 1) * size]

    def _check(self, chunk: int) -> None:
        if self._verify:
            number, inside = divmod(chunk, self.array.index_entries)
            if chunk_hash(self._memory(chunk)) != self._entries[number].chunk(inside):
                what = f"Chunk {inside} of a shard does not match its checksum."
                raise DamagedError(what, where=self._location(number), remedy=_REPAIR)
        self._checked[chunk] = True

    def _location(self, number: int) -> str:
        return str(self._cache / self.array.file_path(number))


class PassingColumn(Column, ABC):
    """A column whose chunks are loaded one by one, several at once, and released when there are too many."""

    connections: ClassVar[int] = THREADS

    def __init__(
        self, cache: Path, array: Array, entries: dict[int, FileEntry], *, verify: bool, lru: ChunkLru
    ) -> None:
        super().__init__(cache, array, entries, verify=verify)
        self._lru = lru
        self._loading = [threading.Lock() for _ in range(_LOCKS)]

    @abstractmethod
    def _load(self, chunk: int) -> None:
        """Put the chunk at its offset and check it; no other thread does so at the same time."""

    def _load_once(self, chunk: int) -> None:
        with self._loading[chunk % _LOCKS]:
            if not self._checked[chunk]:
                self._load(chunk)

    def need(self, chunks: Chunks) -> None:
        """Make the rows of these chunks readable. Raises DamagedError, and DiskError for a remote cache."""
        missing = np.unique(chunks[~self._checked[chunks]]).tolist()
        if missing:
            with ThreadPoolExecutor(min(self.connections, len(missing))) as pool:
                list(pool.map(self._load_once, missing))
        # The narrow arrays are small and always needed: they are never released.
        for chunk in missing if self.array.sharded else ():
            self._lru.add((self.array.path, chunk), self.array.chunk_bytes, partial(self._release, chunk))

    @contextmanager
    def using(self, chunks: Chunks) -> Generator[None]:
        """``need`` these chunks, and keep them while the block runs. Raises CapacityError as well."""
        keys = [(self.array.path, chunk) for chunk in np.unique(chunks).tolist()]
        size = self.array.chunk_bytes if self.array.sharded else 0
        with self._lru.in_use(keys, chunk_bytes=size):
            self.need(chunks)
            yield

    def read_through(self, chunks: Chunks, *, stopped: Callable[[], bool]) -> None:
        """Load chunks before they are needed, several at a time, as long as there is room for them."""
        for start in range(0, len(chunks), self.connections):
            if stopped():
                return
            self.need(chunks[start : start + self.connections])

    def _release(self, chunk: int) -> None:
        size = self.array.chunk_bytes
        with self._loading[chunk % _LOCKS]:
            self._checked[chunk] = False
            self._region.forget(offset=chunk * size, size_bytes=size)


class UnpackedColumn(PassingColumn):
    """An array of a compressed cache: chunks are unpacked into memory."""

    def _load(self, chunk: int) -> None:
        number, inside = divmod(chunk, self.array.index_entries)
        start, size = self._entries[number].byte_range(inside, self.array.chunk_bytes)
        path = self._cache / self.array.file_path(number)
        descriptor = open_plain(path, size_bytes=self._entries[number].size_bytes)
        try:
            data = os.pread(descriptor, size, start)
        finally:
            os.close(descriptor)
        try:
            unpack_into(self._memory(chunk), self.array, data)
        except DamagedError as error:
            raise DamagedError(error.what, where=path, remedy=_REPAIR) from None
        self._check(chunk)
