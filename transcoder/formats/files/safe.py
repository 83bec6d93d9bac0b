"""JSON and safetensors files from elsewhere: any bytes give the right arrays or a typed error; nothing is executed."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from common.errors import DamagedError, DiskError, UsageError
from common.sealed.tensors import reading_safetensors
from common.units import in_bytes

JSON_LIMIT_BYTES = 64 << 20
"""A configuration has kilobytes; a larger file would only fill the memory."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. UsageError: no such file. DamagedError: not a JSON object, or over 64 MiB."""
    raw = _read_bytes(path, limit_bytes=JSON_LIMIT_BYTES)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"Not a JSON file: {error}.", where=path) from error
    if not isinstance(value, dict):
        raise DamagedError(f"A JSON object was expected, not {type(value).__name__}.", where=path)
    return value


def names_in(path: Path) -> set[str]:
    """The names of the tensors of a safetensors file. UsageError: no such file. DamagedError: not one."""
    _require_file(path)
    with reading_safetensors(path), safe_open(path, framework="pt") as file:
        return set(file.keys())


def read_tensors(path: Path, *, names: set[str], optional: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """The tensors ``names`` of a safetensors file, and those of ``optional`` that it has.

    UsageError: no such file. DamagedError: not a safetensors file, or a tensor is missing.
    """
    _require_file(path)
    with reading_safetensors(path), safe_open(path, framework="pt") as file:
        found = set(file.keys())
        if missing := sorted(names - found):
            raise DamagedError(f"The file has no tensor {', '.join(missing)}; it has {sorted(found)}.", where=path)
        return {name: file.get_tensor(name) for name in sorted(names | (optional & found))}


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError("There is no such file.", where=path)


def _read_bytes(path: Path, *, limit_bytes: int) -> bytes:
    _require_file(path)
    try:
        size = path.stat().st_size
        if size > limit_bytes:
            what = f"The file has {in_bytes(size)}; at most {in_bytes(limit_bytes)} are expected."
            raise DamagedError(what, where=path)
        return path.read_bytes()
    except OSError as error:
        raise DiskError(f"The file cannot be read: {error}.", where=path) from error
