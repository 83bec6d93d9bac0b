"""Arrays in a safetensors file with a seal: its size and xxh3-128 hash, kept elsewhere and checked before any use.

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
# Written at a time: a copy of a whole array would double what a transcoder needs of memory.
_PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class FileSeal:
    """What a file must be."""

    size: int
    hash: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"bytes": self.size, "xxh3_128": self.hash}

    @staticmethod
    def parse(value: Any, *, where: object) -> "FileSeal":
        """From what ``as_dict`` gave. Raises DamagedError for anything else."""
        match value:
            case {"bytes": int(size), "xxh3_128": str(digest)}:
                return FileSeal(size, digest)
            case _:
                raise DamagedError("The size and hash of a file are missing.", where=where)


def write_tensors(path: Path, arrays: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> FileSeal:
    """Write float32, int32 and int64 arrays whole or not at all, durably, readable by all, and return the seal.

    ``metadata`` goes into the file's header, where other tools pass over it.
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
    """The arrays of a sealed file. Raises DamagedError when it is missing, altered, or no safetensors file."""
    if not path.is_file():
        raise DamagedError("A file is missing.", where=path)
    with reading_safetensors(path):
        size = path.stat().st_size
        if size != seal.size:
            raise DamagedError(f"The file has {size:,} bytes instead of {seal.size:,}.", where=path)
        if hash_file(path) != seal.hash:
            raise DamagedError("The file's contents are not what was written: its hash differs.", where=path)
        return load_file(path, device=device)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file; empty where there is none."""
    with reading_safetensors(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


@contextmanager
def reading_safetensors(path: Path) -> Generator[None]:
    """DamagedError for whatever the safetensors library raises on bytes of another kind, DiskError for the disk's."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, ValueError, TypeError, RuntimeError, OverflowError, struct.error) as error:
        raise DamagedError(f"Not a readable safetensors file: {error}.", where=path) from error
    except OSError as error:
        raise DiskError(f"The file cannot be read: {error}.", where=path) from error


def check_arrays(
    arrays: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    where: object,
    error: type[NestcoderError] = MismatchError,
    dtypes: Collection[torch.dtype] = tuple(_DTYPES),
) -> None:
    """Raises ``error`` unless these are exactly the arrays that are wanted, of the right shapes and of one of the
    dtypes, DamagedError where one is not finite.
    """
    if surplus := arrays.keys() ^ shapes.keys():
        raise error(f"Arrays {sorted(shapes)} are expected, but {sorted(surplus)} are there or missing.", where=where)
    for name, array in arrays.items():
        if tuple(array.shape) != shapes[name]:
            raise error(f"{name} has shape {tuple(array.shape)} instead of {shapes[name]}.", where=where)
        if array.dtype not in dtypes:
            accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise error(f"{name} holds {array.dtype}; one of {accepted} is expected.", where=where)
        if not bool(array.isfinite().all()):
            raise DamagedError(f"{name} holds NaN or infinity.", where=where)


def _pieces(arrays: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> Generator[bytes]:
    """The file's bytes in order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.numel() * array.element_size()
        header[name] = {"dtype": _DTYPES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in arrays.values():
        flat = array.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8)
        yield from (flat[start : start + _PIECE_BYTES].tobytes() for start in range(0, len(flat), _PIECE_BYTES))
