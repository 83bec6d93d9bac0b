"""The settings of a cache: what its bytes look like, which documents are held out, and how it is read."""

import math
from typing import Literal

from pydantic import Field, model_validator

from cache.format.codec import Codec
from common.settings import PathText, Settings

_CHUNK_BYTES = 1_200_000
"""Large enough that a disk reads it at full speed, small enough that a damaged one, or a copy of one, is cheap."""
_CHUNK_ROWS_LIMIT = 1024
Dtype = Literal["bfloat16", "float16", "float32", "int8"]


class CacheSettings(Settings):
    """How rows lie on disk. See FORMAT.md for what of it is part of the fingerprint."""

    dtype: Dtype = "bfloat16"
    """The stored type of source and target; bfloat16 loses nothing of a bfloat16 model, int8 takes half the disk."""
    codec: Codec = "none"
    """Compresses the rows, by zarr's codecs: for an archive. Reading then unpacks every chunk, where none maps it."""
    target: Literal["stored", "recompute"] = "stored"
    """``recompute`` keeps the source alone, half the disk, and the layer's MLP, which gives the target when read."""
    chunk_rows: int | None = Field(default=None, ge=1)
    """Rows of a chunk, the unit of a checksum and of a sequential read; None makes chunks of about a megabyte."""
    shard_rows: int = Field(default=8192, ge=1)
    """Rows of a file of the training rows."""
    segment_rows: int = Field(default=131_072, ge=1)
    """Training rows that are shuffled together and committed together; a writer holds so many in memory."""
    shuffle_seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seeds the order of the training rows within their segment."""
    held_out_fraction: float = Field(default=0.05, ge=0, lt=1)
    """The share of documents that is held out."""
    split_seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seeds which documents are held out."""
    check_reads: bool = True
    """Compare each chunk with its checksum the first time that it is read."""
    weak_disk: bool = False
    """Go on where the file system offers no locks (then see to it that one process writes to a folder at a time) or
    cannot flush folders (then a power cut may lose the last files). It changes no row and is recorded nowhere."""
    remote: PathText = ""
    """An fsspec URL (s3://bucket/folder) below which caches lie as below runs/: a harvest commits there as well, and
    what is not in runs/ is read from there."""
    remote_bytes: int = Field(default=20_000_000_000, ge=1)
    """Bytes of rows of a remote cache of which copies are kept on this disk, in the user's cache folder (and no more
    than 24,000 chunks, some 25 GB). With less than two pools of the loader, 2 GB, chunks are fetched more than once."""

    @model_validator(mode="after")
    def _rows_fit(self) -> "CacheSettings":
        for small, large in (("chunk_rows", "shard_rows"), ("shard_rows", "segment_rows")):
            count, rest = divmod(getattr(self, large), getattr(self, small) or 1)
            if rest or not count:
                sizes = f"{getattr(self, large)} = {count} x {getattr(self, small)} + {rest}"
                raise ValueError(f"{large} must be a multiple of {small}, but {sizes}")
        return self

    def chunk_rows_of(self, row_bytes: int) -> int:
        """Rows of a chunk: as set, or the largest power of two that makes it no larger than 1.2 MB and shards whole."""
        if self.chunk_rows:
            return self.chunk_rows
        rows = 1 << max(0, (_CHUNK_BYTES // row_bytes).bit_length() - 1)
        return math.gcd(min(rows, _CHUNK_ROWS_LIMIT), self.shard_rows)
