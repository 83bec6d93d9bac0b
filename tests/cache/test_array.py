"""An array's files: how many, how large, what follows their chunks; zarr reads what its zarr.json says."""

import json
import struct

import numpy as np
import zarr

from cache.format.array import BFLOAT16_NAN, Array, padding, zarr_group
from common.hashing import crc32c

ARRAY = Array("train", "source", "float32", width=3, rows=21, file_rows=8, chunk_rows=4, sharded=True)


def test_the_last_file_and_chunk_may_be_shorter():
    assert ARRAY.files == 3
    assert [ARRAY.chunks_in(number) for number in range(3)] == [2, 2, 2]
    assert ARRAY.chunk_bytes == 4 * 3 * 4
    assert ARRAY.file_bytes(0) == 2 * ARRAY.chunk_bytes + 2 * 16 + 4
    assert ARRAY.file_path(2) == "rows.zarr/train/source/c.2.0"


def test_the_index_says_where_chunks_are_and_which_are_absent():
    index = ARRAY.index([10])
    assert struct.unpack("<QQQQ", index[:32]) == (0, 10, 2**64 - 1, 2**64 - 1)
    assert struct.unpack("<I", index[32:])[0] == crc32c(index[:32])


def test_padding_is_what_zarr_fills_with():
    bits = Array("train", "source", "uint16", 2, 5, 8, 4, True)
    assert (np.frombuffer(padding(bits, 5), np.uint16) == BFLOAT16_NAN).all()
    assert len(padding(bits, 5)) == 3 * bits.row_bytes
    assert padding(bits, 8) == b""
    tokens = Array("train", "tokens", "int32", 0, 5, 8, 8, False)
    assert (np.frombuffer(padding(tokens, 5), np.int32) == -1).all()


def test_zarr_opens_files_at_the_paths_that_the_array_names(tmp_path):
    values = np.arange(21 * 3, dtype=np.float32).reshape(21, 3)
    folder = tmp_path / "rows.zarr/train/source"
    folder.mkdir(parents=True)
    (folder / "zarr.json").write_bytes(ARRAY.zarr_json())
    (tmp_path / "rows.zarr/zarr.json").write_bytes(zarr_group())
    for number in range(ARRAY.files):
        rows = values[8 * number : 8 * number + 8]
        data = rows.tobytes() + bytes(padding(ARRAY, len(rows)))
        data = data.ljust(ARRAY.chunks_in(number) * ARRAY.chunk_bytes, b"\0")
        sizes = [ARRAY.chunk_bytes] * ARRAY.chunks_in(number)
        (tmp_path / ARRAY.file_path(number)).write_bytes(data + ARRAY.index(sizes))
    assert (zarr.open_array(folder, mode="r")[:] == values).all()
    assert json.loads(ARRAY.zarr_json())["shape"] == [21, 3]
