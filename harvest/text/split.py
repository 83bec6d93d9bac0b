"""Which documents are held out: a pure function of the document's own bytes and a seed.

Adding, removing or reordering other documents never moves a document across the split,
and copies of one document always fall on the same side.
"""

import numpy as np
import xxhash

# So fine that no held-out fraction is rounded by it.
_BUCKETS = 1 << 32


def document_hash(content: bytes, *, seed: int = 0) -> int:
    """The 64-bit identity of a document with these bytes (UTF-8 text, or int32 little-endian token ids)."""
    return xxhash.xxh3_64_intdigest(content, seed=seed)


def document_bytes(content: str | list[int]) -> bytes:
    """The bytes by which a document is known: UTF-8 text, or int32 little-endian token ids."""
    return content.encode() if isinstance(content, str) else np.asarray(content, dtype="<i4").tobytes()


def is_held_out(content: bytes, *, fraction: float, seed: int) -> bool:
    """Whether the document belongs to the held-out rows; over many documents a share of ``fraction`` does."""
    return document_hash(content, seed=seed) % _BUCKETS < fraction * _BUCKETS
