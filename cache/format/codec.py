"""The codecs of a compressed cache: an allow-list of zarr's own, by name. Nothing that a file names is looked up."""

import struct
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from common.errors import DamagedError
from common.hashing import Bytes

Codec = Literal["none", "zstd", "blosc-zstd", "blosc-zstd-bit", "blosc-lz4"]
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
        raise DamagedError(f"A compressed chunk says that it holds {size} bytes, not {len(out)}.")
    codec = numcodecs.Zstd() if name == "zstd" else numcodecs.Blosc()
    try:
        codec.decode(data, out=out)
    except (RuntimeError, ValueError) as error:
        raise DamagedError(f"A compressed chunk does not read ({error}).") from None


def most_bytes(chunk_bytes: int) -> int:
    """The most that any of the codecs makes of a chunk: a frame around what cannot be compressed."""
    return chunk_bytes + chunk_bytes // 64 + 4096


def _zstd_size(frame: bytes) -> int | None:
    """The content size in a Zstandard frame's header (RFC 8878, 3.1.1.1), None when it does not say."""
    if len(frame) < 6 or frame[:4] != _ZSTD_MAGIC:
        return None
    descriptor = frame[4]
    is_single_segment = descriptor >> 5 & 1
    size_flag = descriptor >> 6
    start = 5 + (not is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    length = (1 if is_single_segment else 0, 2, 4, 8)[size_flag]
    if not length:
        return None
    return int.from_bytes(frame[start : start + length], "little") + (256 if size_flag == 1 else 0)


def _blosc_size(chunk: bytes) -> int | None:
    """The content size in a Blosc chunk's header, None when the header makes no sense."""
    if len(chunk) < 16:
        return None
    content, _, total = struct.unpack("<III", chunk[4:16])
    return content if total == len(chunk) else None


def least_bytes(plain_bytes: int, codec: str, dtype: str) -> int:
    """The least that rows of ``plain_bytes`` can be expected to take: to refuse no cache that might fit.

    Half of a float32 from a bfloat16 model is zeros.
    """
    ratio = 1.0 if codec == "none" else 0.3 if dtype == "float32" else 0.6
    return int(ratio * plain_bytes)
