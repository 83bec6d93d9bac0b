"""Checksums and canonical JSON: xxh3-128 for files, xxh3-64 for chunks and journal lines, crc32c for a shard's
index."""

import hashlib
import json
from io import FileIO
from pathlib import Path
from typing import Any, cast

import google_crc32c
import xxhash

Bytes = bytes | bytearray | memoryview


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII, no NaN. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def hash_bytes(data: Bytes) -> str:
    """xxh3-128 of the data, as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def hash_stream(file: FileIO) -> str:
    """xxh3-128 of an open file from its position to its end, as 32 hexadecimal digits. Raises OSError."""
    return hashlib.file_digest(file, cast("Any", xxhash.xxh3_128)).hexdigest()


def hash_file(path: Path) -> str:
    """xxh3-128 of a file's bytes, as 32 hexadecimal digits. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        return hash_stream(file)


def chunk_hash(chunk: Bytes) -> str:
    """xxh3-64 of a chunk, as 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(chunk)


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum that zarr requires after a shard's index."""
    return cast("int", google_crc32c.value(data))
