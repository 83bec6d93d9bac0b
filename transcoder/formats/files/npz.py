"""Float arrays from an untrusted .npz file: checked before anything is unpacked, and never unpickled.

An .npz is a zip of .npy members. Before an array is allocated, every member's size must agree with the shape and dtype
in its header, and their sum must be possible for a file of this length.
"""

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from common.errors import DamagedError, DiskError, UsageError

LARGEST_RATIO = 20
"""Unpacked size to packed size; real weights compress by far less."""
SLACK_BYTES = 1 << 20
"""A small file may hold zeros, which compress by any ratio."""

_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    MemoryError,
    SyntaxError,
)


def read_npz(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The float arrays ``names``, as float32 tensors.

    UsageError: no such file. DamagedError: not such a file, an array missing, not floats, not finite, or sizes that
    disagree. DiskError: it cannot be read.
    """
    if not path.is_file():
        raise UsageError("There is no such file.", where=path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, names, path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _as_tensor(arrays[name], name, path) for name in names}
    except _UNREADABLE as error:
        raise DamagedError(f"Not a readable .npz file: {error}.", where=path) from error
    except OSError as error:
        raise DiskError(f"The file cannot be read: {error}.", where=path) from error


def _check_members(archive: zipfile.ZipFile, names: tuple[str, ...], path: Path) -> None:
    members = archive.infolist()
    found = [member.filename for member in members]
    if len(set(found)) != len(found):
        raise DamagedError("Two arrays in the file have the same name.", where=path)
    if missing := [name for name in names if f"{name}.npy" not in found]:
        raise DamagedError(f"The file has no array {', '.join(missing)}; it has {sorted(found)}.", where=path)
    claimed = sum(member.file_size for member in members)
    actual = path.stat().st_size
    if claimed > LARGEST_RATIO * actual + SLACK_BYTES:
        what = f"The file has {actual:,} bytes and claims to hold {claimed:,}: that is not a dictionary."
        raise DamagedError(what, where=path)
    for name in names:
        _check_header(archive, f"{name}.npy", name, path)


def _check_header(archive: zipfile.ZipFile, member_name: str, name: str, path: Path) -> None:
    """DamagedError unless the member is a float array whose bytes are as many as its shape needs."""
    file_size = archive.getinfo(member_name).file_size
    with archive.open(member_name) as member:
        version = npy.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise DamagedError(f"{name} has .npy version {version}; versions 1.0 and 2.0 are read.", where=path)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(member)
        header_bytes = member.tell()
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise DamagedError(f"{name} holds {dtype}; a float type was expected.", where=path)
    if header_bytes + math.prod(shape) * dtype.itemsize != file_size:
        raise DamagedError(f"{name} has {file_size:,} bytes, but its shape {shape} needs another number.", where=path)


def _as_tensor(array: np.ndarray, name: str, path: Path) -> Tensor:
    if not np.isfinite(array).all():
        raise DamagedError(f"{name} holds NaN or infinity.", where=path)
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
