"""The tile of every width wastes few columns."""

import pytest

from transcoder.tiles import Tile, tile_for


@pytest.mark.parametrize(
    ("width", "entries", "block", "warps"),
    [(2304, 4, 512, 4), (768, 8, 256, 4), (4096, 4, 512, 4), (1152, 8, 256, 4), (96, 8, 128, 2), (64, 8, 64, 1)],
)
def test_a_tile_wastes_few_columns(width, entries, block, warps):
    assert tile_for(width) == Tile(entries, block, warps)


def test_every_width_has_a_tile_that_fits():
    for width in range(8, 5000, 8):
        tile = tile_for(width)
        assert tile.block & (tile.block - 1) == 0
        assert -(-width // tile.block) * tile.block < 2 * width + 16
