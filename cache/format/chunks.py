"""Chunks into the file that holds them, with what the journal says of it, and out of the file again."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import xxhash

from cache.format.codec import decode_into, encoder
from cache.format.journal import FileEntry
from cache.format.layout import ITEM_BYTES, Array, padding
from common.errors import DamagedError
from common.hashing import Bytes, chunk_hash

THREADS = min(8, os.cpu_count() or 1)


def cut(array: Array, values: memoryview, rows: int) -> list[Bytes]:
    """The chunks of ``rows`` rows that lie end to end in ``values``; the last one is padded with fill values."""
    size = array.chunk_bytes
    chunks: list[Bytes] = [values[start : start + size] for start in range(0, len(values), size)]
    if rows % array.chunk_rows:
        chunks[-1] = bytes(chunks[-1]) + bytes(padding(array, rows))
    return chunks


class FileOut:
    """A file of ``array`` on its way to the disk: its bytes in ``pieces``, and its ``entry`` once all are taken.

    A chunk is hashed right before it is handed out, while it is near.
    """

    entry: FileEntry

    def __init__(self, array: Array, number: int, chunks: Sequence[Bytes]) -> None:
        self.path = array.file_path(number)
        self._array, self._chunks = array, chunks

    def pieces(self) -> Iterator[Bytes]:
        """The chunks as they are stored, then zarr's index."""
        whole, hashes, sizes = xxhash.xxh3_128(), list[str](), list[int]()
        for chunk, stored in zip(self._chunks, self._stored(), strict=True):
            hashes.append(chunk_hash(chunk))
            sizes.append(len(stored))
            whole.update(stored)
            yield stored
        if index := self._array.index(tuple(sizes)):
            whole.update(index)
            yield index
        told = tuple(sizes) if self._array.codec != "none" else ()
        self.entry = FileEntry(self.path, sum(sizes) + len(index), whole.hexdigest(), "".join(hashes), told)

    def _stored(self) -> Iterable[Bytes]:
        if self._array.codec == "none":
            return self._chunks
        # In threads for speed, and never in the main one: there Blosc's own threads would settle the order of bytes.
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(encoder(self._array.codec, ITEM_BYTES[self._array.item]), self._chunks))


def chunks_of(array: Array, number: int, entry: FileEntry, data: bytes) -> list[Bytes]:
    """What the chunks of file ``number`` hold, from its bytes. Raises DamagedError for one that is not as promised."""
    places = [entry.stretch(inside, array.chunk_bytes) for inside in range(array.chunks_in(number))]
    stored = [memoryview(data)[start : start + size] for start, size in places]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(partial(checked, array, entry), range(len(stored)), stored))


def unpack_into(out: memoryview, array: Array, data: Bytes) -> None:
    """Fill ``out`` with what a stored chunk holds. Raises DamagedError when it does not unpack to that size."""
    if array.codec != "none":
        decode_into(out, array.codec, bytes(data))
    elif len(data) == len(out):
        out[:] = data
    else:
        raise DamagedError(f"A chunk has {len(data)} bytes instead of {len(out)}.")


def checked(array: Array, entry: FileEntry, inside: int, data: Bytes) -> Bytes:
    """What a stored chunk of the file holds. Raises DamagedError when it is not what was promised."""
    chunk: Bytes = data
    if array.codec != "none":
        chunk = bytearray(array.chunk_bytes)
        unpack_into(memoryview(chunk), array, data)
    if chunk_hash(chunk) != entry.chunk(inside):
        raise DamagedError(f"Chunk {inside} of a shard does not match its checksum.")
    return chunk
