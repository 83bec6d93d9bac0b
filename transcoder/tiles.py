"""The sizes of the tiles that a program of the Triton kernels adds up in its registers, as measured on an H200.

A warp should read only one row of a table at a time: in bfloat16, 16 bytes a thread, that is 256 columns. Then a
reduction never crosses warps. Four warps on 4 rows of 512 columns took 2.3 to 2.5 times as long for a sum, on 8 rows of
256 columns 4 to 7 times. docs/gpu.md has the whole table.
"""

from dataclasses import dataclass

_COLUMNS_OF_A_WARP = 256
"""32 threads that read 16 bytes each, in bfloat16; in float32 each reads twice."""


@dataclass(frozen=True)
class Tile:
    """A program's tile: ``entries`` times ``block`` numbers in the registers of ``warps`` warps."""

    entries: int
    block: int
    warps: int


def sums_tile(width: int) -> Tile:
    """For sums of rows of this width: one row at a time, in blocks of up to 512 columns."""
    block = min(512, _power_of_two(width))
    return Tile(1, block, warps=max(1, block // _COLUMNS_OF_A_WARP))


def dots_tile(width: int) -> Tile:
    """For dot products of rows of this width: four at a time, in steps of up to 128 columns, in one warp."""
    return Tile(4, min(128, _power_of_two(width)), warps=1)


def _power_of_two(width: int) -> int:
    """The smallest that is no smaller, and at least 16."""
    return 1 << (max(width, 16) - 1).bit_length()
