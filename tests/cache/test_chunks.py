"""Chunks are cut, padded, written with their checksums, and compared with those when they are read."""

import numpy as np
import pytest
import xxhash

from cache.format.array import Array
from cache.format.chunks import FileOut, chunks_of, cut
from common.errors import DamagedError


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_what_was_written_is_read_and_a_changed_byte_is_found(codec):
    array = Array("train", "source", "float32", 3, 8, 8, 4, True, codec=codec)
    values = np.arange(18, dtype=np.float32).reshape(6, 3)
    chunks = cut(array, values.data.cast("B"), 6)
    assert [len(chunk) for chunk in chunks] == [array.chunk_bytes] * 2
    file = FileOut(array, 0, ([chunk] for chunk in chunks))
    data = b"".join(bytes(piece) for piece in file.pieces())
    entry = file.entry
    assert (entry.size_bytes, entry.xxh3) == (len(data), xxhash.xxh3_128_hexdigest(data))
    back = b"".join(bytes(chunk) for chunk in chunks_of(array, 0, entry, data))
    assert back[: values.nbytes] == values.tobytes()
    assert np.isnan(np.frombuffer(back[values.nbytes :], np.float32)).all()
    wrong = bytearray(data)
    wrong[entry.byte_range(1, array.chunk_bytes)[0] + 20] ^= 1
    with pytest.raises(DamagedError):
        chunks_of(array, 0, entry, bytes(wrong))
