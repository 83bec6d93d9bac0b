"""Arrays in a safetensors file with a seal: its size and xxh3-128 hash, stored elsewhere and checked before every use.

safetensors has no checksum of its own, does not fsync, and gives its files mode 0600. The format is a header length of
8 bytes, a JSON header, and the arrays; it is written here array by array, so that saving needs no second copy.
"""

import json
import struct
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from common import disk
from common.errors import DamagedError, DiskError, MismatchError, NestcoderError
from common.hashing import hash_file

_DTYPES = {torch.float32: "F32", torch.int32: "I32", torch.int64: "I64"}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# 16 MB are copied and written at a time: a copy of all of an array would double the memory that saving needs.
_PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class FileSeal:
    """The size and hash that a file must have."""

    size: int
    hash: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"bytes": self.size, "xxh3_128": self.hash}

    @staticmethod
    def parse(value: Any, *, location: object) -> "FileSeal":
        """From the result of ``as_dict``. Raises DamagedError for anything else."""
        match value:
            case {"bytes": int(size), "xxh3_128": str(digest)}:
                return FileSeal(size, digest)
            case _:
                raise DamagedError("The size and hash of a file are missing.", where=location)


def write_tensors(path: Path, arrays: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> FileSeal:
    """Write float32, int32 and int64 arrays, completely or not at all, readable by all users; returns the seal.

    ``metadata`` goes into the file's header, where other tools ignore it.
    """
    digest = xxhash.xxh3_128()
    size = 0

    def sealed() -> Generator[bytes]:
        nonlocal size
        for piece in _pieces(arrays, metadata):
            digest.update(piece)
            size += len(piece)
            yield piece

    disk.write_file(path, sealed())
    return FileSeal(size, digest.hexdigest())


def read_tensors(path: Path, seal: FileSeal, *, device: str = "cpu") -> dict[str, Tensor]:
    """The arrays of a sealed file. Raises DamagedError when it is missing, changed, or no safetensors file."""
    if not path.is_file():
        raise DamagedError("The file is missing.", where=path)
    with reading_safetensors(path):
        size = path.stat().st_size
        if size != seal.size:
            raise DamagedError(f"The file has {size:,} bytes instead of {seal.size:,}.", where=path)
        if hash_file(path) != seal.hash:
            raise DamagedError("The file does not match its hash: its contents were changed.", where=path)
        return load_file(path, device=device)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file; empty if there is none."""
    with reading_safetensors(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


@contextmanager
def reading_safetensors(path: Path) -> Generator[None]:
    """Raises DamagedError for errors of the safetensors library about the file's contents, DiskError for the disk's."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, ValueError, TypeError, RuntimeError, OverflowError, struct.error) as error:
        raise DamagedError(f"The safetensors file cannot be read: {error}.", where=path) from error
    except OSError as error:
        raise DiskError(f"The file cannot be read: {error}.", where=path) from error


def check_arrays(
    arrays: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    location: object,
    error: type[NestcoderError] = MismatchError,
    dtypes: Collection[torch.dtype] = tuple(_DTYPES),
) -> None:
    """Check that these are exactly the arrays of ``shapes``, each with its shape, one of ``dtypes``, and finite.

    Raises ``error`` for other arrays, shapes or dtypes, DamagedError for NaN or infinity.
    """
    if surplus := arrays.keys() ^ shapes.keys():
        raise error(
            f"Arrays {sorted(shapes)} are expected, but {sorted(surplus)} are there or missing.", where=location
        )
    for name, array in arrays.items():
        if tuple(array.shape) != shapes[name]:
            raise error(f"{name} has shape {tuple(array.shape)} instead of {shapes[name]}.", where=location)
        if array.dtype not in dtypes:
            accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise error(f"{name} has dtype {array.dtype}; one of {accepted} is expected.", where=location)
        if not bool(array.isfinite().all()):
            raise DamagedError(f"{name} contains NaN or infinity.", where=location)


def _pieces(arrays: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> Generator[bytes]:
    """The file's bytes in order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.numel() * array.element_size()
        header[name] = {"dtype": _DTYPES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    # Padded, so that the arrays begin at a multiple of 8 bytes, as safetensors does it.
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in arrays.values():
        flat = array.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8)
        yield from (flat[start : start + _PIECE_BYTES].tobytes() for start in range(0, len(flat), _PIECE_BYTES))
