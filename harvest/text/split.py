"""Which documents are held out: a pure function of the document's own bytes and a seed.

Adding, removing or reordering other documents never moves a document to the other split, and copies of one document are
always in the same split.
"""

import numpy as np
import xxhash

# So many that no held-out fraction is rounded.
_BUCKETS = 1 << 32


def document_hash(content: bytes, *, seed: int = 0) -> int:
    """The 64-bit identity of a document with these bytes (UTF-8 text, or int32 little-endian token ids)."""
    return xxhash.xxh3_64_intdigest(content, seed=seed)


def document_bytes(content: str | list[int]) -> bytes:
    """The bytes that identify a document: UTF-8 text, or int32 little-endian token ids."""
    return content.encode() if isinstance(content, str) else np.asarray(content, dtype="<i4").tobytes()


def is_held_out(content: bytes, *, fraction: float, seed: int) -> bool:
    """Whether the document is held out; of many documents a share of ``fraction`` is."""
    return document_hash(content, seed=seed) % _BUCKETS < fraction * _BUCKETS
