"""Checksums and canonical JSON: xxh3-128 binds files, xxh3-64 chunks and journal lines, crc32c a shard's index."""

import json
from collections.abc import Iterable
from typing import Any

import xxhash

Bytes = bytes | bytearray | memoryview


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII, no NaN. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def file_hash(pieces: Iterable[Bytes]) -> str:
    """xxh3-128 of the pieces laid end to end, as 32 hexadecimal digits."""
    hasher = xxhash.xxh3_128()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def chunk_hash(chunk: Bytes) -> str:
    """xxh3-64 of a chunk, as 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(chunk)


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum that zarr asks for behind a shard's index."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_table_entry(byte) for byte in range(256)]
