"""The settings of a cache: what its bytes look like, which documents are held out, and how it is read."""

import math
from typing import Literal

from pydantic import Field, model_validator

from cache.format.codec import Codec
from common.settings import PathText, Settings

_CHUNK_BYTES = 1_200_000
"""Large enough for a disk to read it at full speed; small enough that a damaged chunk, or a copy of it, costs
little."""
_CHUNK_ROWS_LIMIT = 1024
"""Rows of narrow models are small: without this limit a shard of 8,192 rows would have few checksums."""
Dtype = Literal["bfloat16", "float16", "float32", "int8"]


class CacheSettings(Settings):
    """How rows are stored on disk. FORMAT.md says which of these settings the fingerprint covers."""

    dtype: Dtype = "bfloat16"
    """The stored type of source and target; bfloat16 loses nothing of a bfloat16 model, int8 takes half the disk."""
    codec: Codec = "none"
    """Compresses the rows with one of zarr's codecs, for an archive. Then reading unpacks every chunk; with none it
    maps the files."""
    target: Literal["stored", "recompute"] = "stored"
    """``recompute`` stores the source only (half the disk) and the layer's MLP, which computes the target on
    reading."""
    chunk_rows: int | None = Field(default=None, ge=1)
    """Rows of a chunk, the unit of a checksum and of a sequential read; None makes chunks of about a megabyte."""
    shard_rows: int = Field(default=8192, ge=1)
    """Rows of a file of the training rows."""
    segment_rows: int = Field(default=131_072, ge=1)
    """Training rows that are shuffled and committed as one unit; a writer keeps this many in memory."""
    shuffle_seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seeds the order of the training rows within their segment."""
    held_out_fraction: float = Field(default=0.05, ge=0, lt=1)
    """The share of documents that is held out."""
    split_seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seeds which documents are held out."""
    check_reads: bool = True
    """Compare each chunk with its checksum the first time it is read."""
    weak_disk: bool = False
    """Go on when the file system has no locks (then make sure that only one process writes to a folder at a time) or
    cannot flush folders (then a power cut may lose the last files). It changes no row and is not recorded."""
    remote: PathText = ""
    """An fsspec URL (s3://bucket/folder) that has the same folders as runs/: a harvest commits its caches there too,
    and a cache that is not in runs/ is read from there."""
    remote_bytes: int = Field(default=20_000_000_000, ge=1)
    """How many bytes of a remote cache's rows are copied to this disk at most, into the user's cache folder (and at
    most 24,000 chunks, about 25 GB). Below 2 GB, two pools of the loader, chunks are fetched more than once."""

    @model_validator(mode="after")
    def _rows_fit(self) -> "CacheSettings":
        for small, large in (("chunk_rows", "shard_rows"), ("shard_rows", "segment_rows")):
            count, rest = divmod(getattr(self, large), getattr(self, small) or 1)
            if rest or not count:
                sizes = f"{getattr(self, large)} = {count} x {getattr(self, small)} + {rest}"
                raise ValueError(f"{large} must be a multiple of {small}, but {sizes}")
        return self

    def chunk_rows_of(self, row_bytes: int) -> int:
        """Rows of a chunk: as set, or the largest power of two that keeps it below 1.2 MB and divides a shard."""
        if self.chunk_rows:
            return self.chunk_rows
        rows = 1 << max(0, (_CHUNK_BYTES // row_bytes).bit_length() - 1)
        return math.gcd(min(rows, _CHUNK_ROWS_LIMIT), self.shard_rows)
