"""The tiles as they were measured: a warp reads 256 columns of one row, and no program reads far beyond a row."""

import pytest

from transcoder.tiles import Tile, dots_tile, sums_tile


@pytest.mark.parametrize(("width", "block", "warps"), [(2304, 512, 2), (768, 512, 2), (300, 512, 2), (96, 128, 1)])
def test_a_sum_reads_one_row_at_a_time(width, block, warps):
    assert sums_tile(width) == Tile(1, block, warps)


@pytest.mark.parametrize(("width", "block"), [(2304, 128), (100, 128), (40, 64), (3, 16)])
def test_dot_products_are_computed_four_at_a_time_in_one_warp(width, block):
    assert dots_tile(width) == Tile(4, block, 1)


def test_every_width_has_tiles_that_fit():
    for width in range(8, 5000, 8):
        for tile in (sums_tile(width), dots_tile(width)):
            assert tile.block & (tile.block - 1) == 0
            assert tile.block < 2 * width + 16
