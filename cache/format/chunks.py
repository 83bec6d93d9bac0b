"""Chunks and the files that hold them: how a file is written, with its entry for the journal, and read again."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import xxhash

from cache.format.array import ITEM_BYTES, Array, padding
from cache.format.codec import decode_into, encoder
from cache.format.journal import FileEntry
from common.errors import DamagedError
from common.hashing import Bytes, chunk_hash

# Codecs and hashes release the GIL, so threads share their work; more than eight would only wait for the disk.
THREADS = min(8, os.cpu_count() or 1)


def cut(array: Array, values: memoryview, rows: int) -> list[Bytes]:
    """The chunks of the ``rows`` rows in ``values``; the last one is padded with fill values."""
    size = array.chunk_bytes
    chunks: list[Bytes] = [values[start : start + size] for start in range(0, len(values), size)]
    if rows % array.chunk_rows:
        chunks[-1] = bytes(chunks[-1]) + bytes(padding(array, rows))
    return chunks


class FileOut:
    """A file of ``array`` that is about to be written.

    ``chunks`` come in one or several parts, of which each may be gone when the next is taken.

    First take all ``pieces`` (``disk.write_files`` writes each as it comes), then read ``entry``. The order matters,
    and it is why ``pieces`` is a generator. A chunk is hashed right before it is written: hashing loads it into the
    processor's cache, and the copy to the page cache then finds it there. Hashing all chunks first would read a segment
    from memory twice. And an entry from before the write would describe bytes that may never have been written.
    """

    entry: FileEntry

    def __init__(self, array: Array, number: int, chunks: Iterable[Sequence[Bytes]]) -> None:
        self.path = array.file_path(number)
        self._array = array
        self._chunks = chunks

    def pieces(self) -> Iterator[Bytes]:
        """The chunks as they are stored, then zarr's index."""
        file_hash = xxhash.xxh3_128()
        hashes = list[str]()
        sizes = list[int]()
        for chunks in self._chunks:
            for chunk, stored in zip(chunks, self._stored(chunks), strict=True):
                hashes.append(chunk_hash(chunk))
                sizes.append(len(stored))
                file_hash.update(stored)
                yield stored
        index = self._array.index(tuple(sizes))
        if index:
            file_hash.update(index)
            yield index
        self.entry = FileEntry(
            path=self.path,
            size_bytes=sum(sizes) + len(index),
            xxh3=file_hash.hexdigest(),
            chunks="".join(hashes),
            sizes=tuple(sizes) if self._array.codec != "none" else (),
        )

    def _stored(self, chunks: Sequence[Bytes]) -> Iterable[Bytes]:
        if self._array.codec == "none":
            return chunks
        # In threads for speed, and never in the main thread: there Blosc uses threads of its own, and their number
        # changes how it splits a chunk, so the bytes would depend on the machine.
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(encoder(self._array.codec, ITEM_BYTES[self._array.item]), chunks))


def chunks_of(array: Array, number: int, entry: FileEntry, data: bytes) -> list[Bytes]:
    """What the chunks of file ``number`` hold, from its bytes. Raises DamagedError for one that does not match."""
    ranges = [entry.byte_range(inside, array.chunk_bytes) for inside in range(array.chunks_in(number))]
    stored = [memoryview(data)[start : start + size] for start, size in ranges]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(partial(checked, array, entry), range(len(stored)), stored))


def unpack_into(out: memoryview, array: Array, data: Bytes) -> None:
    """Fill ``out`` with what a stored chunk holds. Raises DamagedError when it does not unpack to that size."""
    if array.codec != "none":
        decode_into(out, array.codec, bytes(data))
    elif len(data) == len(out):
        out[:] = data
    else:
        raise DamagedError(f"A chunk has {len(data):,} bytes instead of {len(out):,}.")


def checked(array: Array, entry: FileEntry, inside: int, data: Bytes) -> Bytes:
    """What a stored chunk of the file holds. Raises DamagedError when it does not match its checksum."""
    chunk: Bytes = data
    if array.codec != "none":
        chunk = bytearray(array.chunk_bytes)
        unpack_into(memoryview(chunk), array, data)
    if chunk_hash(chunk) != entry.chunk(inside):
        raise DamagedError(f"Chunk {inside} of a shard does not match its checksum.")
    return chunk
