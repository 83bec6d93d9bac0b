"""Small arrays that belong to the rows (a norm's gain and bias, an MLP's weights), as zarr arrays of one chunk."""

import re

import numpy as np

from cache.format.array import STORE, zarr_document
from common.errors import UsageError
from common.reading import parse_json

PARAMETERS = f"{STORE}/parameters/"
UNEMBEDDING = "unembedding."
"""The prefix of arrays that do not determine the rows (``cache.storage.unembedding``)."""
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_TYPES = {"float32", "float64", "float16", "uint16", "uint8", "int32", "int64"}


def parameter_files(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The zarr files of the small arrays, by path. Raises UsageError for a name or type that a cache cannot store."""
    files: dict[str, bytes] = {}
    for name, array in arrays.items():
        if not _NAME.fullmatch(name) or name == "zarr.json" or array.dtype.name not in _TYPES or not array.ndim:
            raise UsageError(f"A cache cannot store an array '{name}' of {array.ndim} dimensions and {array.dtype}.")
        folder = PARAMETERS + name
        files[f"{folder}/zarr.json"] = _parameter_json(array)
        if array.size:
            files[f"{folder}/c" + ".0" * array.ndim] = np.ascontiguousarray(array).tobytes()
    return files


def _parameter_json(array: np.ndarray) -> bytes:
    little = {"name": "bytes", "configuration": {"endian": "little"}} if array.itemsize > 1 else {"name": "bytes"}
    return zarr_document(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(array.shape),
            "data_type": array.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, n) for n in array.shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": "NaN" if array.dtype.kind == "f" else 0,
            "codecs": [little],
            "attributes": {},
        }
    )


def read_parameter(described: bytes, data: bytes) -> np.ndarray:
    """A small array from its zarr.json and its bytes. Raises ValueError for anything that a cache does not write."""
    document = parse_json(described)
    shape = document["shape"]
    item = document["data_type"]
    # No array of ours has more than two dimensions; a crafted file could have thousands.
    if item not in _TYPES or not 1 <= len(shape) <= 8:
        raise ValueError(f"an array of {item!r}")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"shape {shape!r}")
    array = np.frombuffer(data, item).reshape(shape).copy()
    if _parameter_json(array) != described:
        raise ValueError("metadata that a cache does not write")
    return array
