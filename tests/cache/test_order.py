import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.config import CacheSettings
from cache.order import EpochOrder, derive_key, permute


@given(size=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_permutation(size, key):
    assert (np.sort(permute(np.arange(size), size, key=key)) == np.arange(size)).all()


def test_a_permutation_of_a_huge_size_needs_no_table():
    size = 8_600_000_000
    image = permute(np.arange(size - 1000, size), size, key=3)
    assert len(set(image.tolist())) == 1000
    assert 0 <= image.min() < size // 4 < 3 * size // 4 < image.max() < size


def test_the_permutation_is_the_one_that_the_format_fixes():
    assert permute(np.arange(10), 10, key=derive_key(1, 2)).tolist() == [1, 5, 3, 9, 8, 2, 6, 0, 4, 7]


def test_a_permutation_looks_random():
    size = 50_000
    image = permute(np.arange(size), size, key=11)
    assert abs(np.corrcoef(np.arange(size), image)[0, 1]) < 0.02
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02
    cells = np.histogram2d(np.arange(size), image, bins=20)[0]
    assert 300 < ((cells - size / 400) ** 2 / (size / 400)).sum() < 500


def orders():
    return st.builds(
        lambda rows, chunk, shards, pool, seed, epoch: EpochOrder(
            rows=rows, chunk_rows=chunk, segment_rows=chunk * shards, pool_rows=pool, seed=seed, epoch=epoch
        ),
        st.integers(1, 90),
        st.integers(1, 9),
        st.integers(1, 9),
        st.integers(1, 90),
        st.integers(0, 9),
        st.integers(0, 3),
    )


@given(order=orders(), cut=st.integers(0, 90))
@settings(max_examples=40, deadline=None)
def test_every_row_is_served_once_an_epoch_and_any_position_is_found_directly(order, cut):
    rows = order.rows_at(0, order.rows)
    assert (np.sort(rows) == np.arange(order.rows)).all()
    pieces = [order.rows_at(0, cut), order.rows_at(cut, order.rows)]
    assert (np.concatenate(pieces) == rows).all()


@given(order=orders())
@settings(max_examples=40, deadline=None)
def test_a_pool_serves_the_chunks_that_it_names(order):
    for pool in range(order.pools):
        rows = order.rows_at(order.pool_start(pool), order.pool_start(pool + 1))
        chunks = rows // order.chunk_rows
        assert set(chunks) == set(order.chunks_of_pool(pool))


def test_a_pool_is_spread_over_all_segments():
    order = EpochOrder(rows=64 * 1024 + 300, chunk_rows=16, segment_rows=1024, pool_rows=1040, seed=5, epoch=1)
    for pool in range(order.pools):
        segments = np.bincount(order.chunks_of_pool(pool) * 16 // 1024, minlength=65)
        assert segments[:64].min() >= 0
        assert segments.max() <= 3
        assert (segments[:64] > 0).sum() >= 60


@pytest.mark.parametrize("change", [{"seed": 6}, {"epoch": 2}])
def test_another_seed_or_epoch_gives_another_order(change):
    first = {"rows": 4096, "chunk_rows": 16, "segment_rows": 256, "pool_rows": 512, "seed": 5, "epoch": 1}
    orders = [EpochOrder(**first), EpochOrder(**first | change)]
    assert (orders[0].rows_at(0, 4096) == orders[1].rows_at(0, 4096)).mean() < 0.01
    pools = [set(order.chunks_of_pool(0)) for order in orders]
    assert pools[0] != pools[1]


@pytest.mark.parametrize("width", [1, 96, 768, 2304, 4608, 1 << 20])
@pytest.mark.parametrize("shard_rows", [8192, 6000, 12, 1])
def test_chunks_of_about_a_megabyte_fill_their_shards(width, shard_rows):
    options = CacheSettings(shard_rows=shard_rows, segment_rows=4 * shard_rows)
    rows = options.chunk_rows_of(2 * width)
    assert shard_rows % rows == 0
    assert rows == 1 or rows * 2 * width <= 1_200_000
    assert rows * 4 * width > 1_200_000 or rows in {1024, math.gcd(shard_rows, 1024)}
    assert CacheSettings(chunk_rows=3, shard_rows=6, segment_rows=6).chunk_rows_of(2 * width) == 3
