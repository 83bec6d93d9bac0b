"""Arrays in a safetensors file with a seal: its size and xxh3-128 hash, kept elsewhere and checked before any use.

safetensors has no checksum of its own, does not fsync, and gives its files mode 0600. The format is a header length of
8 bytes, a JSON header, and the arrays; it is written here array by array, so that saving needs no second copy.
"""

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common import disk
from common.errors import DamagedError, MismatchError

_DTYPES = {torch.float32: "F32", torch.int32: "I32", torch.int64: "I64"}
_PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class FileSeal:
    """What a file must be."""

    size: int
    hash: str

    def said(self) -> dict[str, Any]:
        return {"bytes": self.size, "xxh3_128": self.hash}

    @staticmethod
    def parse(said: Any, *, where: object) -> "FileSeal":
        """From what ``said`` gave. Raises DamagedError for anything else."""
        match said:
            case {"bytes": int(size), "xxh3_128": str(digest)}:
                return FileSeal(size, digest)
            case _:
                raise DamagedError("the size and hash of a file are missing", where=where)


def write_tensors(path: Path, arrays: Mapping[str, Tensor]) -> FileSeal:
    """Write float32, int32 and int64 arrays whole or not at all, durably, readable by all, and return the seal."""
    digest, size = xxhash.xxh3_128(), 0

    def sealed() -> Generator[bytes]:
        nonlocal size
        for piece in _pieces(arrays):
            digest.update(piece)
            size += len(piece)
            yield piece

    disk.write_file(path, sealed())
    return FileSeal(size, digest.hexdigest())


def read_tensors(path: Path, seal: FileSeal, *, device: str = "cpu") -> dict[str, Tensor]:
    """The arrays of a sealed file. Raises DamagedError when it is missing, altered, or no safetensors file."""
    if not path.is_file():
        raise DamagedError("a file is missing", where=path)
    if path.stat().st_size != seal.size:
        raise DamagedError(f"the file has {path.stat().st_size} bytes instead of {seal.size}", where=path)
    if _hash_of(path) != seal.hash:
        raise DamagedError("the file's contents are not what was written (its hash differs)", where=path)
    try:
        return load_file(path, device=device)
    except SafetensorError as error:
        raise DamagedError(f"the file is not in safetensors format: {error}", where=path) from error


def check_shapes(arrays: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, where: object) -> None:
    """Raise MismatchError unless these are exactly the arrays that are wanted, finite and of the right shapes."""
    if surplus := arrays.keys() ^ shapes.keys():
        raise MismatchError(
            f"arrays {sorted(shapes)} are wanted, but {sorted(surplus)} are there or missing", where=where
        )
    for name, array in arrays.items():
        if tuple(array.shape) != shapes[name]:
            raise MismatchError(f"{name} has shape {tuple(array.shape)} instead of {shapes[name]}", where=where)
        if array.dtype not in _DTYPES:
            raise MismatchError(f"{name} is {array.dtype}, neither float32 nor int32 nor int64", where=where)
        if not bool(array.isfinite().all()):
            raise DamagedError(f"{name} holds NaN or infinity", where=where)


def _pieces(arrays: Mapping[str, Tensor]) -> Generator[bytes]:
    """The file's bytes in order."""
    header: dict[str, Any] = {}
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


def _hash_of(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()
