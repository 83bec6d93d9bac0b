"""The size of the tile that a program of the Triton kernels adds up in its registers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """A program's tile: ``entries`` times ``block`` numbers in the registers of ``warps`` warps."""

    entries: int
    block: int
    warps: int


def tile_for(width: int) -> Tile:
    """The tile for rows of this width: the widest block that leaves at most an eighth of its columns idle.

    On an H100 a step of width 2,304 took 6.0 ms with 4 entries of 512 columns and 8.9 ms with 8 of 256. A thread has 16
    numbers in every tile: two loads of 16 bytes in bfloat16, four in float32.
    """
    widest = 1 << (max(width, 16) - 1).bit_length()
    blocks = [block for block in (512, 256, 128) if block <= widest] or [widest]
    idle = {block: -width % block for block in blocks}
    block = next((block for block in blocks if 8 * idle[block] <= width), min(blocks, key=lambda block: idle[block]))
    entries = max(4, min(8, 2048 // block))
    return Tile(entries, block, warps=max(1, entries * block // 512))
