"""Every codec gives back what it was given; a crafted chunk unpacks nothing."""

import numpy as np
import pytest

from cache.format.codec import decode_into, encoder, maximum_bytes
from common.errors import DamagedError

CODECS = ["zstd", "blosc-zstd", "blosc-zstd-bit", "blosc-lz4"]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("chunk", [bytes(4096), np.random.default_rng(0).bytes(4096)], ids=["zeros", "noise"])
def test_a_chunk_comes_back(codec, chunk):
    stored = encoder(codec, 2)(chunk)
    assert len(stored) <= maximum_bytes(len(chunk))
    out = bytearray(len(chunk))
    decode_into(out, codec, stored)
    assert bytes(out) == chunk


@pytest.mark.parametrize("codec", CODECS)
def test_a_chunk_of_another_size_or_cut_short_is_damage(codec):
    stored = encoder(codec, 2)(np.random.default_rng(0).bytes(4096))
    for out, data in ((bytearray(4095), stored), (bytearray(4096), stored[:100]), (bytearray(4096), b"")):
        with pytest.raises(DamagedError):
            decode_into(out, codec, data)
