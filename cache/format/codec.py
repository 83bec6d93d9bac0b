"""The codecs of a compressed cache: an allow-list of zarr's own, by name. Nothing that a file names is looked up."""

import struct
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from common.errors import DamagedError
from common.hashing import Bytes

Codec = Literal["none", "zstd", "blosc-zstd", "blosc-zstd-bit", "blosc-lz4"]
# Blosc's compressor, its level and its shuffle; 5 of 9 is Blosc's own default level.
_BLOSC = {
    "blosc-zstd": ("zstd", 5, "shuffle"),
    "blosc-zstd-bit": ("zstd", 5, "bitshuffle"),
    "blosc-lz4": ("lz4", 5, "shuffle"),
}
# zstd's own default.
_ZSTD_LEVEL = 3
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def codec_json(name: str, item_bytes: int) -> dict[str, Any]:
    """The codec as zarr.json describes it."""
    if name == "zstd":
        return {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": True}}
    compressor, level, shuffle = _BLOSC[name]
    sizes = {"typesize": item_bytes, "cname": compressor, "clevel": level, "shuffle": shuffle, "blocksize": 0}
    return {"name": "blosc", "configuration": sizes}


def encoder(name: str, item_bytes: int) -> Callable[[Bytes], bytes]:
    """Compresses a chunk of items of this size."""
    import numcodecs

    if name == "zstd":
        zstd = numcodecs.Zstd(level=_ZSTD_LEVEL, checksum=True)
        return lambda chunk: bytes(zstd.encode(chunk))
    compressor, level, shuffle = _BLOSC[name]
    shuffles = {"shuffle": numcodecs.Blosc.SHUFFLE, "bitshuffle": numcodecs.Blosc.BITSHUFFLE}
    blosc = numcodecs.Blosc(cname=compressor, clevel=level, shuffle=shuffles[shuffle])
    return lambda chunk: bytes(blosc.encode(np.frombuffer(chunk, f"u{item_bytes}")))


def decode_into(out: memoryview | bytearray, name: str, data: bytes) -> None:
    """Fill ``out`` with the chunk in ``data``. Raises DamagedError, before anything is unpacked, for another size."""
    import numcodecs

    # The header is read first, so that a crafted chunk cannot make the codec write past ``out`` or fill the memory.
    size = _zstd_size(data) if name == "zstd" else _blosc_size(data)
    if size != len(out):
        raise DamagedError(f"A compressed chunk states a size of {size} bytes instead of {len(out)}.")
    codec = numcodecs.Zstd() if name == "zstd" else numcodecs.Blosc()
    try:
        codec.decode(data, out=out)
    except (RuntimeError, ValueError) as error:
        raise DamagedError(f"A compressed chunk cannot be unpacked ({error}).") from None


def maximum_bytes(chunk_bytes: int) -> int:
    """The largest result of any codec for a chunk: data that cannot be compressed, and the codec's headers."""
    # More than any bound that the codecs document (Blosc adds 16 bytes, Zstandard 1/256 and some): for a sanity check.
    return chunk_bytes + chunk_bytes // 64 + 4096


def _zstd_size(frame: bytes) -> int | None:
    """The content size in a Zstandard frame's header (RFC 8878, 3.1.1.1), None when it does not say."""
    if len(frame) < 6 or frame[:4] != _ZSTD_MAGIC:
        return None
    # The descriptor is one byte after the magic number. Bits 6 and 7: how long the size is; bit 5: whether the window's
    # byte is missing; bits 0 and 1: how long the dictionary's number is. All three lie between it and the size.
    descriptor = frame[4]
    is_single_segment = descriptor >> 5 & 1
    size_flag = descriptor >> 6
    start = 5 + (not is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    length = (1 if is_single_segment else 0, 2, 4, 8)[size_flag]
    if not length:
        return None
    # A size of two bytes is stored less 256, because smaller ones take one byte.
    return int.from_bytes(frame[start : start + length], "little") + (256 if size_flag == 1 else 0)


def _blosc_size(chunk: bytes) -> int | None:
    """The content size in a Blosc chunk's header, None when the header contradicts the chunk."""
    # The header has 16 bytes; the last three numbers of 4 bytes are the size, the block size and the compressed size.
    if len(chunk) < 16:
        return None
    content, _, total = struct.unpack("<III", chunk[4:16])
    return content if total == len(chunk) else None


def minimum_bytes(plain_bytes: int, codec: str, dtype: str) -> int:
    """The smallest size that can be expected of rows of ``plain_bytes``, so that no cache is refused that might fit."""
    # Below what any codec reaches on activations. Half of a float32 from a bfloat16 model is zeros.
    ratio = 1.0 if codec == "none" else 0.3 if dtype == "float32" else 0.6
    return int(ratio * plain_bytes)
