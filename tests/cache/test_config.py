"""Sizes of a cache that do not fit each other are refused; chunks are about a megabyte."""

import pytest
from pydantic import ValidationError

from cache.config import CacheSettings


@pytest.mark.parametrize("sizes", [{"shard_rows": 100, "segment_rows": 250}, {"chunk_rows": 3, "shard_rows": 8}])
def test_sizes_must_be_multiples_and_the_refusal_says_of_what(sizes):
    with pytest.raises(ValidationError, match=r"must be a multiple of .* = \d+ x \d+ \+ \d+"):
        CacheSettings(**sizes)


def test_a_chunk_is_the_largest_power_of_two_below_its_bytes_that_keeps_shards_whole():
    settings = CacheSettings()
    assert settings.chunk_rows_of(2 * 2304) == 256
    assert settings.chunk_rows_of(2) == 1024
    assert settings.chunk_rows_of(10_000_000) == 1
    assert CacheSettings(shard_rows=24, segment_rows=48).chunk_rows_of(2) == 8
    assert CacheSettings(chunk_rows=4).chunk_rows_of(10**9) == 4
