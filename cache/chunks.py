"""Chunks into the file that holds them, with what the journal says of it, and out of the file again."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from cache.checksum import Bytes, chunk_hash, file_hash
from cache.codec import decode_into, encoder
from cache.errors import DamagedError
from cache.journal import FileEntry
from cache.layout import ITEM_BYTES, Array, padding

THREADS = min(8, os.cpu_count() or 1)


def cut(array: Array, values: memoryview, rows: int) -> list[Bytes]:
    """The chunks of ``rows`` rows that lie end to end in ``values``; the last one is padded with fill values."""
    size = array.chunk_bytes
    chunks: list[Bytes] = [values[start : start + size] for start in range(0, len(values), size)]
    if rows % array.chunk_rows:
        chunks[-1] = bytes(chunks[-1]) + bytes(padding(array, rows))
    return chunks


def file_of(array: Array, number: int, chunks: Sequence[Bytes]) -> tuple[list[Bytes], FileEntry]:
    """The bytes of file ``number``, in pieces, and its entry."""
    hashes, stored = "".join(map(chunk_hash, chunks)), chunks
    if array.codec != "none":
        # In threads for speed, and never in the main one: there Blosc's own threads would settle the order of bytes.
        with ThreadPoolExecutor(THREADS) as pool:
            stored = list(pool.map(encoder(array.codec, ITEM_BYTES[array.item]), chunks))
    sizes = tuple(len(chunk) for chunk in stored)
    pieces = [piece for piece in (*stored, array.index(sizes)) if piece]
    told = sizes if array.codec != "none" else ()
    return pieces, FileEntry(array.file_path(number), sum(map(len, pieces)), file_hash(pieces), hashes, told)


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
